"""`show`: a run on one page of YAML, which has the very values of its stages and says where each comes from."""

import dataclasses
import functools
import re
from pathlib import Path

import pytest
import yaml

from dearkd import record, strict_yaml
from dearkd.__main__ import main
from dearkd.errors import InputError
from dearkd.fingerprint import deviations
from dearkd.plan import methods, origins
from dearkd.plan.experiments import load, load_scale
from dearkd.plan.scale_file import SCALES
from dearkd.plan.show import show
from dearkd.plan.stage import Data, Rpe, Stage, Synthesis, Teacher
from dearkd.schema import build, default, override

planned = functools.cache(load)
NAMES = sorted(path.stem for path in SCALES.glob("*.yaml"))
FIELDS = {field.name for field in dataclasses.fields(Stage)}


def stages(plan, page):
    """The stages that a page describes, by the rules of `dearkd.plan.show`."""
    shared = {key: value for key, value in page.items() if key in FIELDS}
    shared["training"] = {
        **methods.UNSWITCHED,
        **page["optimiser"],
        **page["schedule"],
        "augment": page["augmentation"],
    }
    if "rpe" in page:
        shared["model"]["args"]["rpe"] = deviations(build(Rpe, page["rpe"], "rpe"))
    for own in page["stages"]:
        own = dict(own)
        if own.get("initial"):
            own["initial"] = plan.run(own["initial"]).stages
        if own.get("source"):
            own["source"] = plan.sources[own["source"]]
        own["losses"] = list(own["losses"].items())
        taught = {key: shared.get(key) if own["teacher_name"] else None for key in ("teacher", "distillation")}
        dotted = {key: own.pop(key) for key in [*own] if "." in key}
        yield override(build(Stage, {**shared, **taught, **own}, "page"), dotted, "page")


def read(page, tmp_path):
    """A page as any strict reader of YAML has it; no line holds what a terminal or a reader trips over."""
    path = tmp_path / "page.yaml"
    path.write_text(page)
    assert page.isascii() and page.isprintable() is False and "\t" not in page
    assert all(line == line.rstrip() for line in page.splitlines())
    return strict_yaml.read(path)


@pytest.mark.parametrize("name", NAMES)
def test_every_page_has_the_values_of_what_it_shows(name, tmp_path):
    plan = planned(name)
    for run in plan.runs.values():
        page = read(show(plan, run.name), tmp_path)
        assert (page["run"], page["method"], page["seeds"]) == (run.name, run.method, list(run.seeds))
        assert tuple(stages(plan, page)) == run.stages
    for source in plan.sources.values():
        page = read(show(plan, source.name), tmp_path)
        assert build(Synthesis, page["recipe"], "page") == source.recipe
        assert build(Data, page["data"], "page") == source.data
        assert tuple(page["terms"].items()) == source.terms
    for key, teacher in plan.scale.teachers.items():
        assert build(Teacher, read(show(plan, key), tmp_path)["teacher"], "page") == teacher


def comments(page):
    """{last key of a line: its comment}; keys that are there twice keep the first."""
    found = {}
    for key, comment in re.findall(r"^ *-? ?([\w.]+):.*?  # (.*)$", page, re.MULTILINE):
        found.setdefault(key, comment)
    return found


def test_a_value_says_where_it_comes_from():
    digits, paper = comments(show(planned("digits"), "dearkd-Ti")), comments(show(planned("imagenet"), "dearkd-Ti"))
    assert {digits[key] for key in ("lr", "patch_size", "beta", "pairs", "last_epoch")} - {"not itself"} == {
        "scale digits"
    }
    assert {paper[key] for key in ("epochs", "batch", "lr", "num_heads", "n_mhca")} == {origins.SETUP}
    assert {paper[key] for key in ("betas", "mixup", "crop")} == {origins.DEIT}
    assert {paper[key] for key in ("beta", "drop", "form", "pairs")} == {origins.OURS} == {digits["form"]}
    assert paper["decode"] == "scale imagenet" and "(Eq. 4)" in paper["hidden"] and "(Eq. 5)" in paper["logit"]
    # a scale that extends another has some values of its own and some of the other's
    noisy = comments(show(planned("noisy-digits"), "dearkd-Ti"))
    assert noisy["label_noise"] == "scale noisy-digits" and noisy["lr"] == "scale digits"


