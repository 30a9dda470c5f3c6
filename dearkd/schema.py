"""Strict reading of YAML into frozen dataclasses: one clear sentence for whatever does not fit.

Plan layer: standard library only.
"""

import dataclasses
import difflib
import hashlib
import json
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar

T = TypeVar("T")
Pairs = tuple[tuple[str, Any], ...]
"""A mapping that can be hashed and frozen: ((key, value), ...), sorted by key."""


class InputError(Exception):
    """A mistake in what the user gave; its text is one sentence that names the file or key and the way out."""


def spec(cls: type[T]) -> type[T]:
    """A frozen, keyword-only dataclass."""
    return dataclasses.dataclass(frozen=True, kw_only=True)(cls)


def unknown(key: str, known: Sequence[str] | Mapping[str, Any], kind: str, where: str) -> str:
    """The sentence for a name that does not exist, with the nearest one that does."""
    near = difflib.get_close_matches(key, list(known), n=1, cutoff=0.4)
    shown = [*sorted(known)[:12], *(["..."] if len(known) > 12 else [])]
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(shown)}"
    return f"{where}: unknown {kind} {key!r}; {hint}"


def build(cls: type[T], values: Any, where: str) -> T:
    """Fill the dataclass `cls` from parsed YAML.

    Raises InputError naming `where` (file and dotted key) for an unknown key with its nearest neighbour, a missing
    key, or a value of the wrong type.
    """
    if not isinstance(values, Mapping):
        raise InputError(f"{where}: expected a mapping, got {values!r}")
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in values:
        if key not in fields:
            raise InputError(unknown(str(key), fields, "key", where))
    hints = typing.get_type_hints(cls)
    built = {}
    for name, field in fields.items():
        if name in values:
            built[name] = _convert(hints[name], values[name], f"{where}: {name}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise InputError(f"{where}: missing key {name!r}")
    try:
        return cls(**built)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def _convert(hint: Any, value: Any, where: str) -> Any:
    """`value` as `hint`, or InputError. Integers pass as floats; lists become tuples, mappings Pairs."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return freeze(value)
    if hint == Pairs:
        if isinstance(value, list | tuple) and all(isinstance(v, list | tuple) and len(v) == 2 for v in value):
            return freeze(value)  # as a record holds them
        if not isinstance(value, Mapping):
            raise InputError(f"{where}: expected a mapping, got {value!r}")
        return freeze(value)
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        return _convert(next(a for a in args if a is not type(None)), value, where)
    if origin is Literal:
        if value not in args:
            raise InputError(unknown(str(value), [str(a) for a in args], "value", where))
        return value
    if origin is dict:
        if not isinstance(value, Mapping):
            raise InputError(f"{where}: expected a mapping, got {value!r}")
        return {str(k): _convert(args[1], v, f"{where}.{k}") for k, v in value.items()}
    if origin is tuple:
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise InputError(f"{where}: expected a list, got {value!r}")
        kinds = args[:1] * len(value) if args[-1] is Ellipsis else args
        if len(kinds) != len(value):
            raise InputError(f"{where}: expected {len(kinds)} values, got {list(value)!r}")
        return tuple(_convert(kind, v, where) for kind, v in zip(kinds, value, strict=True))
    if dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else build(hint, value, where)  # type: ignore[arg-type]
    if hint is float and isinstance(value, int | str) and not isinstance(value, bool):
        try:
            return float(value)  # YAML reads 1e-5, without a dot, as text
        except ValueError:
            raise InputError(f"{where}: expected a number, got {value!r}") from None
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise InputError(f"{where}: expected {hint.__name__}, got {value!r}")
    return value


def freeze(value: Any) -> Any:
    """Lists to tuples and mappings to sorted Pairs, throughout."""
    if isinstance(value, Mapping):
        return tuple(sorted((str(k), freeze(v)) for k, v in value.items()))
    if isinstance(value, list | tuple):
        return tuple(freeze(v) for v in value)
    return value


def override(base: T, changes: Mapping[str, Any], where: str) -> T:
    """`base` with the fields at dotted paths replaced together, for example {"rpe.drop": 0, "training.epochs": 100}.

    Raises InputError naming the nearest field when there is none of that name, or when the result contradicts itself.
    """
    names = [f.name for f in dataclasses.fields(base)]  # type: ignore[arg-type]
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
            new[head] = _convert(typing.get_type_hints(type(base))[head], below[""], here)
        elif not dataclasses.is_dataclass(getattr(base, head)):
            raise InputError(f"{here} has no fields of its own, so {head}.{next(iter(below))} names nothing")
        else:
            new[head] = override(getattr(base, head), below, here)
    try:
        return dataclasses.replace(base, **new)  # type: ignore[type-var]
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def lookup(base: Any, path: str) -> Any:
    """The value at a dotted path."""
    for part in path.split("."):
        base = getattr(base, part)
    return base


def to_json(value: Any) -> Any:
    """A spec as plain JSON values, every field written out."""
    return json.loads(json.dumps(dataclasses.asdict(value)))


def deviations(value: Any) -> Any:
    """The spec as JSON values without fields at their default, so that a new knob changes no old run."""
    if dataclasses.is_dataclass(value):
        return {
            f.name: deviations(getattr(value, f.name))
            for f in dataclasses.fields(value)
            if getattr(value, f.name) != _default(f)
        }
    if isinstance(value, tuple):
        return [deviations(v) for v in value]
    return value


def _default(field: dataclasses.Field) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def fingerprint(value: Any) -> str:
    """First 16 hex digits of the sha256 of a spec's deviations from the defaults."""
    text = json.dumps(deviations(value), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
