"""The language of paper/claims.csv: what a claim compares, written like Python and read as data, never run.

table2['DearKD-Ti', 50] > table2['DeiT-Ti', 100]       a cell is table[row] or table[row, column]
table3.parameters['Swin-T'] - table3.parameters['DearKD-S'] >= 6       another number of the same row
-0.5 <= table1['+ distill'] - table3['DeiT-Ti-distilled'] <= 0.5       a chain, as in Python
table1['+ MHCA'] > table1['baseline'] and ...                          all of them
table2['DearKD-Ti', each] > table2['DeiT-Ti', each]                    in each column that the scale has
table3['DearKD-B-1000'] >= table3[others]                              against each other row that the scale has
at_least(3, table4['DearKD-B', each] > table4['DeiT-B', each])         in at least three columns
"""

import ast
import copy
import itertools
import math
import operator
import reprlib
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import pandas as pd

from dearkd.errors import InputError

ARITHMETIC = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


DEEPEST = 50
LARGEST = 1e12
"""Greatest depth of a claim's expressions, and greatest number in them."""
STEP = 1e-3
"""Step by which a number is changed to measure its effect on a margin."""


class Reference(NamedTuple):
    """A cell that a claim names, as a cell reference of a spreadsheet does.

    column: None where the table has one column of numbers, or, in a question, for any column.
    """

    table: str
    metric: str
    """Empty: the number that the table itself compares."""
    row: str | int | None
    column: str | int | None = None

    def __str__(self) -> str:
        place = ", ".join(repr(part) for part in (self.row, self.column) if part is not None)
        return f"{self.table}{self.metric and '.'}{self.metric}[{place}]"


Value = pd.Series | float
"""A number for each seed, or one number that does not depend on seeds."""
Numbers = Mapping[Reference, Value]


class Comparison(NamedTuple):
    """One comparison of a claim. It has two sides."""

    left: ast.expr
    op: ast.cmpop
    right: ast.expr

    def __str__(self) -> str:
        return ast.unparse(ast.Compare(self.left, [self.op], [self.right]))

    def references(self) -> dict[Reference, None]:
        """The cells that the comparison names, in order; None in place of `each` and `others`."""
        nodes = [n for side in (self.left, self.right) for n in ast.walk(side) if isinstance(n, ast.Subscript)]
        return dict.fromkeys(_reference(node) for node in nodes)

    def uses(self, word: str) -> bool:
        """Whether the comparison has `each` or `others`."""
        nodes = itertools.chain(ast.walk(self.left), ast.walk(self.right))
        return any(isinstance(node, ast.Name) and node.id == word for node in nodes)

    def where(self, **chosen: str | int) -> "Comparison":
        """The comparison with a row in place of `others`, or a column in place of `each`."""
        put = _Put(chosen)
        return Comparison(put.visit(copy.deepcopy(self.left)), self.op, put.visit(copy.deepcopy(self.right)))

    def margin(self, numbers: Numbers) -> Value:
        """By how much the comparison holds, for each seed that all its cells have; nan where a cell has none."""
        sides = (self.left, self.right) if isinstance(self.op, ast.Gt | ast.GtE) else (self.right, self.left)
        more, less = (_evaluate(side, numbers) for side in sides)
        margin = more - less
        if isinstance(margin, pd.Series):
            return margin.dropna() if margin.notna().any() else math.nan
        return margin

    def slopes(self, numbers: Numbers) -> dict[Reference, float]:
        """What one more in a cell adds to the margin, for each cell with a number for each seed, at their means."""
        cells = [c for c in self.references() if isinstance(numbers.get(c), pd.Series)]
        means = {c: float(pd.Series(numbers[c]).mean()) for c in cells}
        moved = {c: pd.Series([m + STEP * (c == other) for other in [*cells, None]]) for c, m in means.items()}
        margins = pd.Series(self.margin({**numbers, **moved}))  # the last one is the margin at the means
        return {c: (margins[i] - margins[len(cells)]) / STEP for i, c in enumerate(cells)}

    @property
    def inclusive(self) -> bool:
        """Whether a margin of 0 is enough."""
        return isinstance(self.op, ast.GtE | ast.LtE)

    @property
    def relative(self) -> bool:
        """Whether the comparison is of a ratio."""
        return any(isinstance(n, ast.Div) for side in (self.left, self.right) for n in ast.walk(side))


class Comparisons(NamedTuple):
    """All comparisons of a claim, and the number of columns in which they must hold; 0: in every column."""

    general: tuple[Comparison, ...]
    at_least: int = 0

    def groups(self, numbers: Numbers) -> list[list[Comparison]]:
        """The comparisons with `each` and `others` written out, one group a column; empty where there is no column."""
        groups = []
        for general in self.general:
            for comparison in _columns(general, numbers):
                others = [comparison.where(others=row) for row in _others(comparison, numbers)]
                groups.append(others if comparison.uses("others") else [comparison])
            if not _columns(general, numbers):
                groups.append([])
        return groups


def read(text: str) -> Comparisons:
    """The comparisons of a claim, from their text. Raises InputError, without the place, for any other text."""
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise InputError(f"no comparison: {reprlib.repr(text)}") from None
    _check_size(tree, text)
    match tree:
        case ast.Call(func=ast.Name("at_least"), args=[ast.Constant(int(count)), compared], keywords=[]) if count > 0:
            return Comparisons(tuple(_chain(compared)), count)
        case ast.BoolOp(op=ast.And(), values=parts):
            return Comparisons(tuple(pair for part in parts for pair in _chain(part)))
    return Comparisons(tuple(_chain(tree)))


def _check_size(tree: ast.expr, text: str) -> None:
    """Raise InputError for nesting and numbers that are too large for later code. Does not recurse."""
    level: list[ast.AST] = [tree]
    for _ in range(DEEPEST):
        level = [child for node in level for child in ast.iter_child_nodes(node)]
        if any(
            isinstance(n, ast.Constant) and isinstance(n.value, int | float) and abs(n.value) > LARGEST for n in level
        ):
            raise InputError(f"a number in it is larger than {LARGEST:g}: {reprlib.repr(text)}")
    if level:
        raise InputError(f"nested more than {DEEPEST} deep: {reprlib.repr(text)}")


def _chain(node: ast.expr) -> Iterator[Comparison]:
    """Split a > b > c into a > b and b > c."""
    match node:
        case ast.Compare(left, operators, rights):
            sides = [left, *rights]
            for before, op, after in zip(sides, operators, rights, strict=False):
                if not isinstance(op, ast.Gt | ast.GtE | ast.Lt | ast.LtE):
                    raise InputError(f"only >, >=, < and <= compare: {ast.unparse(node)!r}")
                comparison = Comparison(before, op, after)
                _check(comparison)
                yield comparison
        case _:
            raise InputError(f"no comparison: {ast.unparse(node)!r}")


def _check(comparison: Comparison) -> None:
    """Raise InputError for anything that the notation does not have. Numbers are not checked."""
    if not comparison.references():
        raise InputError(f"compares no cell of a table: {str(comparison)!r}")
    try:
        comparison.margin({})
    except ZeroDivisionError:
        raise InputError(f"divides by 0: {str(comparison)!r}") from None


def _evaluate(node: ast.expr, numbers: Numbers) -> Value:
    match node:
        case ast.Constant(int() | float() as value) if not isinstance(value, bool):
            return float(value)
        case ast.UnaryOp(ast.USub(), operand):
            return -_evaluate(operand, numbers)
        case ast.BinOp(left, op, right) if type(op) in ARITHMETIC:
            return ARITHMETIC[type(op)](_evaluate(left, numbers), _evaluate(right, numbers))
        case ast.Subscript():
            return numbers.get(_reference(node), math.nan)
    raise InputError(f"neither a number nor a cell like table2['DearKD-Ti', 50]: {ast.unparse(node)!r}")


def _reference(node: ast.Subscript) -> Reference:
    parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
    names = [_name(part, ("others", "each")[i : i + 1]) for i, part in enumerate(parts)]
    match node.value:
        case ast.Name(table):
            return Reference(table, "", *names)
        case ast.Attribute(ast.Name(table), metric):
            return Reference(table, metric, *names)
    raise InputError(f"no table: {ast.unparse(node.value)!r}")


def _name(node: ast.expr, words: tuple[str, ...]) -> str | int | None:
    match node:
        case ast.Constant(str() | int() as value) if words:
            return value
        case ast.Name(word) if word in words:
            return None
    raise InputError(f"no row or column: {ast.unparse(node)!r}")


class _Put(ast.NodeTransformer):
    """Replace names by constants."""

    def __init__(self, chosen: Mapping[str, str | int]) -> None:
        self.chosen = chosen

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return ast.Constant(self.chosen[node.id]) if node.id in self.chosen else node


def _columns(comparison: Comparison, numbers: Numbers) -> list[Comparison]:
    if not comparison.uses("each"):
        return [comparison]
    tables = {cell.table for cell in comparison.references()}
    columns = dict.fromkeys(c.column for c in numbers if c.table in tables and c.column is not None)
    return [comparison.where(each=column) for column in columns]


def _others(comparison: Comparison, numbers: Numbers) -> list[str]:
    references = comparison.references()
    named = {cell.row for cell in references}
    asked = [cell for cell in references if cell.row is None]
    return [
        c.row
        for c in numbers
        for a in asked
        if c == a._replace(row=c.row) and c.row not in named and isinstance(c.row, str)
    ]
