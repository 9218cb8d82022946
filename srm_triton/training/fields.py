"""Tables of values from outside, as TOML and checkpoints hold them, checked against the type hints of their fields."""

import dataclasses
import math
import types
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from srm_triton.checks import check_number, check_option, shown


class Range(NamedTuple):
    """Which numbers are allowed."""

    smallest: float
    above: bool = False
    """Whether they must be above the smallest."""
    below: float = math.inf


class Table:
    """A dataclass whose values are checked, and lists turned into tuples, as its type hints say.

    Raises:
        TypeError: as `convert`.
        ValueError: as `convert`.
    """

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(type(self), include_extras=True).items():
            object.__setattr__(self, name, convert(name, getattr(self, name), kind))


def convert(name: str, value: Any, kind: Any) -> Any:
    """The value in the type of a hint, which may be made of numbers, text, lists, options and tables.

    Args:
        name: what errors call it.
        value: what was given.
        kind: the hint.

    Raises:
        TypeError: for a value of another type.
        ValueError: for a value out of its range, or a table with other keys.

    Example:
        >>> convert("sizes", [3, 4], tuple[int, ...])
        (3, 4)
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        base, limits = arguments
        number = check_number(name, value, limits.smallest, whole=base is int, above=limits.above)
        if number >= limits.below:
            raise ValueError(f"{name} must be below {limits.below:g}, got {number}")
        return base(number)
    if origin is Literal:
        check_option(name, value, arguments)
        return value
    if origin in (Union, types.UnionType):
        return _first_that_fits(name, value, arguments)
    if origin in (tuple, list):
        if not isinstance(value, (list, tuple)):
            raise TypeError(f"{name} must be a list, got {shown(value)}")
        return origin(convert(name, item, arguments[0]) for item in value)
    if origin is dict:
        return {key: convert(f"{name}.{key}", item, arguments[1]) for key, item in _mapping(name, value).items()}
    if kind in (int, float):
        return kind(check_number(name, value, -math.inf, whole=kind is int))
    if isinstance(value, kind):
        return value
    if dataclasses.is_dataclass(kind) or issubclass(kind, tuple):
        return _table(name, value, kind)
    raise TypeError(f"{name} must be {kind.__name__}, got {shown(value)} of type {type(value).__name__}")


def _first_that_fits(name: str, value: Any, kinds: tuple[Any, ...]) -> Any:
    reasons = []
    for kind in kinds:
        try:
            return convert(name, value, kind)
        except (TypeError, ValueError) as error:
            reasons.append(str(error))
    raise ValueError("; or ".join(reasons))


def _table(name: str, value: Any, kind: Any) -> Any:
    """A dataclass or named tuple; keys that are no fields go into its field `options`, if it has one."""
    hints = get_type_hints(kind, include_extras=True)
    given = {key: item for key, item in _mapping(name, value).items() if key in hints}
    others = {key: item for key, item in value.items() if key not in hints}
    if "options" in hints:
        given["options"] = {**_mapping("options", given.get("options", {})), **others}
    elif others:
        raise ValueError(f"[{name}] must have no other keys than {', '.join(hints)}, got {next(iter(others))!r}")
    try:
        return kind(**{key: convert(key, item, hints[key]) for key, item in given.items()})
    except (TypeError, ValueError) as error:
        text = str(error)
        raise type(error)(text if text.startswith("[") else f"[{name}] {text}") from error


def _mapping(name: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise TypeError(f"{name} must be a table, got {shown(value)}")
    return value
