"""Numbers as tables, pages and figures print them. A number that rounds to zero has no sign."""


def plain(value: float, places: int) -> str:
    """The value with `places` decimals and a sign where it is negative."""
    return f"{value:z.{places}f}"


def signed(value: float, places: int) -> str:
    """The value with `places` decimals and always a sign, but for a zero."""
    text = plain(value, places)
    return text if text == plain(0, places) or text[0] == "-" else f"+{text}"


in_csv = "{:z.4f}".format
"""A number as CSV files have it, with four decimals."""
