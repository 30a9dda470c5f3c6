"""What a minute of synthesis gives, from the committed records of `digits`."""

import pytest
import yaml

from dearkd import record
from dearkd.plan import experiments
from dearkd.report import records, tables


def seconds(path):
    return record.read(path)["seconds"]


def test_adis_images_cost_its_student_and_that_students_images_too():
    plan = experiments.load("digits")
    learned, competed = (plan.runs[f"dearkd-Ti-images~{name}"] for name in ("deepinversion", "adi"))
    frame = records.synthesis(plan, [learned, competed, plan.runs["dearkd-Ti"]]).set_index(["run", "seed"])
    assert len(frame) == 6, "a run on real images has no such line"
    for seed in plan.scale.seeds:
        first, own = (seconds(plan.paths.shard(name, seed, 0)) for name in ("deepinversion", "adi"))
        student = sum(seconds(plan.paths.stage(learned.name, seed, stage)) for stage in ("I", "II"))
        for run, whole in ((learned, first), (competed, first + student + own)):
            line, top1 = frame.loc[(run.name, seed)], record.read(plan.paths.metrics(run.name, seed))["metrics"]["top1"]
            assert line["image_seconds"] == pytest.approx(whole / 370) and line["images"] == 370
            assert line["per_minute"] == pytest.approx(top1 / (whole / 60))


def test_the_table_shows_them_and_names_what_was_not_run(tmp_path):
    plan = experiments.load("digits")
    matrix = yaml.safe_load(experiments.MATRIX.read_text())
    for row in matrix["tables"]["synthesis"]["rows"]:
        row["extra"] = False
    (tmp_path / "matrix.yaml").write_text(yaml.safe_dump({"tables": {"synthesis": matrix["tables"]["synthesis"]}}))
    plan = experiments.load("digits", tmp_path / "matrix.yaml")
    table, values = plan.tables["synthesis"], tables.values_of(plan, "synthesis")
    shown = tables.arrange(table, tables.tidy(table, values)).set_index("")
    heads = ["ours", "images", "seconds per image", "points per minute"]
    assert [*shown.columns] == heads and "fast" not in shown.index
    assert 'Missing: 3 of 3 results of "fast". `snakemake' in tables.to_markdown(plan, table, shown, False)
    assert shown.loc["DeepInversion", "images"] == "370 ± 0 (3)"
    assert shown.loc["DeepInversion", "seconds per image"].startswith("0.097 ± ")
    assert "extra" not in shown and "paper" not in shown
