"""Generated blocks of a Markdown file: the numbers of a README come from result files and are not typed.

A block is what lies between the lines ``<!-- name:begin -->`` and ``<!-- name:end -->``.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from robustnn.errors import InvalidArgumentError, invalid
from robustnn.files import atomic_write_bytes

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


def replace_block(text: str, name: str, content: str) -> str:
    r"""Return ``text`` with the content of the block ``name`` replaced, markers kept.

    Args:
        text: a Markdown document with both markers of the block, once each.
        name: name of the block: letters, digits, ``_ . -``.
        content: new content, without the markers; blank lines around it are supplied.

    Raises:
        InvalidArgumentError: a marker is missing, appears twice, or the end comes first.

    Example:
        >>> replace_block("<!-- t:begin -->old<!-- t:end -->", "t", "new")
        '<!-- t:begin -->\n\nnew\n\n<!-- t:end -->'
    """
    if not _NAME.fullmatch(name):
        raise invalid("name", "letters, digits and _ . - only", repr(name), "Rename the block.")
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    for marker in (begin, end):
        count = text.count(marker)
        if count != 1:
            raise invalid("text", f"the marker {marker} once", f"it {count} times", "Correct the document.")
        if marker in content:
            raise invalid("content", "no marker of its own block", marker, "Pass what stands between them.")
    start, stop = text.index(begin) + len(begin), text.index(end)
    if stop < start:
        raise invalid("text", f"{begin} before {end}", "the opposite order", "Swap the markers.")
    return f"{text[:start]}\n\n{content.strip(chr(10))}\n\n{text[stop:]}"


def update_block(path: str | os.PathLike[str], name: str, content: str) -> bool:
    """Write new content into the block ``name`` of a Markdown file, atomically.

    Args:
        path: the Markdown file.
        name: name of the block.
        content: new content, for example ``table.markdown()``.

    Returns:
        True if the file changed; an up-to-date file is not touched.

    Raises:
        InvalidArgumentError: as in `replace_block`.
    """
    old = _read(path)
    new = _replaced(path, old, name, content)
    if new != old:
        atomic_write_bytes(path, new.encode("utf-8"))
    return new != old


def block_is_current(path: str | os.PathLike[str], name: str, content: str) -> bool:
    """Tell whether the block ``name`` of a Markdown file already holds ``content``; nothing is written.

    Raises:
        InvalidArgumentError: as in `replace_block`.
    """
    old = _read(path)
    return _replaced(path, old, name, content) == old


def _read(path: str | os.PathLike[str]) -> str:
    return Path(path).read_bytes().decode("utf-8")


def _replaced(path: str | os.PathLike[str], text: str, name: str, content: str) -> str:
    try:
        return replace_block(text, name, content)
    except InvalidArgumentError as error:
        raise InvalidArgumentError(f"{os.fspath(path)}: {error}") from error
