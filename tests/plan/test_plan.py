"""The matrix and the scales: rows become runs, and every mistake is one sentence that names file and key."""

import csv
import dataclasses
import json
import re
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from dearkd.errors import InputError
from dearkd.fingerprint import deviations
from dearkd.plan.experiments import MATRIX, load, load_scale, run_name
from dearkd.plan.methods import METHODS
from dearkd.plan.stage import Stage
from dearkd.schema import build, override, to_json


@pytest.fixture
def matrix(tmp_path):
    """Write a matrix from the project's own after an edit."""

    def edited(edit):
        values = yaml.safe_load(MATRIX.read_text())
        edit(values)
        path = tmp_path / "experiments.yaml"
        path.write_text(yaml.safe_dump(values))
        return path

    return edited


@pytest.fixture
def scale(tmp_path):
    def edited(text, edit=lambda v: None):
        values = yaml.safe_load(text) if isinstance(text, str) else text
        edit(values)
        path = tmp_path / "own.yaml"
        path.write_text(yaml.safe_dump(values))
        return str(path)

    return edited


def test_equal_rows_are_one_run():
    whole = load("digits")
    last_row = whole.tables["table1"].rows[-1].cells[0].run
    full_data = whole.tables["table2"].rows[-1].cells[-1].run
    assert last_row == full_data == "dearkd-Ti" == whole.figures["figure4"].rows[1].cells[0].run
    cells = [cell for name in ("table1", "table2") for row in whole.tables[name].rows for cell in row.cells]
    assert len(whole.runs_of("table1", "table2")) == len(cells) - 1, "one run is in both"


def test_a_row_that_spells_out_a_default_is_the_same_run(matrix):
    path = matrix(
        lambda v: v["tables"]["table2"]["rows"].append(
            {
                "label": "again",
                "method": "dearkd",
                "student": "Ti",
                "mhca": True,
                "rpe.drop": load_scale("digits").rpe.drop,
            }
        )
    )
    assert set(load("digits", path).runs) == set(load("digits").runs)


def test_adding_a_row_is_one_line_and_adds_only_its_runs(matrix):
    path = matrix(
        lambda v: v["tables"]["table2"]["rows"].append(
            {"label": "more dropout", "method": "dearkd", "student": "Ti", "rpe.drop": 0.3}
        )
    )
    new = set(load("digits", path).runs) - set(load("digits").runs)
    assert new == {"dearkd-Ti-rpe.drop~0.3"} | {f"dearkd-Ti-fraction~{f}-rpe.drop~0.3" for f in (10, 25, 50)}


def test_imagenet_plans_the_papers_stages():
    whole = load("imagenet")
    stages = whole.runs["dearkd-Ti"].stages
    assert [(s.name, s.first_epoch, s.last_epoch) for s in stages] == [("I", 0, 250), ("II", 250, 300)]
    assert stages[0].losses == (("ce", 0.5), ("logit", 0.5), ("hidden", 1.0)) and stages[1].losses == (("ce", 1.0),)
    assert stages[0].teacher.model == "regnety_160.deit_in1k" and stages[1].teacher is None
    assert stages[0].training.peak_lr == pytest.approx(2e-3) and dict(stages[0].model.args)["num_heads"] == 12
    token = whole.runs["deit_distilled-Ti"].stages[0]
    assert token.losses == (("ce", 0.5), ("token", 0.5)) and token.model.name == "deit_tiny_distilled_patch16_224"
    baseline = whole.tables["table1"].rows[0].cells[0].run
    args = dict(whole.runs[baseline].stages[0].model.args)
    assert (args["num_heads"], args["n_mhca"]) == (12, 0) and whole.runs[baseline].stages[0].losses == (("ce", 1.0),)
    assert "teacher-main" not in whole.runs and "teacher-main" in load("digits").runs


@pytest.mark.parametrize("name", ["digits", "smoke", "fashion", "cifar", "cifar100", "imagenet"])
def test_every_scale_loads_and_its_stages_survive_json(name):
    for run in load(name).runs.values():
        for stage in run.stages:
            assert build(Stage, to_json(stage), "record") == stage


