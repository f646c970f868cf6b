from __future__ import annotations

from pathlib import Path

import pytest

from robustnn.errors import InvalidArgumentError
from robustnn.report import block_is_current, replace_block, update_block

README = "# Title\r\n\nbefore <!-- t:begin -->\nold\n<!-- t:end --> after\n<!-- u:begin --><!-- u:end -->\n"


def test_only_the_block_changes_and_twice_is_once() -> None:
    text = replace_block(README, "t", "| a |\n")
    assert text == README.replace("\nold\n", "\n\n| a |\n\n")
    assert replace_block(text, "t", "| a |") == text


def test_update_and_check_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "README.md"
    file.write_bytes(README.encode())
    assert not block_is_current(file, "t", "new")
    assert file.read_bytes() == README.encode()
    assert update_block(file, "t", "new")
    assert block_is_current(file, "t", "new")
    assert not block_is_current(file, "t", "newer")
    assert not update_block(file, "t", "new")
    assert file.read_bytes() == README.replace("\nold\n", "\n\nnew\n\n").encode()


@pytest.mark.parametrize(
    ("text", "name", "content", "match"),
    [
        ("<!-- t:begin -->", "t", "x", "<!-- t:end --> once, got it 0 times"),
        ("<!-- t:end -->", "t", "x", "<!-- t:begin --> once, got it 0 times"),
        (README + README, "t", "x", "<!-- t:begin --> once, got it 2 times"),
        ("<!-- t:end --><!-- t:begin -->", "t", "x", "opposite order"),
        (README, "t", "<!-- t:end -->", "content: expected"),
        (README, "a b", "x", "name: expected"),
    ],
)
def test_bad_documents_are_refused(tmp_path: Path, text: str, name: str, content: str, match: str) -> None:
    with pytest.raises(InvalidArgumentError, match=match):
        replace_block(text, name, content)
    file = tmp_path / "README.md"
    file.write_text(text, newline="")
    with pytest.raises(InvalidArgumentError, match="README.md"):
        update_block(file, name, content)
    assert file.read_bytes() == text.encode()
