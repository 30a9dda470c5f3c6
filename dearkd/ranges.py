"""Ranges of numbers, lists and texts, which the type of a spec's field names: `Annotated[int, Within(1, 100)]`.

`str` of a range is what to write instead of a value outside it, after "write".
"""

import dataclasses
import re
from collections.abc import Sequence
from typing import Annotated, Any

LARGEST = 2**32 - 1
"""Limit of a number without another limit, far above any count or weight."""


@dataclasses.dataclass(frozen=True)
class Within:
    """A number from `low` to `high`, which a field's type names: `Annotated[int, Within(1)]`. NaN is in no range.

    above, below: the limit itself is left out.
    """

    low: int | float = -LARGEST
    high: int | float = LARGEST
    above: bool = False
    below: bool = False

    def allows(self, value: int | float) -> bool:
        over = value > self.low if self.above else value >= self.low
        return over and (value < self.high if self.below else value <= self.high)

    def __str__(self) -> str:
        if self.high == LARGEST and self.low > -LARGEST:
            return f"a number above {self.low:,}" if self.above else f"{self.low:,} or more"
        high = f"below {self.high:,}" if self.below else f"{self.high:,}"
        return f"a number {'above' if self.above else 'from'} {self.low:,} {'and up ' if self.above else ''}to {high}"


@dataclasses.dataclass(frozen=True)
class Several:
    """A list of at least so many entries, none of them twice."""

    least: int = 0

    def allows(self, value: Sequence[Any]) -> bool:
        return len(value) >= self.least and len(set(value)) == len(value)

    def __str__(self) -> str:
        return "a list of one or more entries, each of them once" if self.least else "a list that has each entry once"


@dataclasses.dataclass(frozen=True)
class Matches:
    """A text of a form; `form` says which, after "write"."""

    pattern: str
    form: str

    def allows(self, value: str) -> bool:
        return re.fullmatch(self.pattern, value) is not None

    def __str__(self) -> str:
        return self.form


Whole = Annotated[int, Within(0)]
Count = Annotated[int, Within(1)]
Weight = Annotated[float, Within(0)]
Positive = Annotated[float, Within(0, above=True)]
Share = Annotated[float, Within(0, 1)]
Part = Annotated[float, Within(0, 1, below=True)]
"""A share from 0 to below 1."""
Seed = Annotated[int, Within(0, LARGEST)]
Percent = Annotated[float, Within(0, 100)]
Name = Annotated[str, Matches(r"\w[\w.+-]{0,99}", "letters, digits and _ . + - only, because it becomes part of paths")]
Title = Annotated[str, Matches(r"\S.{0,79}", "a text of one line, at most 80 characters")]
Sha256 = Annotated[str, Matches(r"([0-9a-f]{64})?", "64 hexadecimal digits, or an empty text")]