def test_the_papers_numbers_come_from_its_csv():
    whole = load("digits")
    with Path("paper/table1.csv").open() as file:
        paper = {r["row"]: float(r["top1"]) for r in csv.DictReader(file)}
    ours = [row.cells[0].paper for row in whole.tables["table1"].rows]
    assert ours == [paper["1"], paper["2"], paper["3"], paper["4"], None, paper["5"], paper["6"]]
    assert [c.paper for c in whole.tables["table2"].rows[0].cells] == [40.5, 61.1, 68.3, 72.2]


def test_changing_stage_two_leaves_stage_ones_fingerprint():
    whole, run = load("digits"), load("digits").runs["dearkd-Ti"]
    other = METHODS["dearkd"](override(whole.scale, {"distillation.freeze_rpe": True}, "x"), "Ti")
    assert deviations(other[1]) != deviations(run.stages[1])
    changed = run.__class__(**{**run.__dict__, "stages": (run.stages[0], other[1])})
    assert changed.fingerprint("I") == run.fingerprint("I") and changed.fingerprint("II") != run.fingerprint("II")


@pytest.mark.parametrize(
    "edit, message",
    [
        (
            lambda v: v["tables"]["table2"]["rows"][0].update(methd="deit"),
            r"tables.table2, row 1: unknown key 'methd'; did you mean 'method'",
        ),
        (
            lambda v: v["tables"]["table2"]["rows"][0].update(method="deitt"),
            r"row 1: unknown method 'deitt'; did you mean 'deit'",
        ),
        (lambda v: v["tables"]["table2"]["rows"][2].update(student="Tj"), r"unknown student 'Tj'"),
        (
            lambda v: v["tables"]["table2"]["rows"][2].update({"rpe.dorp": 0.2}),
            r"row 3: rpe: unknown key 'dorp'; did you mean 'drop'",
        ),
        (
            lambda v: v["tables"]["table2"]["rows"][2].update({"rpe.drop": "much"}),
            r"rpe: drop: expected a number, got 'much'",
        ),
        (lambda v: v["tables"]["table2"]["rows"][2].update({"name.drop": 1}), r"name has no fields"),
        (
            lambda v: v["tables"]["table1"]["rows"][0].update(two_stage=True),
            r"table1, row 1, at scale digits: two_stage: true needs hidden or distill",
        ),
        (
            lambda v: v["tables"]["table1"].update(colums=[]),
            r"tables.table1: unknown key 'colums'; did you mean 'columns'",
        ),
        (
            lambda v: v["tables"]["table2"].update(gap_to="DearKD"),
            r"gap_to: unknown row 'DearKD'; did you mean 'DearKD-Ti'",
        ),
        (
            lambda v: v["figures"]["figure1"].update(table="table3x"),
            r"figures.figure1: unknown table 'table3x'; did you mean 'table",
        ),
        (lambda v: v["figures"]["figure4"].update(reads="curve"), r"unknown value 'curve'; did you mean 'curves'"),
        (
            lambda v: v["tables"]["table2"]["rows"][0].update(paper={"methode": "DeiT-Ti"}),
            r"table2.csv: unknown column 'methode'; did you mean 'method'",
        ),
        (lambda v: v["tables"]["table2"]["rows"][0].pop("label"), r"row 1: missing key 'label'"),
        (lambda v: v["tables"]["table1"].pop("rows"), r"tables.table1: missing key 'rows'"),
        (lambda v: v["tables"]["table1"].pop("metric"), r"tables.table1: missing key 'metric'"),
        (lambda v: v["tables"]["table5"]["across"].pop("values"), r"tables.table5: across: missing key 'values'"),
        (lambda v: v["figures"]["figure1"].pop("kind"), r"figures.figure1: missing key 'kind'"),
        (lambda v: v.update(tabels={}), r"unknown key 'tabels'; did you mean 'tables'"),
    ],
)
def test_mistakes_in_the_matrix(matrix, edit, message):
    path = matrix(edit)
    with pytest.raises(InputError, match=message) as error:
        load("digits", path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    "text, message",
    [
        ("seed: [0]", r"unknown key 'seed'; did you mean 'seeds'"),
        ("training: {epoch: 3}", r"training: unknown key 'epoch'; did you mean 'epochs'"),
        ("training: {epochs: three}", r"training: epochs: expected a whole number, got 'three'"),
        ("training: {batch: 0}", r"training: batch is 0; write 1 or more$"),
        ("training: {batch: 100, micro_batch: 33}", r"training: batch 100 is no multiple of micro_batch 33"),
        ("training: {stage1_epochs: 70}", r"stage1_epochs 70 is more than epochs 40; change one"),
        ("training: {warmup_epochs: 41}", r"warmup_epochs 41 is more than epochs 40, .*; change one of them$"),
        ("data: {main: {mean: [0.1, 0.2]}}", r"data.main: mean has 2 values, but channels is 1"),
        ("data: {main: {kind: digit}}", r"data.main: kind: unknown value 'digit'; did you mean 'digits'"),
        ("distillation: {teacher: mian}", r"distillation.teacher: unknown teacher 'mian'; did you mean 'main'"),
        ("rpe: {drop_mode: rows}", r"rpe: drop_mode: unknown value 'rows'"),
        ("training: {validate_every: 0}", r"training: validate_every is 0; write 1 or more$"),
        ("training: {augment: {repeats: 0}}", r"training: augment: repeats is 0; write a number from 1 to 1,000$"),
        ("synthesis: {together: 0}", r"synthesis: together is 0; write 1 or more$"),
        ("seeds: [1, 1]", r"seeds is \[1, 1\]; write a list of one or more entries, each of them once$"),
        (
            "training: {validate_every: 5000000000}",
            r"every is 5000000000; write a number from -4,294,967,295 to 4,294,967,295$",
        ),
        ("resources: {trian: {gpu: 1}}", r"unknown kind of job 'trian'; did you mean 'train'"),
        (
            "resources: {train: {gpu: 1.5}}",
            r"gpu is 1.5; write a whole number of GPUs, or a share of one GPU below 1",
        ),
        ("seeds: 3", r"seeds: expected a list, got 3; write \[3\]$"),
        ("synthesis: {flip: false}", r"synthesis: flip: expected a number, got False; write 0$"),
        ("synthesis: {flip: yes}", r"synthesis: flip: expected a number, got True; the default is 0.5$"),
        ("synthesis: {together: off}", r"together: expected a whole number, got False$"),
        ("synthesis: {images: 140000.0}", r"images: expected a whole number, got 140000.0; write 140000$"),
        ("synthesis: {r_bn: '0,5'}", r"r_bn: expected a number, got '0,5'; write 0.5$"),
        ("synthesis: {warmup: '100'}", r"warmup: expected a whole number, got '100'; write 100$"),
        ("synthesis: {feature_norm: 1}", r"feature_norm: expected true or false, got 1; write true$"),
        ("synthesis: {feature_norm: 'no'}", r"feature_norm: expected true or false, got 'no'; write false$"),
        ("training: {augment: {kind: off}}", r"kind: unknown value 'False'.*; write \"none\"$"),
        ("training: {augment: {kind: null}}", r"kind: unknown value 'None'.*; write \"none\"$"),
        ("summary: 5", r"summary: expected text, got 5; write \"5\"$"),
        ("summary: yes", r"summary: expected text, got True; put it in quotes$"),
        ("summary: no", r"summary: expected text, got False; put it in quotes$"),
        ("summary: 2024-01-02", r"summary: expected text, got datetime.date\(2024, 1, 2\); put it in quotes$"),
        ("fractions: [10%, 100%]", r"fractions: expected a whole number, got '10%'; write \[10, 100\]$"),
        ("seeds: [1.0, '2']", r"seeds: expected a whole number, got 1.0; write \[1, 2\]$"),
        ("training:\n\tepochs: 3", r"line 4 is indented by a tab; indent by spaces$"),
        ("rpe: [1", r"not valid YAML"),
        ("[1]", r"expected a mapping of keys"),
    ],
)
def test_mistakes_in_a_scale(tmp_path, text, message):
    path = tmp_path / "own.yaml"
    path.write_text(f"extends: digits\nname: own\n{text}\n" if not text.startswith("[") else text)
    with pytest.raises(InputError, match=message) as error:
        load_scale(str(path))
    assert "own.yaml" in str(error.value)


