"""Text of others, letter by letter: what Markdown and LaTeX make of whatever a name may hold."""

import pytest
from hostile import HOSTILE, Read, typeset
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from dearkd.report import escaping

RENDER = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
"""With HTML let through: what is not escaped shows."""
TEXT = st.text() | st.text(st.sampled_from("<>&|\\`*_[]()!#+-=~$%^{}.:\n \t1a"), max_size=30)


def all_hostile(test):
    for text in HOSTILE:
        test = example(text)(test)
    return test


@all_hostile
@given(TEXT)
def test_a_paragraph_shows_the_text_and_nothing_else(text):
    found = Read(RENDER.render(escaping.paragraph(text)))
    assert found.text.strip() == escaping.line(text)
    assert found.tags == ["p"] * bool(escaping.line(text))


@all_hostile
@given(TEXT)
def test_a_cell_of_a_table_shows_the_text_and_nothing_else(text):
    found = Read(RENDER.render(f"| a | b |\n| --- | --- |\n| {escaping.markdown(text)} | c |\n"))
    assert found.tags == ["table", "thead", "tr", "th", "th", "tbody", "tr", "td", "td"]
    assert found.text.split() == ["a", "b", *escaping.line(text).split(), "c"]


@all_hostile
@given(TEXT)
def test_latex_prints_the_text_and_runs_nothing(text):
    assert typeset(escaping.latex(text)) == escaping.line(text)


@pytest.mark.parametrize(
    "text, expected", [("DeiT-Ti distilled", None), ("test_efficientnet.r160_in1k", None), ("T1/T3", None)]
)
def test_plain_names_stay_as_they_are(text, expected):
    assert escaping.markdown(text) == escaping.paragraph(text) == text
