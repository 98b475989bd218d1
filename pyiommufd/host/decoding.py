"""Values of JSON and TOML as the types that the program has for them."""

from __future__ import annotations

import contextlib
import types
import typing
from dataclasses import is_dataclass
from enum import StrEnum
from typing import Any


def decode(kind: Any, value: Any) -> Any:
    """A value that JSON or TOML gave, as this type has it: of dataclasses, lists, dicts, enumerations and plain values.

    Raises:
        ValueError: It is of another shape.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType:
        for one in arguments[1:]:
            with contextlib.suppress(ValueError):
                return decode(one, value)
        return decode(arguments[0], value)
    if origin is list and isinstance(value, list):
        return [decode(arguments[0], one) for one in value]
    if origin is dict and isinstance(value, dict):
        return {key: decode(arguments[1], one) for key, one in value.items()}
    if is_dataclass(kind) and isinstance(value, dict):
        hints = typing.get_type_hints(kind)
        if unknown := value.keys() - hints.keys():
            raise ValueError(f"unknown key {min(unknown)}")
        try:
            return kind(**{key: decode(hints[key], one) for key, one in value.items()})  # type: ignore[operator]
        except TypeError as error:
            raise ValueError(str(error)) from None
    elif isinstance(kind, type) and issubclass(kind, StrEnum):
        return kind(value)
    elif type(value) is kind or (kind is float and type(value) is int):
        return value
    raise ValueError(f"{repr(value)[:60]} is not {_KINDS.get(origin or kind, 'a table')}")


_KINDS = {str: "a string", int: "a whole number", float: "a number", bool: "true or false", list: "an array"}
"""How messages name the types. What is not here is a table, as TOML calls it; JSON says object."""