def test_unknown_scale_and_circular_extends(tmp_path):
    with pytest.raises(InputError, match="unknown scale 'digit'; did you mean 'digits'"):
        load_scale("digit")
    path = tmp_path / "own.yaml"
    path.write_text(f"extends: {path}\n")
    with pytest.raises(InputError, match="extends itself"):
        load_scale(str(path))


@pytest.mark.parametrize(
    "name, said",
    [
        ("mine.yml", "mine.yml: the file of a scale ends in .yaml; rename it"),
        ("imges.yaml", "imges.yaml: no such file in {here}; did you mean 'images.yaml'?"),
        ("sub/images.yaml", "sub/images.yaml: no such file, because there is no folder sub"),
        ("empty", "empty is a folder, not a scale; no .yaml file is there; `dearkd init` writes a scale"),
        ("{here}/imges.yaml", "{here}/imges.yaml: no such file in {here}; did you mean '{here}/images.yaml'?"),
    ],
)
def test_a_file_that_is_no_scale_is_looked_for_where_the_user_says(tmp_path, monkeypatch, name, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images.yaml").write_text("extends: custom\nname: images\n")
    (tmp_path / "mine.yml").touch()
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError) as error:
        load_scale(name.format(here=tmp_path))
    assert said.format(here=tmp_path) in str(error.value)
    (tmp_path / "own.yaml").write_text(f"extends: {name.format(here=tmp_path)}\nname: own\n")
    with pytest.raises(InputError) as error:
        load_scale("own.yaml")
    assert str(error.value).startswith(f"own.yaml: extends: {said.format(here=tmp_path)}")


