"""A run's curves: in TensorBoard while it trains, as a figure afterwards, both with the record's numbers."""

import importlib.util
import json
import shutil
import sqlite3
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from dearkd import record
from dearkd.__main__ import main
from dearkd.plan import experiments
from dearkd.report import curves, figures, records

RECORD = "results/smoke/runs/dearkd-Ti/seed0/{}.json"


def train(stage, *arguments):
    assert main(["train", "dearkd-Ti", "--scale", "smoke", "--seed", "0", "--stage", stage, *arguments]) == 0


def expected():
    """{tag: {epoch: value}} of both stages' records."""
    found = {}
    for stage in ("I", "II"):
        for entry in record.read(Path(RECORD.format(stage)))["curve"]:
            for name, value in entry.items():
                if isinstance(value, list):
                    for layer, v in enumerate(value, 1):
                        found.setdefault(f"{name}/layer {layer}", {})[entry["epoch"]] = v
                elif name != "epoch":
                    found.setdefault(name, {})[entry["epoch"]] = value
    return found


def test_tensorboard_shows_every_epoch_once_also_of_a_run_that_was_trained_again(project):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    weights = {stage: record.read(Path(RECORD.format(stage)))["weights_sha256"] for stage in ("I", "II")}
    for _ in range(2):
        shutil.rmtree("checkpoints/smoke/dearkd-Ti")
        shutil.rmtree("results/smoke/runs/dearkd-Ti")
        train("I", "--tensorboard", "board")
    train("II", "--track", "tensorboard=board")
    assert {stage: record.read(Path(RECORD.format(stage)))["weights_sha256"] for stage in ("I", "II")} == weights
    events = EventAccumulator("board/dearkd-Ti/seed0").Reload()
    shown = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert shown.keys() == expected().keys() and "hidden" in shown and "attention_distance/layer 3" in shown
    for tag, values in expected().items():
        assert [step for step, _ in shown[tag]] == list(values)
        assert [value for _, value in shown[tag]] == pytest.approx(list(values.values()))


@pytest.mark.parametrize(
    "wanted, said",
    [("wandb", "install it with `pip install wandb`"), ("trackio=mine", "pip install trackio"), ("bord", "bord")],
)
def test_a_tracker_that_is_not_there_is_one_sentence(project, capsys, wanted, said):
    if importlib.util.find_spec(wanted.split("=")[0]):
        pytest.skip("it is installed here")
    Path("wandb").mkdir()  # as wandb leaves it: a folder that Python takes for a package without anything in it
    shutil.rmtree("checkpoints/smoke/dearkd-Ti")
    arguments = ["train", "dearkd-Ti", "--scale", "smoke", "--seed", "0", "--stage", "I", "--track", wanted]
    assert main(arguments) == 2
    assert said in capsys.readouterr().err


def test_trackio_gets_every_epoch(project, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(project / "tracked"))  # read when it is imported
    pytest.importorskip("trackio")
    shutil.rmtree("checkpoints/smoke/dearkd-Ti")
    train("I", "--track", "trackio")
    train("II", "--track", "trackio")
    (path,) = (project / "tracked").glob("*.db")
    rows = sqlite3.connect(path).execute("select run_name, step, metrics from metrics order by step").fetchall()
    assert {name for name, _, _ in rows} == {"dearkd-Ti-seed0"}
    shown = {step: json.loads(metrics) for _, step, metrics in rows}
    for tag, values in expected().items():
        assert {step: entry[tag] for step, entry in shown.items() if tag in entry} == pytest.approx(values)


def test_the_figure_has_the_records_numbers(project, capsys):
    assert main(["curves", "dearkd-Ti", "--scale", "smoke"]) == 0
    assert capsys.readouterr().out == "Curves: figures/smoke/curves/dearkd-Ti.png\n"
    written = pd.read_csv("figures/smoke/curves/dearkd-Ti.csv").set_index(["name", "layer", "epoch"])["value"]
    for stage in ("I", "II"):
        for entry in record.read(Path(RECORD.format(stage)))["curve"]:
            assert written["lr", 0, entry["epoch"]] == pytest.approx(entry["lr"], rel=1e-5)
            assert written["validation_top1", 0, entry["epoch"]] == pytest.approx(entry["validation_top1"])


def test_lines_are_means_over_seeds_and_the_switch_is_marked():
    """Two seeds with 1, 3 and 2, 6: a line through 1.5, 4.5, a band from 1, 3 to 2, 6."""
    frame = pd.DataFrame({"epoch": [1, 2, 1, 2], "seed": [0, 0, 1, 1], "value": [1.0, 3.0, 2.0, 6.0]})
    _, ax = plt.subplots()
    curves.over_seeds(ax, frame, "ce")
    assert ax.lines[0].get_ydata().tolist() == [1.5, 4.5]
    assert {1.0, 2.0, 3.0, 6.0} <= set(ax.collections[0].get_paths()[0].vertices[:, 1])
    digits = experiments.load("digits")
    run = digits.runs["dearkd-Ti"]
    with plt.style.context(figures.STYLE):
        drawn = curves.draw(records.curves(digits, [run]), run)
    losses, top1, rate, distance = drawn.axes
    assert {t.get_text() for t in losses.get_legend().get_texts()} == {"sum, weighted", "ce", "logit", "hidden"}
    for ax in (losses, top1, rate, distance):
        assert [run.stages[0].last_epoch] * 2 in [list(line.get_xdata()) for line in ax.lines]
    plt.close("all")


def test_a_run_that_is_not_there_or_not_trained_is_named(project, capsys):
    assert main(["curves", "dearkd-Tj", "--scale", "smoke"]) == 2
    assert "dearkd-Ti" in capsys.readouterr().err
    assert main(["curves", "deit-Ti", "--scale", "smoke"]) == 2
    said = capsys.readouterr().err
    assert "deit-Ti is not trained at scale smoke" in said and "results/smoke/runs/deit-Ti/seed0" in said
