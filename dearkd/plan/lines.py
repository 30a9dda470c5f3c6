"""Specs (the dataclasses of a plan) as lines of YAML, each with a comment that says where its value comes from."""

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import yaml

from dearkd.fingerprint import deviations
from dearkd.plan.origins import OFF, Origins, Path, idle, of_default
from dearkd.schema import default

COLUMN = 44
"""Where comments begin, unless a value is longer."""


class Line(NamedTuple):
    """A key with its value, and a comment; one of both may be empty."""

    text: str
    comment: str = ""

    def __str__(self) -> str:
        if not self.text:
            return f"# {self.comment}" if self.comment else ""
        return f"{self.text:<{COLUMN}}  # {self.comment}" if self.comment else self.text


def scalar(value: Any) -> str:
    """Return a value on one line, as strict YAML. A spec shows only what differs from its defaults."""
    plain = deviations(value)
    text = yaml.safe_dump(plain, default_flow_style=True, allow_unicode=True, width=10**9, sort_keys=False)
    return text.removesuffix("\n").removesuffix("\n...")


def fields(spec: Any, path: Path, origins: Origins, names: tuple[str, ...] = (), indent: str = "  ") -> Iterator[Line]:
    """A spec's fields, or those of `names`. Fields at a default that does nothing are named in one line below."""
    unused, useless = [], idle(spec)
    for field in dataclasses.fields(spec):
        value = getattr(spec, field.name)
        if names and field.name not in names:
            continue
        if value == default(field) and (field.name in useless or of_default(type(spec), field.name) == OFF):
            unused.append(field.name)
        elif dataclasses.is_dataclass(value) or field.name == "args":
            yield from _nested(field.name, value, (*path, field.name), origins, indent)
        else:
            yield Line(f"{indent}{field.name}: {scalar(value)}", origins.of((*path, field.name), value))
    if unused:
        yield Line(f"{indent}# not used: {', '.join(unused)}")


def _nested(name: str, value: Any, path: Path, origins: Origins, indent: str) -> Iterator[Line]:
    """A spec inside a spec, of which only what differs from the defaults is there, or keyword arguments."""
    inner = dict(value) if isinstance(value, tuple) else {k: getattr(value, k) for k in deviations(value)}
    yield Line(
        f"{indent}{name}:{'' if inner else ' {}'}", "" if isinstance(value, tuple) else "what differs from the defaults"
    )
    for key, one in inner.items():
        yield Line(f"{indent}  {key}: {scalar(one)}", origins.of((*path, key), one))
