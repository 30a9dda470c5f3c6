"""The table of rivals: which scale has it, and every row of it really trained."""

import dataclasses
import math
import os
from pathlib import Path

import pandas as pd
import pytest
from conftest import copy_project

from dearkd import record, strict_yaml
from dearkd.errors import InputError
from dearkd.jobs.evaluate import evaluate_run
from dearkd.jobs.subset import list_subsets
from dearkd.jobs.teacher import admit_teacher
from dearkd.jobs.train import train_stage
from dearkd.plan import experiments, methods
from dearkd.plan.experiments import Matrix, load_scale
from dearkd.report import tables
from dearkd.schema import build, override

pytestmark = pytest.mark.slow


def test_the_table_is_only_of_scales_that_name_its_rows(tmp_path):
    assert "rivals" not in experiments.load("digits").tables
    path = tmp_path / "own.yaml"
    path.write_text("extends: digits\nname: own\nonly: [rivals]\n")
    with pytest.raises(InputError, match="scale own: `only` names rivals, whose rows are all extra; list some under"):
        experiments.load(str(path))
    path.write_text("extends: digits\nname: own\nextra: {rivals: [VkD, DearKD-Ti]}\n")
    own, base = experiments.load(str(path)), experiments.load("digits")
    assert [row.label for row in own.tables["rivals"].rows] == ["VkD", "DearKD-Ti"]
    assert set(own.runs) - set(base.runs) == {"vkd-Ti", "vkd-Ti-fraction~10"}


def test_soft_labels_are_not_computed_ahead():
    """Labels computed ahead are decisions; a row that learns the teacher's distribution asks it in each step."""
    plan = experiments.load("digits")
    scale = dataclasses.replace(plan.scale, label_epochs=1)
    plan = dataclasses.replace(plan, scale=scale)
    for kind, cached in (("hard", True), ("soft", False)):
        changed = override(scale, {"distillation.kind": kind}, "test")
        for method in (methods.dearkd, methods.deit_distilled):
            assert (plan.labels_of(method(changed, "Ti")[0]) is not None) is cached
    assert plan.labels_of(methods.vkd(scale, "Ti")[0]) is None


def test_one_stage_has_one_aligner():
    (stage,) = methods.vkd(load_scale("digits"), "Ti")
    with pytest.raises(InputError, match="orthogonal and hidden each need an aligner"):
        dataclasses.replace(stage, losses=(*stage.losses, ("hidden", 1.0)))


KNOWN = ["DeiT-Ti", "MHCA, no teacher", "DeiT-Ti distilled"]
"""Rows of Tables 1 and 2, which other tests train."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Every row of the table, trained for a few steps at the smoke scale by the workflow's own jobs."""
    folder = copy_project(tmp_path_factory.mktemp("rivals"))
    entry = build(Matrix, strict_yaml.read(experiments.MATRIX), "matrix").tables["rivals"]
    labels = [row["label"] for row in entry.rows if row["label"] not in KNOWN]
    (folder / "rivals.yaml").write_text(
        "extends: smoke\nname: rivals\nsummary: a few steps\nonly: [rivals]\n"
        f"extra: {{rivals: {labels}}}\ntraining: {{epochs: 2, stage1_epochs: 1, subset_schedule: epochs}}\n"
    )
    before = Path.cwd()
    os.chdir(folder)
    try:
        plan = experiments.load("rivals.yaml")
        list_subsets(plan, "main")
        train_stage(plan, plan.runs["teacher-main"], 0, "I")
        admit_teacher(plan, "main")
        for run in plan.runs_of("rivals"):
            for stage in run.stages:
                train_stage(plan, run, 0, stage.name)
            evaluate_run(plan, run, 0)
        tables.write(plan, "rivals")
    finally:
        os.chdir(before)
    return plan, folder


def test_every_row_trains_and_the_table_shows_it(trained):
    plan, folder = trained
    shown = pd.read_csv(folder / plan.paths.results / "tables/rivals.csv")
    scores = shown[shown["metric"] == "top1"]
    assert scores["row"].unique().tolist() == [row.label for row in plan.tables["rivals"].rows]
    assert (scores["source"] == "measured").all() and len(scores) == sum(
        len(row.cells) for row in plan.tables["rivals"].rows
    )
    text = (folder / plan.paths.results / "tables/rivals.md").read_text()
    assert "| VkD | " in text and "*paper*" not in text
    for run in plan.runs_of("rivals"):
        for stage in run.stages:
            curve = record.read(folder / plan.paths.stage(run.name, 0, stage.name))["curve"]
            assert set(dict(stage.losses)) <= curve[-1].keys() and all(
                math.isfinite(curve[-1][name]) and curve[-1][name] > 0 for name, _ in stage.losses
            )


def test_a_rivals_loss_falls(trained):
    plan, folder = trained
    for name in ("deit3-Ti", "vkd-Ti", "locality_guidance-Ti-distillation.hidden_norm~none"):
        first, last = record.read(folder / plan.paths.stage(name, 0, "I"))["curve"]
        assert last["loss"] < first["loss"], name
