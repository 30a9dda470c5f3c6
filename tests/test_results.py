"""Records to tables: what is stale is refused, what is missing is blank, what is ours stands beside the paper's."""

import csv
import json
from pathlib import Path

import pandas as pd
import pytest

from dearkd import record, results, tables
from dearkd.matrix import load
from dearkd.schema import InputError


def edit(path, change):
    values = json.loads(path.read_text())
    change(values)
    record.write(path, values)


def dearkd(whole):
    return [whole.runs["dearkd-Ti"]]


def test_a_measured_run_is_read(project):
    whole = load("smoke")
    frame = results.load(whole, dearkd(whole))
    assert frame[["run", "seed"]].values.tolist() == [["dearkd-Ti", 0]]
    with (project / "results/smoke/runs/dearkd-Ti/seed0/predictions.csv").open() as file:
        lines = list(csv.DictReader(file))
    recomputed = 100 * sum(line["label"] == line["top1"] for line in lines) / len(lines)
    assert len(lines) == 797 and frame["top1"].item() == pytest.approx(recomputed, abs=1e-4), (
        "anyone can recompute top-1"
    )


@pytest.mark.parametrize(
    "file, change, message",
    [
        (
            "I.json",
            lambda v: v["specs"][0]["training"].update(lr=0.1),
            r"I.json: stale record \(training.lr: 0.1 recorded, 0.006 planned\)",
        ),
        ("II.json", lambda v: v["specs"][1].update(losses=[["ce", 2.0]]), r"II.json: stale record \(losses"),
        ("I.json", lambda v: v["specs"][0].update(colour="red"), r"unknown key 'colour'"),
        ("I.json", lambda v: v.update(weights_sha256="0"), r"II.json: stale record \(it went on from other weights"),
        (
            "metrics.json",
            lambda v: v.update(weights_sha256="0"),
            r"metrics.json: stale record \(it measured other weights",
        ),
        (
            "I.json",
            lambda v: v["teacher"].update(weights_sha256="0"),
            r"I.json: stale record \(its teacher main has other weights",
        ),
    ],
)
def test_what_does_not_fit_is_refused_with_the_way_out(project, file, change, message):
    edit(project / "results/smoke/runs/dearkd-Ti/seed0" / file, change)
    whole = load("smoke")
    with pytest.raises(InputError, match=message) as error:
        results.load(whole, dearkd(whole))
    assert "--forcerun results/smoke/runs/dearkd-Ti/seed0" in str(error.value)


def test_a_changed_teacher_is_refused(project):
    edit(project / "results/smoke/teachers/main.json", lambda v: v["spec"].update(top1=99.0))
    whole = load("smoke")
    with pytest.raises(InputError, match=r"teachers/main.json: stale record \(top1: 99.0 recorded, 50.0 planned"):
        results.load(whole, dearkd(whole))


def test_a_field_that_came_later_is_at_its_default(project):
    for name in ("I", "II"):

        def forget(values):
            for spec in values["specs"]:
                del spec["training"]["stage2_peak"], spec["freeze_rpe"]

        edit(project / f"results/smoke/runs/dearkd-Ti/seed0/{name}.json", forget)
    whole = load("smoke")
    assert len(results.load(whole, dearkd(whole))) == 1


def test_a_broken_record_is_named(project):
    path = project / "results/smoke/runs/dearkd-Ti/seed0/I.json"
    path.write_text(path.read_text()[:100])
    whole = load("smoke")
    with pytest.raises(InputError, match=r"I.json: not a whole record"):
        results.load(whole, dearkd(whole))


def test_a_record_names_the_gpu_and_the_command_of_its_process(monkeypatch):
    """Every job's record does, whatever the job; a benchmark's command is not taken for the package's."""
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a card")
    monkeypatch.setattr("sys.argv", ["/somewhere/dearkd/__main__.py", "train", "x"])
    found = record.provenance()
    assert (found["hardware"]["device"], found["command"]) == ("a card", "python -m dearkd train x")
    monkeypatch.setattr("sys.argv", ["/somewhere/benchmarks/study.py", "fashion"])
    assert record.provenance()["command"] == "python benchmarks/study.py fashion"


def test_records_hold_their_provenance(project):
    values = record.read(project / "results/smoke/runs/dearkd-Ti/seed0/II.json")
    assert [s["name"] for s in values["specs"]] == ["I", "II"] and values["data"]["images"] == 950
    assert {
        "git",
        "versions",
        "hardware",
        "command",
        "written",
        "seconds",
        "attempts",
        "weights_sha256",
    } <= values.keys()
    assert values["versions"]["torch"] and values["steps"] == 42
    assert [e["epoch"] for e in values["curve"]] == [3] and len(values["curve"][0]["attention_distance"]) == 3
    first = record.read(project / "results/smoke/runs/dearkd-Ti/seed0/I.json")
    assert values["previous_sha256"] == first["weights_sha256"] and first["teacher"]["teacher"] == "main"
    assert {"loss", "ce", "logit", "hidden", "lr"} <= first["curve"][0].keys()


