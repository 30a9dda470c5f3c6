"""The search for recipes: no reported seed, no test image, lines that belong to what the files ask for."""

import csv
import time
from pathlib import Path

import pytest
import yaml

from benchmarks import search
from dearkd.data import datasets
from dearkd.errors import InputError
from dearkd.fingerprint import fingerprint
from dearkd.plan import experiments

ROW = {"method": "deit", "student": "Ti"}


def written(folder, trial, **changes):
    values = {"scale": "digits", "seeds": [100], "rows": {"DeiT": ROW}, "trials": [{"rows": ["DeiT"], **trial}]}
    path = folder / "own.yaml"
    path.write_text(yaml.safe_dump({**values, **changes}))
    return path


@pytest.mark.parametrize(
    "trial, changes, words",
    [
        ({}, {"seeds": [2, 100]}, r"item 1: seeds \[2\] are reported by scale digits"),
        ({"seeds": [0]}, {}, r"seeds \[0\] are reported"),
        ({"rows": ["DeiTT"]}, {}, "unknown row 'DeiTT'; did you mean 'DeiT'"),
        ({"sets": {}}, {}, "unknown key 'sets'; did you mean 'set'"),
        ({"set": {"trainings": {}}}, {}, "unknown key 'trainings'; did you mean 'training'"),
        ({"set": {"training": {"lr": "fast"}}}, {}, "training: lr: expected a number"),
        ({}, {"rows": {"DeiT": {**ROW, "hidden": False}}}, "row DeiT: .*hidden"),
        ({}, {"rows": {"DeiT": {**ROW, "method": "vit"}}}, "row DeiT: .*vit"),
        ({}, {"scale": "digit"}, "did you mean 'digits'"),
        ({}, {"seed": [3]}, "unknown key 'seed'"),
    ],
)
def test_what_does_not_fit_is_one_sentence(tmp_path, trial, changes, words):
    with pytest.raises(InputError, match=words):
        search.read(written(tmp_path, {"name": "one", **trial}, **changes))


@pytest.mark.parametrize("path", sorted(Path("workflow/search").glob("*.yaml")), ids=lambda p: p.stem)
def test_committed_searches_use_no_seed_that_may_be_reported(path):
    assert min(task.seed for task in search.read(path)) >= 100


@pytest.mark.parametrize("path", sorted(Path("results/converged/search").glob("*.csv")), ids=lambda p: p.stem)
def test_committed_lines_are_of_what_the_file_asks_for(path):
    tasks = search.read(Path("workflow/search") / f"{path.stem}.yaml")
    asked = {(fingerprint(task.stages), str(task.seed)): task for task in tasks}
    with path.open(newline="") as file:
        lines = list(csv.DictReader(file))
    for line in lines:
        task = asked[line["fingerprint"], line["seed"]]
        recipe = task.stages[-1].training
        assert (line["row"], int(line["epochs"]), float(line["lr"])) == (task.row, recipe.epochs, recipe.lr)
    assert len({(line["fingerprint"], line["seed"]) for line in lines}) == len(lines)
    assert path.with_suffix(".md").read_text() == search.table(lines)


@pytest.mark.slow
def test_a_search_trains_goes_on_and_never_sees_a_test_image(tmp_path, monkeypatch):
    rows = {
        "DearKD, 10 %": {"method": "dearkd", "student": "Ti", "fraction": 10},
        "parity": {"method": "transfer", "student": "Ti", "target": "parity"},
    }
    short = {"epochs": 2, "stage1_epochs": 1, "warmup_epochs": 0, "batch": 250, "micro_batch": 250}
    settings = {
        "subset_draw": "seed",
        "training": short,
        "transfer": {"recipes": {"adamw": {"epochs": 1, "stage1_epochs": 1, "warmup_epochs": 0}}},
    }
    unswitched = {**settings, "training": {**short, "stage1_epochs": 2}}
    trials = [
        {"name": "short", "rows": list(rows), "set": settings},
        {"name": "no epoch after the switch", "rows": ["DearKD, 10 %"], "set": unswitched},
    ]
    tasks = search.read(written(tmp_path, {}, rows=rows, trials=trials))
    path, kept = tmp_path / "lines.csv", tmp_path / "checkpoints"
    assert search.search(tasks, 1, time.time() - 1, path, kept) == 3 and not path.exists()
    assert search.search(tasks, 1, time.time() + 300, path, kept) == 0
    with path.open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [(line["row"], line["fraction"], line["steps"]) for line in lines] == [
        ("DearKD, 10 %", "10", "6"),
        ("parity", "100", "23"),
        ("DearKD, 10 %", "10", "6"),
    ]
    assert search.search(tasks, 1, time.time() + 300, path, kept) == 0 and len(path.read_text().splitlines()) == 4
    assert search.table(lines).count("| short |") == 2

    # In this process, from the checkpoint: the numbers again, with every test image taken away.
    read = datasets.read
    monkeypatch.setattr(search.datasets, "read", lambda spec: {"train": read(spec)["train"]})
    again = search.run(tasks[0], time.time() + 300, kept)
    assert str(again["validation_top1"]) == lines[0]["validation_top1"]


@pytest.mark.parametrize("path", sorted(Path("workflow/search/images").glob("*.yaml")), ids=lambda p: p.stem)
def test_trials_with_synthetic_images_use_no_seed_that_may_be_reported(path):
    plan = experiments.load(path.as_posix())
    assert min(plan.scale.seeds) >= 100 and set(plan.sources) >= {"deepinversion", "adi", "df_dearkd"}


def test_a_line_is_added_to_a_file_that_is_older_than_a_column(tmp_path):
    path = tmp_path / "old.csv"
    path.write_text("trial,row\none,DeiT\n")
    search._append(path, {"trial": "two", "row": "DeiT", "attention_distance": "0.9"})
    assert path.read_text() == "trial,row\none,DeiT\ntwo,DeiT\n"