def test_a_row_a_long_schedule_and_a_size_of_its_own_are_named(tmp_path):
    matrix = yaml.safe_load(Path("workflow/experiments.yaml").read_text())
    row = {"label": "own", "method": "dearkd", "student": "S", "rpe.drop": 0.25, "rpe.form": "centred", "fraction": 25}
    matrix["tables"]["table1"]["rows"].append(row)
    (tmp_path / "matrix.yaml").write_text(yaml.safe_dump(matrix))
    (tmp_path / "own.yaml").write_text("extends: digits\nname: own\nstudents: {S: {lr_factor: 0.5}}\nlong: [90, 80]\n")
    plan = load(str(tmp_path / "own.yaml"), tmp_path / "matrix.yaml")
    (name,) = (run.name for run in plan.runs_of("table1") if run.student == "S")
    whole = show(plan, name, str(tmp_path / "own.yaml"))
    page = {**comments(whole), **comments(whole.partition("\noptimiser:")[2])}
    assert page["drop"] == page["form"] == "its row of workflow/experiments.yaml" and page["alpha"] == origins.OURS
    assert page["fraction"].endswith("its row of workflow/experiments.yaml")
    assert page["lr"] == "scale own: training.lr x students.S.lr_factor" and page["weight_decay"] == "scale digits"
    schedule = show(plan, "dearkd-Ti-long~yes", str(tmp_path / "own.yaml")).partition("\nschedule:")[2]
    assert comments(schedule)["epochs"] == "scale own: long"


def test_every_default_has_one_origin_and_ours_stand_in_the_decisions():
    decisions = Path("docs/decisions.md").read_text()
    for spec, by in origins.DEFAULTS.items():
        named = " ".join(by.values()).split()
        assert len(set(named)) == len(named), spec
        fields = {f.name for f in dataclasses.fields(spec) if default(f) is not dataclasses.MISSING}
        assert set(named) <= fields, spec
        assert spec.__name__ == "Scale" or set(named) == fields, f"{spec}: {fields - set(named)} have no origin"
        for name in by.get(origins.OURS, "").split():
            assert re.search(rf"`(\w+(\.\*)?\.)*{name}\b", decisions), f"{spec.__name__}.{name} is not in decisions.md"


def test_the_cost_is_that_of_the_records(tmp_path):
    plan = planned("digits")
    page = read(show(plan, "dearkd-Ti"), tmp_path)["cost"]
    records = [[record.read(plan.paths.stage("dearkd-Ti", s, n)) for n in ("I", "II")] for s in plan.scale.seeds]
    assert page["seconds"] == [round(sum(r["seconds_all"] for r in one), 1) for one in records]
    batch = plan.run("dearkd-Ti").stages[0].training.batch
    assert (page["steps"], page["images"]) == ((n := records[0][-1]["steps"]), n * batch)
    assert page["images_per_epoch"] == records[0][0]["data"]["draws_per_epoch"]
    assert 250 < read(show(planned("imagenet"), "dearkd-Ti"), tmp_path)["cost"]["gpu_hours"] < 400


def test_the_cost_is_that_of_the_seeds_that_have_been_trained(project, tmp_path):
    """One of the three has."""
    plan = load(override(load_scale("smoke"), {"seeds": (0, 1, 2)}, "test"))
    stages = [record.read(plan.paths.stage("dearkd-Ti", 0, name)) for name in ("I", "II")]
    shown = show(plan, "dearkd-Ti")
    assert read(shown, tmp_path)["cost"]["seconds"] == [round(sum(s["seconds_all"] for s in stages), 1)]
    assert "# of seeds 0: records under results/smoke/runs/dearkd-Ti" in shown
    assert read(show(plan, "deit-Ti"), tmp_path)["cost"]["seconds"] is None


def test_a_name_that_is_not_there_is_refused_with_the_nearest(capsys):
    assert main(["show", "dearkd-Tu", "--scale", "digits"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    for name, near in (("dearkd-Tu", "dearkd-Ti"), ("df_dearkdd", "df_dearkd"), ("mian", "main")):
        with pytest.raises(InputError, match=f"scale digits: unknown run, teacher or set of images .*{near}'"):
            show(planned("digits"), name)
    assert main(["show", "df_dearkd", "--scale", "digits"]) == 0
    assert capsys.readouterr().out == show(planned("digits"), "df_dearkd")
