"""Errors of the user's input, and how their sentences name values, types and misspelt names."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

IN_WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


class InputError(Exception):
    """A mistake in the user's input. Its text is one sentence that names the file or key and the way out."""


class Stale(InputError):
    """A record that does not match today's plan, so its job must run again."""


def shown(value: Any) -> str:
    """Return a value as one short line, for a message."""
    try:
        text = repr(list(value) if isinstance(value, tuple) else value)
    except ValueError:  # Python refuses to print integers of more than 4,300 digits
        return "a number of thousands of digits"
    return text if len(text) <= 100 else f"{text[:97]}..."


def unknown(
    key: str, known: Sequence[str] | Mapping[str, Any], kind: str, where: str, meant: Sequence[str] = ()
) -> str:
    """The sentence that refuses a name: with the nearest known one, or with those that are known.

    kind: what the name is of ("key", "student"). where: the file and the dotted key. meant: what fits better than the
    nearest.
    """
    key = key if len(key) <= 60 else f"{key[:57]}..."
    near = list(meant) or difflib.get_close_matches(key, list(known), n=1, cutoff=0.4)
    shown = [repr(name) if "," in name else name for name in sorted(known)[:12]] + ["..."] * (len(known) > 12)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(shown) or 'none'}"
    return f"{where}: unknown {kind} {key!r}; {hint}"


def as_text(value: Any) -> str:
    """Return a name from YAML as text: itself, or how the value of another type is shown."""
    return value if isinstance(value, str) else shown(value)
