"""Strict reading of YAML into frozen dataclasses. Each mistake is one clear sentence."""

import contextlib
import dataclasses
import functools
import json
import math
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

from dearkd.errors import IN_WORDS, InputError, as_text, shown, unknown
from dearkd.meanings import meanings
from dearkd.ranges import LARGEST, Within

T = TypeVar("T")
Check = Callable[[Any, str], None]
Pairs = tuple[tuple[str, Any], ...]
"""A mapping that can be hashed and frozen: ((key, value), ...), sorted by key."""
UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")
"""Characters that file names and texts may not have: controls except tab and line feed, and single surrogates."""


@typing.dataclass_transform(frozen_default=True, kw_only_default=True)
def spec(cls: type[T]) -> type[T]:
    """Make a class a frozen, keyword-only dataclass whose values are in the ranges that its types name (`ranges`).

    Its constructor raises InputError for a value outside; the class's own `__post_init__` runs after that check.
    """
    described: Any = cls
    own = cls.__dict__.get("__post_init__")

    def checked(self: Any) -> None:
        for name, check in _checks(described):
            check(getattr(self, name), name)
        if own is not None:
            own(self)

    described.__post_init__ = checked
    return dataclasses.dataclass(frozen=True, kw_only=True)(cls)


def _fields(spec: Any) -> tuple[dataclasses.Field, ...]:
    return dataclasses.fields(spec)


_hints: Callable[[Any], dict[str, Any]] = functools.cache(typing.get_type_hints)


@functools.cache
def _checks(cls: Any) -> list[tuple[str, Check]]:
    """(name, check) of the fields with a range somewhere in their type."""
    hints = typing.get_type_hints(cls, include_extras=True)
    return [(name, check) for name, hint in hints.items() if (check := _check_of(hint)) is not None]


def _check_of(hint: Any) -> Check | None:
    """A function of (value, where) that raises InputError outside the ranges that a type names; None if it names none.

    Compiled once for a type: a plan makes two thousand specs.
    """
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        within, limits = _check_of(args[0]), args[1:]

        def annotated(value: Any, where: str) -> None:
            for limit in limits:
                if not limit.allows(value):
                    large = isinstance(limit, Within) and value > limit.high == LARGEST
                    raise InputError(f"{where} is {shown(value)}; write {f'{LARGEST:,} or less' if large else limit}")
            if within is not None:
                within(value, where)

        return annotated
    if origin in (typing.Union, types.UnionType):
        given = _check_of(next(a for a in args if a is not type(None)))
        return given and (lambda value, where: given(value, where) if value is not None else None)
    if origin not in (tuple, dict):
        return None
    checks = [_check_of(a) for a in args if a is not Ellipsis]
    if not any(checks):
        return None

    def each(value: Any, where: str) -> None:
        if origin is dict:
            for place, part in value.items():
                _apply(checks[0], place, where)
                _apply(checks[1], part, f"{where}.{place}")
        else:
            for check, part in zip(checks if len(checks) == len(value) else checks * len(value), value, strict=False):
                _apply(check, part, where)

    return each


def _apply(check: Check | None, value: Any, where: str) -> None:
    if check is not None:
        check(value, where)


def build(cls: type[T], values: Any, where: str) -> T:
    """Make an instance of the dataclass `cls` from a parsed YAML mapping.

    Raises InputError naming `where` (file and dotted key) for an unknown key, with the nearest known one; for a missing
    key; and for a value of another type or outside its range, with what to write instead where that is clear.
    """
    if not isinstance(values, Mapping):
        raise InputError(f"{where}: expected a mapping, got {shown(values)}")
    fields = {field.name: field for field in _fields(cls)}
    for key in values:
        if key not in fields:
            below = [f"{name}.{key}" for name, hint in _hints(cls).items() if _has(hint, key)]
            raise InputError(unknown(as_text(key), fields, "key", where, below))
    hints = _hints(cls)
    built = {}
    for name, field in fields.items():
        if name in values:
            try:
                built[name] = convert(hints[name], values[name], f"{where}: {name}")
            except InputError as error:
                raise InputError(f"{error}{_instead(cls, field, values[name])}") from None
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise InputError(f"{where}: missing key {name!r}")
    try:
        return cls(**built)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def _has(hint: Any, key: Any) -> bool:
    """Whether a type is a spec with a field of that name."""
    return isinstance(hint, type) and dataclasses.is_dataclass(hint) and key in {f.name for f in _fields(hint)}


def _instead(cls: type, field: dataclasses.Field, value: Any) -> str:
    """Return what to write instead of a value that a field refuses; empty if nothing fits."""
    hint = _hints(cls)[field.name]

    def allows(meant: Any) -> bool:
        with contextlib.suppress(InputError):
            converted = convert(hint, meant, "")
            for name, check in _checks(cls):
                _apply(check if name == field.name else None, converted, "")
            return True
        return False

    for meant in meanings(value):
        if allows(meant) and not (meant == "none" and allows("any")):  # of free text, `none` is not what is meant
            text = json.dumps(meant)
            return f"; write {text}" if len(text) <= 60 else ""
    if hint is str and value is not None and not isinstance(value, str | list | Mapping):
        return "; put it in quotes"
    usual = default(field)
    known = (value is True or value is None) and isinstance(usual, int | float | str)
    return f"; the default is {json.dumps(usual)}" if known else ""


