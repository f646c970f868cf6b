from __future__ import annotations

import pytest
from torch import nn

from robustnn.cli.names import expression
from robustnn.errors import InvalidArgumentError


def test_values_that_hyper_parameter_files_write_as_expressions() -> None:
    text = "dict(a=-1.5, b=[1, (2, None)], c=dict(d=True), e=nn.ReLU, f={'g': 1})"
    expected = {"a": -1.5, "b": [1, (2, None)], "c": {"d": True}, "e": nn.ReLU, "f": {"g": 1}}
    assert expression("x", text) == expected
    for text in (
        "open('x')",
        "dict(**{})",
        "nn.init",
        "nn.Module.__init__",
        "a",
        "dict(1)",
        "1 +",
        "[x for x in ()]",
    ):
        with pytest.raises(InvalidArgumentError, match="x: expected literals"):
            expression("x", text)
