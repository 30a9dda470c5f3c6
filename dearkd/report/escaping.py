"""Text that a person or a file supplied, made safe for where it goes."""

import re

LATEX: dict[str, str | int | None] = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "✓": r"$\checkmark$",
    **{c: f"\\{c}" for c in "{}$&#%_"},
}
_MARKS = re.compile(r"[\\`*\[\]<|&~$]|(?<![^\W_])_|_(?![^\W_])")
"""Characters that Markdown, on GitHub too, does not read as letters. An underscore within a word is a letter."""
_STARTS = re.compile(r"^(?:[-+#=>]|\d+(?=[.)]))")
"""Text that begins a list, a heading or a rule where it is first in a line."""


def line(text: object) -> str:
    """The text in one line, without control characters."""
    return " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())


def markdown(text: object) -> str:
    """The text escaped so that Markdown shows every letter as it is, in a cell of a table too."""
    return _MARKS.sub(lambda mark: f"\\{mark[0]}", line(text))


def paragraph(text: object) -> str:
    """The text escaped as by `markdown`, for text that is first in a line."""
    return _STARTS.sub(lambda mark: mark[0][:-1] + f"&#{ord(mark[0][-1])};", markdown(text))


def latex(text: object) -> str:
    """The text escaped so that LaTeX prints every letter as it is."""
    return line(text).translate(str.maketrans(LATEX))