def convert(hint: Any, value: Any, where: str) -> Any:
    """A parsed YAML value as the type `hint`. Integers pass as floats; lists become tuples, mappings Pairs.

    Raises InputError naming `where` for a value of another type.
    """
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint in (Any, object):
        return freeze(_plain(value, where)) if hint is Any else _plain(value, where)
    if hint == Pairs:
        if isinstance(value, list | tuple) and all(isinstance(v, list | tuple) and len(v) == 2 for v in value):
            value = {_key(k, where): v for k, v in value}  # as a record holds them
        if not isinstance(value, Mapping):
            raise InputError(f"{where}: expected a mapping, got {shown(value)}")
        return freeze(_plain(value, where))
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        return convert(next(a for a in args if a is not type(None)), value, where)
    if origin is Literal:
        if not any(value == a and type(value) is type(a) for a in args):
            raise InputError(unknown(as_text(value), [str(a) for a in args], "value", where))
        return value
    if origin is dict:
        if not isinstance(value, Mapping):
            raise InputError(f"{where}: expected a mapping, got {shown(value)}")
        return {_key(k, where): convert(args[1], v, f"{where}.{k}") for k, v in value.items()}
    if origin is tuple:
        if not isinstance(value, Sequence) or isinstance(value, str | bytes):
            raise InputError(f"{where}: expected a list, got {shown(value)}")
        kinds = args[:1] * len(value) if args[-1] is Ellipsis else args
        if len(kinds) != len(value):
            raise InputError(f"{where}: expected {len(kinds)} values, got {shown(value)}")
        return tuple(convert(kind, v, where) for kind, v in zip(kinds, value, strict=True))
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else build(hint, value, where)
    if hint is float and isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            number = float(value)  # YAML reads 1e-5, without a dot, as text
        except (ValueError, OverflowError):
            raise InputError(f"{where}: expected a number, got {shown(value)}") from None
        if not math.isfinite(number):
            raise InputError(f"{where}: expected a finite number, got {shown(value)}")
        return number
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise InputError(f"{where}: expected {IN_WORDS.get(hint, hint.__name__)}, got {shown(value)}")
    return _plain(value, where)


def _plain(value: Any, where: str) -> Any:
    """`value`, made of what JSON has and nothing else; InputError for dates, bytes, sets and numbers out of range."""
    if isinstance(value, Mapping):
        return {_key(k, where): _plain(v, f"{where}.{k}") for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v, where) for v in value]
    if isinstance(value, str) and UNPRINTABLE.search(value):
        raise InputError(f"{where}: {shown(value)} holds a control character; write it without")
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, int | float):
        if not Within().allows(value):
            raise InputError(f"{where} is {shown(value)}; write {Within()}")
        return value
    raise InputError(f"{where}: expected text, a number, a list or a mapping, got {shown(value)}")


def _key(key: Any, where: str) -> str:
    if not isinstance(key, str):
        raise InputError(f"{where}: the key {shown(key)} is no text; put it in quotes")
    return key


def freeze(value: Any) -> Any:
    """A parsed YAML value that can be hashed: its lists as tuples, its mappings as sorted Pairs, at every depth."""
    if isinstance(value, Mapping):
        return tuple(sorted((str(k), freeze(v)) for k, v in value.items()))
    if isinstance(value, list | tuple):
        return tuple(freeze(v) for v in value)
    return value


def override(base: T, changes: Mapping[str, Any], where: str) -> T:
    """A copy of `base` with other values at dotted paths, for example {"rpe.drop": 0, "training.epochs": 100}.

    All changes apply together. Raises InputError with the nearest field where a path names none, and where the result
    contradicts itself.
    """
    names = [field.name for field in _fields(base)]
    grouped: dict[str, dict[str, Any]] = {}
    for path, value in changes.items():
        head, _, rest = path.partition(".")
        if head not in names:
            raise InputError(unknown(head, names, "key", where))
        grouped.setdefault(head, {})[rest] = value
    new = {}
    for head, below in grouped.items():
        here = f"{where}: {head}"
        if "" in below:
            new[head] = convert(_hints(type(base))[head], below[""], here)
        elif not dataclasses.is_dataclass(getattr(base, head)):
            raise InputError(f"{here} has no fields of its own, so {head}.{next(iter(below))} names nothing")
        else:
            new[head] = override(getattr(base, head), below, here)
    try:
        replaced: T = dataclasses.replace(typing.cast(Any, base), **new)
        return replaced
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def to_json(value: Any) -> Any:
    """A spec as plain JSON values, every field written out."""
    return json.loads(json.dumps(dataclasses.asdict(value)))


def default(field: dataclasses.Field) -> Any:
    """The default of a spec's field; `dataclasses.MISSING` where it has none."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default
