"""No printed number is a zero with a sign, and no other code prints numbers."""

import ast
import re
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dearkd.report import decimals

VALUES = st.floats(-1e6, 1e6) | st.floats(-1e-3, 1e-3)


@given(VALUES, st.integers(0, 5))
def test_a_number_that_rounds_to_zero_has_no_sign_and_any_other_keeps_its_own(value, places):
    plain, signed = decimals.plain(value, places), decimals.signed(value, places)
    assert float(plain) == float(signed) == round(value, places)
    if float(plain) == 0:
        assert plain == signed and plain[0] == "0"
    else:
        assert (plain[0] == "-") == (signed[0] == "-") == (value < 0) and signed[0] in "+-"


@pytest.mark.parametrize("value, plain, signed", [(-0.04, "0.0", "0.0"), (0.04, "0.0", "0.0"), (-0.0, "0.0", "0.0")])
def test_golden_zeros(value, plain, signed):
    assert (decimals.plain(value, 1), decimals.signed(value, 1)) == (plain, signed)


def test_a_csv_has_no_signed_zero_and_keeps_what_is_missing():
    frame = pd.DataFrame({"mean": [-0.00001, float("nan"), -1.5]})
    text = frame.to_csv(index=False, float_format=decimals.in_csv)
    assert text.split() == ["mean", "0.0000", '""', "-1.5000"]


def test_nothing_else_in_the_report_formats_a_decimal():
    """Neither an f-string nor a %-format nor a filter of the page. Times of `status` are never negative."""
    for path in sorted(Path("dearkd/report").rglob("*.py")):
        if path.name in ("decimals.py", "status.py"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FormattedValue) and node.format_spec is not None:
                spec = "".join(str(part.value) for part in node.format_spec.values if isinstance(part, ast.Constant))
                assert not spec.endswith("f"), f"{path}:{node.lineno}: print it with decimals.plain or decimals.signed"
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert not re.search(r"%[+]?\.\df|:[+]?\.\df", node.value), f"{path}:{node.lineno}: {node.value}"
    assert "format(" not in Path("dearkd/report/page.html").read_text()


def test_no_committed_table_page_or_number_is_a_signed_zero():
    pages = [
        *Path("results").glob("*/*.md"),
        *Path("results").glob("*/tables/*"),
        *Path("results").glob("*/claims.csv"),
    ]
    pages += [*Path("figures").glob("*/*.csv"), Path("README.md"), *Path("docs").glob("*.md")]
    assert len(pages) > 40
    for path in pages:
        found = re.findall(r"(?<![\w.])[-−+]0\.?0*(?![\d.]|\w)", path.read_text())
        assert not found, f"{path}: {found[:3]}"
