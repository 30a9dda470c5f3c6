"""Names as nobody should give them, and readers that see what became of them."""

import re
from html.parser import HTMLParser

from dearkd.report import escaping

HOSTILE = [
    "<script>alert(1)</script>",
    "</title><img src=x onerror=alert(1)>",
    "[click](javascript:alert(1)) ![i](http://x/y.png) <http://x>",
    "a | b || c \\| d \\",
    "`code` ``co`de`` *em* **strong** _em_ __strong__ ~~gone~~ a_b_c",
    "&lt; &amp;lt; &#60; &",
    "# heading",
    "1. one",
    "12) twelve",
    "- item",
    "> quote",
    "+ plus",
    "===",
    "---",
    "two\nlines\r\n\n# and more\x00\x1b[31m\u2028",
    r"\input{/etc/passwd} \\ $x$ {b} #1 50% a^b ~ & \begin{document}",
    "^^M %",
]


class Read(HTMLParser):
    """The tags and the text of some HTML."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)

    def handle_data(self, data):
        self.text += data


def typeset(text):
    """What LaTeX prints of text in which every command is one that `escaping.LATEX` makes."""
    printed = {command: letter for letter, command in escaping.LATEX.items()}
    parts = re.findall(r"\\text\w+\{\}|\$\\\w+\$|\\[{}$&#%_]|[^\\{}$&#%_~^<>|]", text)
    assert "".join(parts) == text, "something else than letters and known commands"
    return "".join(printed.get(part, part) for part in parts)
