"""The notebooks: executed from a clone's own files, outputs committed and current, cells small."""

import json
import re

import nbformat
import numpy as np
import pytest
from conftest import PROJECT
from matplotlib import pyplot as plt
from nbclient import NotebookClient

from dearkd.report import mhca_heads

pytestmark = pytest.mark.slow

QUICK = PROJECT / "notebooks/quickstart.ipynb"
"""The one that trains, and needs no file of the repository."""
NOTEBOOKS = sorted(path for path in PROJECT.glob("notebooks/*.ipynb") if path != QUICK)


def texts(notebook):
    """What each cell of code prints or shows as text; figures are compared by eye."""
    return [
        [o.get("text") or o["data"].get("text/plain") for o in cell.outputs if "image/png" not in o.get("data", {})]
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]


def figures(notebook):
    return sum("image/png" in o.get("data", {}) for c in notebook.cells for o in c.get("outputs", []))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_executed_now_it_shows_what_is_committed(path):
    committed = nbformat.read(path, 4)
    notebook = nbformat.read(path, 4)
    for cell in notebook.cells:
        cell.update({"outputs": [], "execution_count": None} if cell.cell_type == "code" else {})
    NotebookClient(
        notebook, kernel_name="python3", timeout=300, resources={"metadata": {"path": "notebooks"}}
    ).execute()
    assert texts(notebook) == texts(committed), "run `make notebooks`"
    assert figures(notebook) == figures(committed) > 0


def test_the_quickstart_trains_and_tests_both_methods_wherever_it_is_opened(tmp_path, monkeypatch):
    """In three epochs instead of forty; what is committed has the same lines."""
    monkeypatch.setenv("PYTHONPATH", str(PROJECT))  # as the package that Colab installs
    committed, notebook = nbformat.read(QUICK, 4), nbformat.read(QUICK, 4)
    cell = notebook.cells[-1]
    cell.source = cell.source.replace("extends: digits", "extends: smoke")
    NotebookClient(
        notebook, kernel_name="python3", timeout=300, resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    now, then = ("".join(texts(of)[-1]) for of in (notebook, committed))
    assert re.sub(r"\d+\.\d %", "%", now).replace("950", "797") == re.sub(r"\d+\.\d %", "%", then)
    accuracies = [float(number) for number in re.findall(r"(\d+\.\d) % of 797", then)]
    assert len(accuracies) == 2 and accuracies[0] < accuracies[1] and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", [*NOTEBOOKS, QUICK], ids=lambda path: path.stem)
def test_it_is_committed_as_make_notebooks_leaves_it(path):
    notebook = json.loads(path.read_text())
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert all(cell["metadata"] == {} for cell in notebook["cells"]), "times or tags: run `make notebooks`"
    assert path.stat().st_size < 500_000
    for cell in code[1:]:
        assert len(cell["source"]) <= 10 and "def " not in "".join(cell["source"]), "what is longer belongs in dearkd/"


def test_there_are_four():
    assert len(NOTEBOOKS) == 4


def test_a_heads_width_is_that_of_its_gaussian():
    """exp(-alpha d^2) = exp(-d^2 / (2 s^2)): alpha 1/2 has s = 1, 2 has s = 1/2; 0 or less looks everywhere."""
    assert mhca_heads.widths(np.array([0.5, 2.0, 0.0, -1.0])).tolist() == [1.0, 0.5, np.inf, np.inf]


def test_centres_are_drawn_as_row_and_column_and_global_heads_counted():
    _, ax = plt.subplots()
    mhca_heads.centres(ax, np.array([0.5, 0.0]), np.array([[1.0, -2.0], [0.0, 0.0]]), reach=3.0)
    assert ax.lines[1].get_xydata().tolist() == [[-2.0, 1.0]] and len(ax.patches) == 1
    assert ax.get_title() == "1 local, 1 global" and ax.yaxis_inverted()
    plt.close("all")


def test_a_query_is_framed_and_its_row_of_the_attention_shown():
    """2 x 2 patches; the query (1, 0) is patch 2, which attends to patch 1 alone, at row 0, column 1."""
    _, axes = plt.subplots(1, 2)
    attention = np.zeros((1, 4, 4))
    attention[0, 2, 1] = 1.0
    mhca_heads.attention_of_a_query(axes, np.zeros((8, 8, 1), dtype=np.uint8), attention, (1, 0))
    assert axes[1].images[0].get_array().tolist() == [[0.0, 1.0], [0.0, 0.0]]
    assert axes[0].patches[0].get_xy() == (-0.5, 3.5) and axes[1].patches[0].get_xy() == (-0.5, 0.5)
    plt.close("all")
