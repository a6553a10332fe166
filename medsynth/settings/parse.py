"""Mappings from files as frozen dataclasses, with errors that name the key when a file says something else."""

from __future__ import annotations

import math
import types
import typing
from dataclasses import MISSING, fields, is_dataclass

from medsynth.language.words import did_you_mean

_FROM_ZERO = ("seed", "seeds", "warmup", "checkpoint_every")  # whole numbers of a profile that may be 0
_ABOVE_ZERO = ("learning_rate", "epsilon_scale")  # numbers that may not


def parse(cls: type, mapping: object, where: str) -> typing.Any:
    """Build the dataclass `cls` from a mapping; ValueError names the key, what was found and the closest valid key."""
    if not isinstance(mapping, dict):
        raise ValueError(f"{where}: found {type(mapping).__name__} {mapping!r}; expected a mapping with keys {_names(cls)}")
    hints = typing.get_type_hints(cls)
    for key in mapping:
        if key not in hints:
            raise ValueError(f"{where}: unknown key {key!r}; {did_you_mean(str(key), hints)}")
    missing = [f.name for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING and f.name not in mapping]
    if missing:
        raise ValueError(f"{where}: missing key {missing[0]!r}; expected {_type_name(hints[missing[0]])}")
    return cls(**{key: _convert(value, hints[key], f"{where}.{key}") for key, value in mapping.items()})


def _convert(value: object, kind: typing.Any, where: str) -> object:
    if is_dataclass(kind):
        return parse(kind, value, where)
    if typing.get_origin(kind) is tuple:
        (item, _) = typing.get_args(kind)
        if not isinstance(value, list | tuple):
            raise ValueError(f"{where}: found {value!r}; expected a list of {_type_name(item)}")
        return tuple(_convert(v, item, f"{where}[{i}]") for i, v in enumerate(value))
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        options = [k for k in typing.get_args(kind) if k is not type(None)]
        return None if value is None else _convert(value, options[0], where)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    # YAML 1.1 reads "1e-4" as text; a number was meant
    if kind is float and isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            pass
    if type(value) is not kind:
        raise ValueError(f"{where}: found {type(value).__name__} {value!r}; expected {_type_name(kind)}")
    return value


def check_sizes(config: object, where: str) -> None:
    """ValueError naming the first number that no run can have: a size or count below 1, or what is negative or not finite."""
    for f in fields(config):
        value = getattr(config, f.name)
        if is_dataclass(value):
            check_sizes(value, f"{where}.{f.name}")
        for item in value if isinstance(value, tuple) else (value,):
            if type(item) is int and item < (least := 0 if f.name in _FROM_ZERO else 1):
                raise ValueError(f"{where}.{f.name}: found {item}; expected at least {least}")
            if type(item) is float and f.name != "epsilon" and not (0 <= item < math.inf and (item or f.name not in _ABOVE_ZERO)):
                expected = "above 0" if f.name in _ABOVE_ZERO else "not below 0"
                raise ValueError(f"{where}.{f.name}: found {item}; expected a finite number, {expected}")


def _names(cls: type) -> str:
    return ", ".join(f.name for f in fields(cls))


def _type_name(kind: typing.Any) -> str:
    return getattr(kind, "__name__", str(kind))
