"""A scale that defines some of the paper's sizes: their rows are trained, the others have the paper's numbers alone."""

import pytest

from dearkd.__main__ import main
from dearkd.errors import InputError
from dearkd.plan import experiments
from dearkd.report import tables
from dearkd.report.claims import judge
from dearkd.schema import override


def of(*sizes, **more):
    """The scale `digits` with these sizes alone."""
    scale = experiments.load_scale("digits")
    students = {size: scale.students[size] for size in sizes}
    return override(scale, {"name": "own", "students": students, "synthesis.student": sizes[0], **more}, "test")


@pytest.mark.parametrize("sizes", [("Ti",), ("S",), ("B",), ("Ti", "S"), ("S", "B")])
def test_rows_of_other_sizes_are_the_papers_alone(sizes):
    plan, whole = experiments.load(of(*sizes)), experiments.load("digits")
    assert {run.student for run in plan.runs.values()} & {"Ti", "S", "B"} == set(sizes)
    for name, table in plan.tables.items():
        for row, before in zip(table.rows, whole.tables[name].rows, strict=True):
            if row.student in ("Ti", "S", "B"):
                assert [bool(cell.run) for cell in row.cells] == [
                    row.student in sizes and bool(c.run) for c in before.cells
                ]
            assert [cell.paper for cell in row.cells] == [cell.paper for cell in before.cells]
        assert len(tables.arrange(table, tables.tidy(table, tables.values_of(plan, name))))
    assert set(judge.frame(plan)["verdict"]) == {"not measured"}
    assert "table3" in plan.tables and ("table2" in plan.tables) == ("Ti" in sizes) == ("figure2" in plan.figures)


def test_a_table_that_is_named_needs_one_of_its_students():
    with pytest.raises(InputError, match="`only` names table2, but `students` has none of its students; add one"):
        experiments.load(of("S", only=["table2"]))
    with pytest.raises(InputError, match="`only` names figure2, but `students` has none of its students; add one"):
        experiments.load(of("S", only=["figure2"]))


def test_plan_says_which_sizes_are_missing(tmp_path, capsys):
    path = tmp_path / "own.yaml"
    path.write_text("extends: custom\nname: own\nonly: [table1, table3]\n")
    assert main(["plan", "--scale", str(path)]) == 0
    assert "not trained: rows of B and S, which are missing under `students` of own" in capsys.readouterr().out
    assert main(["plan", "--scale", "digits"]) == 0 and "not trained" not in capsys.readouterr().out