# ------------------------------------------------------------------------------------------------ tables


def numbers():
    """Three methods of Table 2 at four fractions and two seeds, values made up for arithmetic."""
    whole = load("digits")
    lines = []
    for i, row in enumerate(whole.tables["table2"].rows):
        for j, cell in enumerate(row.cells):
            lines += [
                {"run": cell.run, "seed": seed, "dirty": False, "top1": 50 + 10 * i + j + seed} for seed in (0, 1)
            ]
    return whole, pd.DataFrame(lines)


def test_tidy_has_a_line_per_cell_and_a_gap_paired_by_seed():
    whole, values = numbers()
    frame = tables.tidy(whole.tables["table2"], values)
    assert list(frame.columns) == [
        "row",
        "method",
        "student",
        "fraction",
        "metric",
        "mean",
        "sd",
        "n",
        "paper",
        "source",
    ]
    assert (frame["metric"] == "top1").sum() == 12 and (frame["metric"] == "gap").sum() == 8
    ten = frame[(frame["row"] == "DeiT-Ti") & (frame["fraction"] == 10)].set_index("metric")
    assert ten.loc["top1", ["mean", "n", "paper"]].tolist() == [50.5, 2, 40.5]
    assert ten.loc["top1", "sd"] == pytest.approx(0.5**0.5)
    assert ten.loc["gap", ["mean", "sd", "paper"]].tolist() == [20.0, 0.0, 13.8]


def test_the_papers_gaps_are_recomputed():
    whole, values = numbers()
    frame = tables.tidy(whole.tables["table2"], values)
    with Path("paper/table2.csv").open() as file:
        expected = {
            (int(r["train_pct"]), r["method"]): float(r["gap_to_dearkd"])
            for r in csv.DictReader(file)
            if r["gap_to_dearkd"]
        }
    gaps = frame[frame["metric"] == "gap"]
    names = {"DeiT-Ti": "DeiT-Ti", "DeiT-Ti distilled": "DeiT-Ti-distilled"}
    assert {(g.fraction, names[g.row]): g.paper for g in gaps.itertuples()} == pytest.approx(expected)


def test_what_was_not_measured_is_blank_and_quoted():
    whole, values = numbers()
    frame = tables.tidy(whole.tables["table2"], values[values["run"] != "deit-Ti"])
    missing = frame[(frame["row"] == "DeiT-Ti") & (frame["fraction"] == 100) & (frame["metric"] == "top1")].iloc[0]
    assert missing["source"] == "quoted" and pd.isna(missing["mean"]) and missing["paper"] == 72.2
    shown = tables.arrange(whole.tables["table2"], frame)
    assert shown.iloc[0]["100 % ours"] == "" and shown.iloc[0]["100 % paper"] == "72.2"
    assert shown.iloc[0]["10 % ours"] == "50.5 ± 0.7 (2)"


def test_printed_forms():
    whole, values = numbers()
    table = whole.tables["table2"]
    shown = tables.arrange(table, tables.tidy(table, values))
    markdown = tables.to_markdown(whole, table, shown, dirty=True)
    assert (
        "| DearKD-Ti | 70.5 ± 0.7 (2) | 54.3 |" in markdown
        and "differ from the commit" in markdown
        and "`digits`" in markdown
    )
    latex = tables.to_latex(table, shown)
    assert (
        r"\toprule" in latex
        and r"70.5 $\pm$ 0.7 (2)" in latex
        and "%" not in latex.split("\n", 1)[1].replace(r"\%", "")
    )
    ablation = load("digits").tables["table1"]
    text = tables.to_markdown(whole, ablation, tables.arrange(ablation, tables.tidy(ablation, values)), dirty=False)
    assert "| DearKD-Ti | ✓ | ✓ | ✓ | ✓ |" in text and "| baseline |  |  |  |  |" in text and "differ" not in text


def test_writing_a_table_of_what_there_is(project):
    whole = load("smoke")
    tables.write(whole, "table1")
    folder = project / "results/smoke/tables"
    frame = pd.read_csv(folder / "table1.csv")
    assert frame["source"].tolist() == ["quoted"] * 6 + ["measured"] and (folder / "table1.tex").is_file()
    assert "74.8" in (folder / "table1.md").read_text()


def test_missing_record_file():
    with pytest.raises(InputError, match=r"nothing\.json: record is missing"):
        record.read(Path("nothing.json"))
