"""The walls: a room imports only from the rooms that its line names; plan and report never see torch."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from rooms import imported

GROUND = {"errors", "schema", "ranges", "meanings", "fingerprint", "arithmetic", "arrays", "keys", "disk", "places"}
GROUND |= {"strict_yaml", "record", "stop", "progress"}
ROOMS = {
    "plan": GROUND,
    "model": GROUND | {"plan"},
    "data": GROUND | {"plan"},
    "train": GROUND | {"plan", "model", "data"},
    "jobs": GROUND | {"plan", "model", "data", "train"},
    "report": GROUND | {"plan"},
}
ROOMS["verbs"] = GROUND | set(ROOMS)
FACES = {"models": {"model"}, "task": {"train"}, "__init__": set()}
FACES |= dict.fromkeys(("__main__", "command_line"), GROUND | set(ROOMS) | {"command_line"})
"""Modules beside the rooms that are not ground."""
ALLOWED = {**dict.fromkeys(GROUND, GROUND), **ROOMS, **FACES}
MODULES = sorted(Path("dearkd").rglob("*.py"))
HEAVY = {"torch", "timm", "torchvision", "lpips"}


def room(path):
    parts = path.relative_to("dearkd").with_suffix("").parts
    return parts[0]


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_imports_point_upwards(path):
    here = room(path)
    assert here in ALLOWED, "a new module needs a room, or its place on the ground"
    outer = {name.split(".")[0] for name in imported(path)}
    inner = {name.split(".")[1] for name in imported(path) if name.startswith("dearkd.")} - {here}
    assert inner <= ALLOWED[here], f"{here} may not import {inner - ALLOWED[here]}"
    if here == "plan":
        assert outer - {"dearkd"} <= set(sys.stdlib_module_names) | {"yaml"}
    if here in ("plan", "report"):
        assert not outer & HEAVY


def test_no_circle_inside_a_room():
    waiting = {str(p.with_suffix("")).replace("/", "."): set() for p in MODULES}
    for path in MODULES:
        name = str(path.with_suffix("")).replace("/", ".")
        waiting[name] = {other for other in imported(path) if other in waiting and other != name}
    while waiting:
        free = {name for name, needs in waiting.items() if not needs & set(waiting)}
        assert free, f"a circle among {sorted(waiting)}"
        waiting = {name: needs for name, needs in waiting.items() if name not in free}


@pytest.mark.slow
@pytest.mark.parametrize(
    "module, heavy",
    [
        ("plan.plan", ("torch", "pandas", "numpy")),
        ("report.tables", ("torch",)),
        ("report.figures", ("torch",)),
        ("report.claims.verdicts", ("torch",)),
        ("report.page", ("torch", "pandas")),
        ("report.curves", ("torch",)),
        ("jobs.live", ("torch", "pandas")),
        ("__main__", ("torch", "pandas")),
    ],
)
def test_light_modules_start_without_heavy_ones(module, heavy):
    code = f"import sys, dearkd.{module}; print([m for m in {heavy!r} if m in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


@pytest.mark.parametrize("path", [path for path in MODULES if "jaxtyping" in imported(path)], ids=str)
def test_shapes_are_checked_as_the_tests_run(path, pytestconfig):
    name = ".".join(path.with_suffix("").parts)
    checked = pytestconfig.getoption("jaxtyping_packages").split(",")[:-1]
    assert any(f"{name}.".startswith(f"{package}.") for package in checked), (
        "name it in pyproject.toml, pytest's addopts"
    )


@pytest.mark.parametrize("path", sorted(Path("tests").rglob("*.py")), ids=str)
def test_no_test_imports_another(path):
    borrowed = re.findall(r"^\s*(?:from|import) (test_\w+)", path.read_text(), re.MULTILINE)
    assert not borrowed, "what tests share belongs into conftest.py"
