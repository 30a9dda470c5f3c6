"""The walls: a module imports only from above itself in this list; plan and read never see torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PLAN = ["schema", "disk", "strict_yaml", "spec", "scale", "scale_file", "recipes", "plan", "matrix", "record", "files"]
PLAN += ["commands", "verify", "cost"]
MODEL = ["keys", "attention_cpu", "attention", "aligner", "losses", "priors", "t2t", "models", "lite0", "hub"]
MODEL += ["teachers"]
RUN = [
    "images",
    "folder",
    "data",
    "augment",
    "subsets",
    "loader",
    "objective",
    "stop",
    "lease",
    "checkpoint",
    "progress",
    "evaluate",
    "gate",
    "optimise",
    "task",
    "board",
    "meters",
    "replay",
    "session",
    "train",
]
RUN += [
    "throughput",
    "archive",
    "presize",
    "artifacts",
    "labels",
    "preflight",
    "jobs",
    "synthesize",
    "trunks",
    "diversity",
    "datafree",
    "invert",
    "export",
    "distil",
]
RUN += ["export", "describe", "fetch", "warm", "devices", "live"]
READ = ["escaping", "results", "tables", "inference", "comparisons", "claims", "diagrams", "latent", "figures"]
READ += ["verdicts", "status", "savings", "report", "curves", "heads"]
ALLOWED = {
    **{m: [*PLAN[:i]] for i, m in enumerate(PLAN)},
    **{m: [*PLAN, *MODEL[:i]] for i, m in enumerate(MODEL)},
    **{m: [*PLAN, *MODEL, *RUN[:i]] for i, m in enumerate(RUN)},
    **{m: [*PLAN, *READ[:i]] for i, m in enumerate(READ)},
    "__main__": [*PLAN, *MODEL, *RUN, *READ],
    "__init__": [],
}


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (
                [f"{node.module}.{alias.name}" for alias in node.names] if node.module == "dearkd" else [node.module]
            )


@pytest.mark.parametrize("path", sorted(Path("dearkd").glob("*.py")), ids=lambda p: p.stem)
def test_imports_point_upwards(path):
    assert path.stem in ALLOWED, "a new module needs its place in a layer"
    inner = {name.split(".")[1] for name in imported(path) if name.startswith("dearkd.")}
    assert inner <= set(ALLOWED[path.stem]), f"{path.stem} may not import {inner - set(ALLOWED[path.stem])}"
    outer = {name.split(".")[0] for name in imported(path)}
    if path.stem in PLAN:
        assert outer - {"dearkd"} <= set(sys.stdlib_module_names) | {"yaml"}
    if path.stem in PLAN + READ:
        assert not outer & {"torch", "timm", "torchvision", "lpips"}


@pytest.mark.parametrize(
    "module, heavy",
    [
        ("plan", ("torch", "pandas", "numpy")),
        ("tables", ("torch",)),
        ("figures", ("torch",)),
        ("verdicts", ("torch",)),
        ("report", ("torch", "pandas")),
        ("curves", ("torch",)),
        ("__main__", ("torch", "pandas")),
    ],
)
def test_light_modules_start_without_heavy_ones(module, heavy):
    code = f"import sys, dearkd.{module}; print([m for m in {heavy!r} if m in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )
