"""Objects from plain values: a name and parameters, as `describe` returns them and YAML or JSON hold them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar

from robustnn.errors import invalid

__all__ = ["built", "check_names", "parameters_of"]

T = TypeVar("T")


def parameters_of(kind: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Return the parameters of a class or function by name, in their order."""
    return dict(inspect.signature(kind).parameters)


def check_names(
    what: str,
    kinds: Mapping[str, Callable[..., Any]],
    config: Mapping[str, Any],
    parts: Collection[str] = (),
) -> None:
    """Raise unless a configuration names a kind and its parameters, all those without a default among them.

    Args:
        what: What it describes, for messages.
        kinds: Classes or functions by name.
        config: `{"name": ..., parameter: value, ...}`.
        parts: Names of parameters that need not be given.

    Raises:
        InvalidArgumentError: If the name or a parameter is unknown or missing.
    """
    if (
        not isinstance(config, Mapping)
        or not isinstance(config.get("name"), str)
        or config["name"] not in kinds
    ):
        got = config.get("name") if isinstance(config, Mapping) else type(config).__name__
        raise invalid(what, f"a mapping with a name of {', '.join(kinds)}", repr(got), "Choose one of these.")
    name = config["name"]
    known = parameters_of(kinds[name])
    given = set(config) - {"name"}
    if not given <= set(known):
        unknown = sorted(given - set(known))
        raise invalid(f"{what} {name!r}", f"parameters {list(known)}", unknown, "Correct the names.")
    missing = [key for key, p in known.items() if p.default is p.empty and key not in given | set(parts)]
    if missing:
        raise invalid(f"{what} {name!r}", f"parameters {list(known)}", sorted(given), f"Give also {missing}.")


def built(
    what: str,
    kinds: Mapping[str, Callable[..., T]],
    config: Mapping[str, Any],
    parts: Mapping[str, Callable[[], Any]] | None = None,
) -> T:
    """Build an object from its name and parameters.

    Args:
        what: What is built, for messages.
        kinds: Classes or functions by name.
        config: `{"name": ..., parameter: value, ...}`.
        parts: Functions that return the values of parameters that plain values cannot hold; one is called if the kind
            has a parameter of its name, whatever the config says of it.

    Returns:
        The object.

    Raises:
        InvalidArgumentError: If the name or a parameter is unknown, or a value not acceptable.
    """
    parts = parts or {}
    check_names(what, kinds, config, tuple(parts))
    kind, known = kinds[config["name"]], parameters_of(kinds[config["name"]])
    values = {key: value for key, value in config.items() if key != "name"}
    values |= {key: part() for key, part in parts.items() if key in known}
    try:
        return kind(**values)
    except (TypeError, AttributeError) as error:
        raise invalid(
            f"{what} {config['name']!r}", "parameters of the right kinds", values, f"It says: {error}."
        ) from error
