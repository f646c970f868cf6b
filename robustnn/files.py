"""Atomic file writes: an interrupt leaves the old file or the new one, never a part."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

__all__ = ["atomic_write_bytes", "atomic_write_text"]


def atomic_write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Replace the file at ``path`` by ``data``: a reader sees the old file or the new one, never a part.

    The bytes go to a hidden temporary file in the same folder, are flushed to the disk, and take the name of
    the target in one step (``os.replace``). A process killed in between leaves the old file and a hidden
    ``.tmp``.

    Args:
        path: File to write; its folder must exist.
        data: The whole new content.

    Raises:
        OSError: The folder is missing or not writable.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(6)}.tmp")
    try:
        # os.open with mode 0o666 obeys the umask; tempfile would make the file private to its owner.
        descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def atomic_write_text(path: str | os.PathLike[str], text: str) -> None:
    """Replace the file at ``path`` by ``text`` in UTF-8, as `atomic_write_bytes` does.

    Args:
        path: File to write; its folder must exist.
        text: The whole new content; line ends are written as they are.
    """
    atomic_write_bytes(path, text.encode("utf-8"))
