"""Text that a person or a file supplied, made safe for where it goes."""

import re

LATEX = {
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
"""What Markdown, on GitHub too, takes for more than a letter anywhere; an underscore within a word is none."""
_STARTS = re.compile(r"^(?:[-+#=>]|\d+(?=[.)]))")
"""What begins a list, a heading or a rule where it stands first in a line."""


def line(text: object) -> str:
    """The text in one line, without control characters."""
    return " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())


def markdown(text: object) -> str:
    """The text as Markdown shows it letter by letter, in a cell of a table too."""
    return _MARKS.sub(lambda mark: f"\\{mark[0]}", line(text))


def paragraph(text: object) -> str:
    """As `markdown`, where the text stands first in a line."""
    return _STARTS.sub(lambda mark: mark[0][:-1] + f"&#{ord(mark[0][-1])};", markdown(text))


def latex(text: object) -> str:
    """The text as LaTeX prints it letter by letter."""
    return line(text).translate(str.maketrans(LATEX))
