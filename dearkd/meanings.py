"""Guesses what a wrong value in YAML was meant to be, so that an error message can say what to write."""

import contextlib
from collections.abc import Iterator
from typing import Any

from dearkd.ranges import Within


def meanings(value: Any) -> Iterator[Any]:
    """Yield what a value may mean: `off` is 0 or none, `0,5` is 0.5, `10%` is 10, 2000.0 is 2000, 3 is [3]."""
    if value is False:
        yield from (0, "none")
    elif value is None:
        yield "none"
    elif isinstance(value, str):
        yield from ({"yes": (True,), "true": (True,), "no": (False,), "false": (False,)}.get(value.lower(), ()))
        yield from ((0, value.lower()) if value.lower() in ("off", "none", "no", "false") else ())
        with contextlib.suppress(ValueError):
            number = float(value.replace(",", ".").removesuffix("%"))
            yield int(number) if number.is_integer() else number
    elif isinstance(value, int | float) and not isinstance(value, bool) and Within().allows(value):
        yield from ((bool(value),) if value in (0, 1) else ())
        yield from ((int(value),) if isinstance(value, float) and value.is_integer() else ())
        yield str(value)
    elif isinstance(value, list):
        parts = [[m for m in (v, *meanings(v)) if isinstance(m, int) and not isinstance(m, bool)] for v in value]
        yield from ([[part[0] for part in parts]] if all(parts) else ())
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        yield [value]
