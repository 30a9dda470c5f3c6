"""What the documentation says of the code is so: the drawing of the rooms, and every function that a page names."""

import ast
import re
from pathlib import Path

import pytest
import rooms

PAGES = [Path("README.md"), Path("CONTRIBUTING.md"), *sorted(Path("docs").glob("*.md"))]


def test_the_drawing_of_the_rooms_is_of_today():
    assert rooms.DRAWING.read_text() == rooms.draw(), "run `python docs/rooms.py`"


def test_an_import_that_follows_from_others_has_no_arrow():
    graph = {"top": {"left", "right", "low"}, "left": {"low"}, "right": {"low"}, "low": set()}
    assert rooms.arrows(graph) == [("left", "low"), ("right", "low"), ("top", "left"), ("top", "right")]
    assert rooms.reached("top", graph) == {"left", "right", "low"}


def test_every_room_is_on_the_page_of_the_architecture_and_in_contributing():
    folders = {p.name for p in Path("dearkd").iterdir() if (p / "__init__.py").is_file()}
    assert folders == rooms.rooms()[0].keys() - {"ground"}
    table = re.findall(r"^\| `(\w+)` \|", Path("CONTRIBUTING.md").read_text(), re.MULTILINE)
    assert set(table) == folders
    assert folders <= set(re.findall(r"\.\./dearkd/(\w+)/", Path("docs/architecture.md").read_text()))


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_function_that_a_page_links_to_exists(page):
    for path, dotted in re.findall(r"\]\((?:\.\./)?(dearkd/[\w/]+\.py)#dearkd\.([\w.]+)\)", page.read_text()):
        module, _, name = dotted.rpartition(".")
        while f"dearkd/{module.replace('.', '/')}.py" != path:  # a method of a class
            module, _, outer = module.rpartition(".")
            assert module, f"{page}: {path} has no {dotted}"
            name = f"{outer}.{name}"
        assert name in documented(Path(path)), f"{page}: {path} has no {name} with a docstring"


def test_the_papers_page_names_every_equation_and_what_its_links_lead_to():
    page = Path("docs/paper.md").read_text()
    links = re.findall(r"\[`([\w.]+)`\]\([^)]+#dearkd\.([\w.]+)\)", page)
    assert len(links) > 35
    for shown, target in links:
        assert target.endswith(f".{shown}")
    assert set(re.findall(r"^\| Eq\. (\d+)", page, re.MULTILINE)) == {str(n) for n in range(1, 14)}


def documented(path):
    """Functions, classes and methods of a module that have a docstring: what the reference shows."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        for inner, prefix in [
            (node, ""),
            *((n, f"{node.name}.") for n in getattr(node, "body", ()) if isinstance(node, ast.ClassDef)),
        ]:
            if isinstance(inner, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(inner):
                found.add(prefix + inner.name)
    return found


# ------------------------------------------------------------------------------------------------------ plain English

AMERICAN = re.compile(
    r"\b(colors?|center(s|ed)?|behavior|gray|\w+(al|im|min|mmar|ular|tim)iz(e|es|ed|er|ers|ing|ation))\b"
)
SLIPPERY = re.compile(
    r"\b(stands?(?!-)|lies|anew|(goes|go|going) on|comes up|takes up|at hand|rests? on|reckon\w*|wants|to the bit"
    r"|in (the|their|its) place of|the very|one's own)\b"
)
"""Literary words for *is*, *has*, *again*, *resumes*, *needs*, *instead of*, *your own*."""
WORKFLOW = [
    *sorted(path for kind in ("yaml", "smk", "rst") for path in Path("workflow").rglob(f"*.{kind}")),
    *sorted(Path("profiles").rglob("*.yaml")),
    *(Path(name) for name in ("Makefile", "Snakefile", "slurm/config.yaml")),
]
FRAGMENT = re.compile(r"(Of|As|Those|That|Than|Whose)\b(?! (if|in|of) )")


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_a_page_says_is_and_has_and_spells_as_the_british_do(page):
    text = re.sub(r"```.*?```|`[^`]*`|\]\([^)]*\)", "", page.read_text(), flags=re.DOTALL)
    for habit in (AMERICAN, SLIPPERY):
        found = [match[0] for match in habit.finditer(text)]
        assert not found, f"{page}: {found}"


@pytest.mark.parametrize("path", WORKFLOW, ids=str)
def test_a_comment_of_the_workflow_does_so_too(path):
    lines = path.read_text().splitlines()
    said = "\n".join(lines if path.suffix == ".rst" else (line.partition("#")[2] for line in lines))
    for habit in (AMERICAN, SLIPPERY):
        found = [match[0] for match in habit.finditer(said)]
        assert not found, f"{path}: {found}"


def test_no_docstring_has_a_literary_word():
    found = [
        f"{path}:{node.lineno}: {match[0]}"
        for path in rooms.MODULES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        for match in SLIPPERY.finditer(node.value.value)
    ]
    assert not found, "\n".join(found)


def test_no_docstring_begins_in_mid_sentence():
    found = [
        f"{path}:{node.lineno}: {node.value.value.splitlines()[0]}"
        for path in rooms.MODULES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and FRAGMENT.match(str(node.value.value))
    ]
    assert not found, "\n".join(found)