def test_a_missing_key_is_named(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text("name: own\nsummary: x\n")
    with pytest.raises(InputError, match=r"own\.yaml: missing key 'seeds'"):
        load_scale(str(path))


def test_a_scale_without_main_data_is_refused(tmp_path):
    values = {**yaml.safe_load(Path("workflow/scales/digits.yaml").read_text()), "name": "own"}
    values["data"] = {"other": values["data"]["main"]}
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(InputError, match=r"own\.yaml: data: missing key 'main'"):
        load_scale(str(path))


def test_a_figure_without_its_table_says_which_to_add(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text("extends: digits\nname: own\nonly: [figure1]\n")
    with pytest.raises(InputError, match="scale own: `only` names figure1, which needs table2; add that too"):
        load(str(path))


def test_more_classes_in_a_batch_than_there_are(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text("extends: digits\nname: own\nsynthesis: {batch_classes: 12}\n")
    with pytest.raises(InputError, match=r"synthesis\.batch_classes is 12, but there are 10 classes; lower it"):
        load(str(path))


def test_a_file_of_ones_own_is_found_by_its_scales_name(tmp_path, monkeypatch):
    (tmp_path / "workflow").symlink_to(Path("workflow").resolve())
    (tmp_path / "mine.yaml").write_text("extends: digits\nname: mine\n")
    monkeypatch.chdir(tmp_path)
    assert load_scale("mine") == load_scale("mine.yaml")


def test_extends_merges_key_by_key(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text("extends: digits\nname: own\ntraining: {epochs: 61}\n")
    own, base = load_scale(str(path)), load_scale("digits")
    assert own.training.epochs == 61 and own.training.lr == base.training.lr and own.data == base.data


def test_an_extra_row_is_only_of_the_scale_that_names_it(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text("extends: digits\nname: own\nextra: {table2: ['MHCA, no teacher'], table4: [DearKD-B-1000]}\n")
    own, base = load(str(path)), load("digits")
    assert [row.label for row in own.tables["table2"].rows][-1] == "MHCA, no teacher"
    alone = "dearkd-Ti-distill~no-{}hidden~no-two_stage~no"
    new = {alone.format(f"fraction~{f}-") for f in (10, 25, 50)} | {"dearkd-B-long~yes"}
    new |= {f"transfer-B-long~yes-target~{target}" for target in base.scale.transfer.targets}
    assert set(own.runs) - set(base.runs) == new and alone.format("") in base.runs
    longer = own.runs["transfer-B-long~yes-target~parity"]
    assert longer.initial == "dearkd-B-long~yes" and longer.stages[0].initial[-1].training.epochs == base.scale.long[0]
    assert own.runs["transfer-B-target~parity"] == base.runs["transfer-B-target~parity"]
    for text, message in (
        ("{table2: [DeiT-Ti]}", "extra.table2: unknown row 'DeiT-Ti'"),
        ("{tabel2: [DeiT-Ti]}", "extra: unknown table 'tabel2'; did you mean 'table2'"),
    ):
        path.write_text(f"extends: digits\nname: own\nextra: {text}\n")
        with pytest.raises(InputError, match=message):
            load(str(path))


def test_a_size_may_have_a_learning_rate_of_its_own(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text("extends: digits\nname: own\nstudents: {B: {lr_factor: 0.5}}\n")
    own, base = load(str(path)), load("digits")
    for name, run in own.runs.items():
        first = (*run.stages[0].initial, *run.stages)[0]
        expected = (0.5 if run.student == "B" else 1) * base.runs[name].stages[0].training.lr
        if run.method != "transfer":
            assert first.training.lr == expected, name
    wide = own.runs["transfer-B-target~parity"].stages[0]
    assert wide.initial[0].training.lr == base.scale.training.lr / 2 and wide.training.lr == 1e-3
    path.write_text("extends: digits\nname: own\nstudents: {B: {lr_factor: 0}}\n")
    with pytest.raises(InputError, match=r"students.B: lr_factor is 0.0; write a number above 0 and up to 1,000"):
        load(str(path))


def test_run_names_are_safe_paths():
    name = run_name("dearkd", "Ti", {"distillation.pairs": [[4, 2]], "rpe.init": "$(rm -rf ~) '\"/..", "mhca": False})
    assert (
        re.fullmatch(r"[A-Za-z0-9._~-]+", name) and "/" not in name and name.startswith("dearkd-Ti-distillation.pairs~")
    )


SETTINGS = {
    "mhca": st.booleans(),
    "two_stage": st.booleans(),
    "distill": st.booleans(),
    "long": st.booleans(),
    "fraction": st.sampled_from([10, 50, 100]),
    "taught_by": st.sampled_from(["distillation", "synthesis"]),
    "images": st.sampled_from(["real", "deepinversion", "df_dearkd"]),
    "rpe.drop": st.sampled_from([0, 0.0, "0.0", 0.1, "1e-1", 0.2]),
    "training.lr": st.sampled_from([1e-3, "1e-3", 0.001, "0.0010", 0.006]),
    "distillation.beta": st.sampled_from([4, 4.0, "4", 2]),
    "distillation.pairs": st.sampled_from([[[2, 1]], [[1, 2]], [[2, 1], [1, 0]], [[1, 0], [2, 1]]]),
    "distillation.teacher": st.sampled_from(["main", "my-cnn", "my_cnn", "my.cnn"]),
    "training.augment": st.sampled_from([{}, {"mixup": 0}, {"mixup": 0.0, "flip": 0.5}, {"auto": ""}]),
}


@settings(max_examples=15, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
@given(rows=st.lists(st.fixed_dictionaries({}, optional=SETTINGS), min_size=2, max_size=4))
def test_two_rows_are_one_run_where_their_stages_are_equal_and_only_there(tmp_path_factory, rows):
    scale = load_scale("digits")
    cnn = scale.teachers["main"]
    others = {name: dataclasses.replace(cnn, top1=90.0 + i) for i, name in enumerate(("my-cnn", "my_cnn", "my.cnn"))}
    scale = dataclasses.replace(scale, teachers={**scale.teachers, **others})
    path = tmp_path_factory.mktemp("rows") / "experiments.yaml"
    kept = []
    for row in rows:  # those that contradict themselves are refused one by one
        row = {"label": f"row {len(kept)}", "method": "dearkd", "student": "Ti", **row}
        path.write_text(yaml.safe_dump({"tables": {"t": {"title": "t", "metric": "top1", "rows": [row]}}}))
        try:
            alone = load(scale, path)
        except InputError:
            continue
        kept.append((row, alone.runs[alone.tables["t"].rows[0].cells[0].run].fingerprint("I")))
    if not kept:
        return
    whole = {"tables": {"t": {"title": "t", "metric": "top1", "rows": [row for row, _ in kept]}}}
    path.write_text(yaml.safe_dump(whole))
    together = load(scale, path)
    runs = [together.runs[row.cells[0].run] for row in together.tables["t"].rows]
    for run, (_, first) in zip(runs, kept, strict=True):
        assert run.fingerprint("I") == first, "a row shows another row's run"
    for a in runs:
        for b in runs:
            assert (a.name == b.name) == (a.stages == b.stages)
    assert len({name.lower() for name in together.runs}) == len(together.runs)


def test_targets_that_fold_to_one_name_are_two_runs(scale, matrix):
    def edit(values):
        data = load_scale("digits").data["parity"]
        values["data"] = {"a-b": to_json(data), "a_b": to_json(dataclasses.replace(data, label_noise=0.1))}
        values["transfer"] = {"targets": ["a-b", "a_b"]}

    plan = load(scale("{extends: digits, name: own, only: [table4]}", edit))
    names = [cell.run for row in plan.tables["table4"].rows for cell in row.cells if cell.run]
    assert len(set(names)) == len(names) > 0
    assert {plan.runs[n].stages[0].data_name for n in names} == {"a-b", "a_b"}


@given(
    texts=st.lists(
        st.one_of(st.text(max_size=20), st.booleans(), st.integers(), st.floats(allow_nan=False)), max_size=4
    )
)
def test_names_are_paths_and_different_values_have_different_ones(texts):
    names = {}
    for value in texts:
        name = run_name("dearkd", "Ti", {"training.x": value, "y": "a" * 300 if value == 0.5 else 1})
        assert re.fullmatch(r"[A-Za-z0-9._~-]+", name) and len(name) < 250
        names.setdefault(name, []).append(value)
    for same in names.values():
        assert len({v if isinstance(v, str) else float(v) for v in same}) == 1 or set(map(str, same)) <= {"yes", "True"}


@pytest.mark.parametrize(
    "edit, message",
    [
        (
            lambda v: v.pop("name"),
            "missing key 'name'; .* would overwrite those of .*digits.yaml",
        ),
        (lambda v: v.update(name="digits"), "name: digits is the name of workflow/scales/digits.yaml too"),
        (lambda v: v.update(name="twice"), "name: twice is the name of .*other.yaml too"),
    ],
)
def test_two_scales_never_write_into_one_folder(scale, tmp_path, edit, message):
    (tmp_path / "other.yaml").write_text("extends: smoke\nname: 'twice'  # as another\n")
    with pytest.raises(InputError, match=message):
        load_scale(scale("{extends: digits, name: own}", edit))


def test_unknown_run():
    with pytest.raises(InputError, match="unknown run 'dearkd-T'; did you mean 'dearkd-Ti'"):
        load("digits").run("dearkd-T")


# ---------------------------------------------------------------------------------------------- synthetic images


def test_rows_on_synthetic_images_are_taught_by_the_teacher_they_come_from():
    plan = load("imagenet")
    stage = plan.runs["dearkd-Ti-images~df_dearkd"].stages[0]
    assert stage.teacher_name == stage.source.teacher_name == "resnet101"
    assert plan.runs["dearkd-Ti"].stages[0].teacher_name == "main"
    assert plan.runs["dearkd-Ti-taught_by~synthesis"].stages[0].teacher_name == "resnet101"
    assert stage.source.recipe.batches == 15239 and dict(stage.source.terms)["easy_positive"] == 50


def test_rows_that_come_out_equal_are_one_run():
    plan = load("digits")  # one teacher for everything, so that the real rows of Table 5 are those of Table 2
    assert not [name for name in plan.runs if "taught_by" in name]
    shown = {cell.run for row in plan.tables["table5"].rows for cell in row.cells}
    assert {"deit-Ti", "dearkd-Ti", "dearkd-Ti-fraction~50"} <= shown


def test_changing_how_images_are_made_changes_the_runs_that_see_them_and_no_others():
    before = load("digits")
    changed = override(before.scale, {"synthesis.easy_positive": 7.0}, "test")
    after = load(changed)
    first = {n: run.stages[0].name for n, run in before.runs.items()}
    moved = {n for n, stage in first.items() if before.runs[n].fingerprint(stage) != after.runs[n].fingerprint(stage)}
    assert moved == {n for n in before.runs if "images~" in n}


def test_the_demo_trains_by_the_very_recipe_of_what_is_committed():
    demo, committed = load("demo"), load("converged")
    assert demo.runs.keys() <= committed.runs.keys() and demo.paths.results != committed.paths.results
    for name, run in demo.runs.items():
        for stage in run.stages:
            assert run.fingerprint(stage.name) == committed.runs[name].fingerprint(stage.name)


@pytest.mark.parametrize(
    "line, message",
    [
        ("images: df_deark", "unknown value 'df_deark'; did you mean 'df_dearkd'"),
        ("images: df_dearkd, fraction: 50", "fraction: 50 is a share of the real images"),
        ("taught_by: synthesiss", "unknown value 'synthesiss'; did you mean 'synthesis'"),
    ],
)
def test_mistakes_about_images_are_named(tmp_path, line, message):
    path = tmp_path / "matrix.yaml"
    row = f"{{label: a, method: dearkd, student: Ti, {line}}}"
    path.write_text(f"tables: {{t: {{title: t, metric: top1, rows: [{row}]}}}}")
    with pytest.raises(InputError, match=message):
        load("digits", path)


def test_a_scale_may_have_only_some_tables(tmp_path):
    path = tmp_path / "some.yaml"
    path.write_text("extends: digits\nname: some\nonly: [table6, images]\n")
    plan = load(str(path))
    assert list(plan.tables) == ["table6"] and list(plan.figures) == ["images"]
    path.write_text("extends: digits\nname: some\nonly: [tabel6]\n")
    with pytest.raises(InputError, match="unknown table or figure 'tabel6'; did you mean 'table6'"):
        load(str(path))


@pytest.mark.parametrize("settings", [{}, {"training.lr": 0.001, "rpe.drop": 0.5}], ids=["as it is", "own settings"])
def test_every_row_learns_from_the_very_images_that_the_scale_makes(project, settings):
    """Whatever the row sets, and at whatever rate its size learns."""
    matrix = project / "workflow/experiments.yaml"
    row = {"label": "another", "method": "dearkd", "images": "adi", **settings}
    text = matrix.read_text().replace("  table6:\n", "      - " + json.dumps(row) + "\n  table6:\n", 1)
    matrix.write_text(text)
    whole = load("converged")
    learning = [(run.name, s.source) for run in whole.runs.values() for s in run.stages if s.source]
    assert {name for name, _ in learning} > {"dearkd-S-images~adi", "dearkd-Ti-images~adi"}
    for name, source in learning:
        assert source == whole.sources[source.name], name


def test_a_row_cannot_change_the_images_of_all(project):
    matrix = project / "workflow/experiments.yaml"
    line = "      - {label: another, method: dearkd, images: adi, synthesis.tv: 0}\n"
    matrix.write_text(matrix.read_text().replace("  table6:\n", line + "  table6:\n", 1))
    with pytest.raises(InputError, match=r"synthesis\.tv cannot be set for a row"):
        load("smoke")


def test_a_run_has_the_seeds_of_all_tables_that_show_it(scale):
    five = "extends: converged\nname: own\nsummary: mine\nmost_seeds: {table3: 5, table4: 2}\n"
    whole = load(scale(five))
    seeds = {run.name: len(run.seeds) for run in whole.runs_of(*whole.tables)}
    assert seeds["dearkd-Ti"] == 8, "Table 3 and Table 1 show it"
    assert seeds["dearkd-S-long~yes"] == 5 and seeds["peer-Swin-T"] == 5, "Table 3 alone shows them"
    assert seeds["dearkd-S-images~adi"] == 8, "Table 5 has all seeds"
    fine_tuned = [run for run in whole.runs_of("table4") if run.initial]
    assert fine_tuned and all(run.seeds == (0, 1) for run in fine_tuned)
    assert all(set(whole.runs[run.initial].seeds) >= set(run.seeds) for run in fine_tuned)
    assert whole.runs["teacher-main"].seeds == (0,)


def test_what_a_fine_tuning_starts_from_has_its_seeds(scale):
    alone = load(scale("extends: converged\nname: own\nsummary: mine\nonly: [table4]\nmost_seeds: {table4: 3}\n"))
    assert {len(alone.runs[run.initial].seeds) for run in alone.runs_of("table4")} == {3}


@pytest.mark.parametrize(
    ("key", "sentence"),
    [
        ("{tabel3: 5}", "unknown table 'tabel3'; did you mean 'table3'"),
        ("{table3: 0}", "table3"),
    ],
)
def test_most_seeds_that_cannot_be_are_named(scale, key, sentence):
    with pytest.raises(InputError, match="most_seeds.*" + re.escape(sentence)):
        load(scale(f"extends: converged\nname: own\nsummary: mine\nmost_seeds: {key}\n"))


def test_a_row_is_trained_only_for_the_columns_that_it_names(matrix):
    def edit(columns):
        return matrix(lambda v: v["tables"]["table2"]["rows"][0].update(only=columns))

    row = load("digits", edit([10, 50])).tables["table2"].rows[0]
    assert {dict(cell.keys)["fraction"]: bool(cell.run) for cell in row.cells} == {10: 1, 25: 0, 50: 1, 100: 0}
    assert all(cell.paper is not None for cell in row.cells), "the paper's numbers stay"
    with pytest.raises(InputError, match=r"row 1: only: unknown fraction '11'"):
        load("digits", edit([11]))
