"""The whole workflow for real at the smoke scale, and what a clone, an edit or a mistake makes it do."""

import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import copy_project, snakemake

from dearkd.errors import InputError
from dearkd.plan import experiments

pytestmark = pytest.mark.slow

RENAMED = """

def renamed(scale: Scale, student: str, fraction: int = 100, images: str = REAL) -> Stages:
    first, second = dearkd(scale, student, fraction, images)
    return (dataclasses.replace(first, name="taught"), dataclasses.replace(second, name="on_its_own"))


METHODS["renamed"] = renamed
"""


def jobs(done):
    """{rule: count} of a dry run."""
    table = re.search(r"^job +count\n-+ +-+\n(.*?)\n\n", done.stdout + done.stderr, re.DOTALL | re.MULTILINE)
    counts = {name: int(n) for name, n in re.findall(r"^(\w+) +(\d+)$", table[1], re.MULTILINE)} if table else {}
    return {k: v for k, v in counts.items() if k not in ("total", "all", "table1", "table2")}


def jobs_of(runs):
    """{rule: count} of jobs that train and evaluate these runs at all seeds."""
    train = sum(len(run.stages) * len(run.seeds) for run in runs)
    return {"train": train, "evaluate": sum(len(run.seeds) for run in runs)}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A project in which `snakemake all` has run at the smoke scale."""
    folder = copy_project(tmp_path_factory.mktemp("dag"))
    snakemake("--config", "scale=smoke", "--", "all", "report", cwd=folder)
    return folder


@pytest.fixture
def clone(finished, tmp_path):
    """A fresh clone with committed results: no metadata, no checkpoints, modification times shuffled."""
    folder = copy_project(tmp_path)
    for name in ("results", "figures"):
        shutil.copytree(finished / name, folder / name)
    files = [p for p in folder.rglob("*") if p.is_file()]
    random.Random(0).shuffle(files)
    for i, path in enumerate(files):
        os.utime(path, (1.6e9 + i, 1.6e9 + i))
    return folder


@pytest.fixture
def checkout(finished, tmp_path):
    """A private copy of the finished project with its metadata."""
    folder = tmp_path / "checkout"
    shutil.copytree(finished, folder)
    return folder


def test_snakemakes_own_report_has_them_with_captions_and_categories(finished):
    snakemake("--config", "scale=smoke", "--report", "snakemake.html", "--", "all", "report", cwd=finished)
    page = (finished / "snakemake.html").read_text()
    whole = experiments.load("smoke")
    for name in (*whole.tables, *whole.figures, "claims"):
        words = (finished / f"workflow/report/{name}.rst").read_text().split()
        assert " ".join(words[2:6]) in " ".join(page.replace("\\n", " ").split()), name
    assert all(category in page for category in ("Tables", "Figures", "Claims"))


def test_every_table_and_figure_is_there(finished):
    for name in experiments.load("smoke").tables:
        assert all(
            (finished / f"results/smoke/tables/{name}.{suffix}").stat().st_size for suffix in ("csv", "md", "tex")
        )
    for name in experiments.load("smoke").figures:
        assert (finished / f"figures/smoke/{name}.pdf").read_bytes().startswith(b"%PDF")
        assert (finished / f"figures/smoke/{name}.png").read_bytes().startswith(b"\x89PNG")
    assert (finished / "figures/smoke/claims.png").is_file()
    assert (finished / "results/smoke/claims.md").read_text().count("| one seed |")
    assert (finished / "results/smoke/report.html").read_text().count("<img") == len(
        experiments.load("smoke").figures
    ) + 1
    text = (finished / "results/smoke/tables/table2.csv").read_text()
    table = experiments.load("smoke").tables["table2"]
    cells = {row.label: len(row.cells) for row in table.rows}
    gaps = sum(cells.values()) - cells[table.gap_to]
    assert text.count(",measured") == sum(cells.values()) + gaps and "quoted" not in text
    assert not [p for p in finished.rglob("*.pt") if "checkpoints" not in p.parts]


def test_nothing_is_left_to_do_and_touching_the_yaml_changes_nothing(checkout):
    for path in ("workflow/scales/smoke.yaml", "workflow/experiments.yaml", "dearkd/train/loop.py"):
        file = checkout / path
        file.write_text(file.read_text() + "\n# a comment\n")
    done = snakemake("-n", "--config", "scale=smoke", "--", "all", cwd=checkout)
    assert "Nothing to be done" in done.stdout + done.stderr


def test_a_fresh_clone_trains_nothing(clone):
    done = jobs(snakemake("-n", "--config", "scale=smoke", "--", "all", cwd=clone))
    assert not done.keys() & {"train", "evaluate", "teacher", "subset"}
    snakemake("--config", "scale=smoke", "--forcerun", "table", "--", "table2", cwd=clone)


def test_a_fresh_clone_trains_an_added_row_with_the_teacher_that_came_with_it(clone):
    """The row's method is a new one, whose stages have names of their own."""
    matrix, methods = clone / "workflow/experiments.yaml", clone / "dearkd/plan/methods.py"
    line = "      - {label: more dropout, method: renamed, student: Ti, rpe.drop: 0.3}\n"
    matrix.write_text(matrix.read_text().replace("  table2:\n", f"{line}  table2:\n"))
    methods.write_text(methods.read_text() + RENAMED)
    snakemake("--config", "scale=smoke", "--", "table1", cwd=clone)
    table = (clone / "results/smoke/tables/table1.csv").read_text()
    assert table.count(",measured") == len(experiments.load("smoke").tables["table1"].rows) + 1
    assert (clone / "results/smoke/runs/renamed-Ti-rpe.drop~0.3/seed0/on_its_own.json").is_file()


@pytest.fixture
def committed(tmp_path):
    """A fresh clone with the project's own records of the digits scale."""
    folder = copy_project(tmp_path)
    for name in ("results/digits", "figures/digits"):
        shutil.copytree(name, folder / name)
    return folder


def test_without_a_target_everything_is_made(committed, tmp_path_factory):
    nothing = copy_project(tmp_path_factory.mktemp("nothing"))
    for folder, scale in ((committed, "digits"), (nothing, "smoke")):
        with_all = snakemake("-n", "--config", f"scale={scale}", "--", "all", cwd=folder)
        without = snakemake("-n", "--config", f"scale={scale}", cwd=folder)
        assert jobs(without) == jobs(with_all)
    assert jobs(without)["train"] > 50, "and from nothing that is something"


@pytest.mark.parametrize(("target", "near"), [("tabel2", "table2"), ("figur1", "figure1"), ("cliams", "claims")])
def test_a_misspelt_target_gets_the_nearest_one(tmp_path, target, near):
    done = snakemake("-n", "--config", "scale=smoke", "--", target, cwd=copy_project(tmp_path), check=False)
    assert done.returncode
    assert f"scale smoke: unknown target {target!r}; did you mean {near!r}?" in done.stdout + done.stderr


def test_an_unfinished_table_is_not_taken_for_a_finished_one(committed):
    """`dearkd table` writes what is there, so the table's file says nothing about its records."""
    (committed / "results/digits/runs/deit-Ti-fraction~10/seed0/metrics.json").unlink()
    for target in ("table2", "figure1", "all"):
        assert jobs(snakemake("-n", "--", target, cwd=committed))["evaluate"] == 1, target


def test_what_status_calls_stale_is_what_snakemake_makes_again(committed):
    """It asks Snakemake's own graph to force a job (`workflow.dag.forcefiles`): here one sees when that moves."""

    def made_again(*targets):
        done = snakemake("-n", "--", *targets, cwd=committed)
        return set(re.findall(r"^    output: \S*/runs/(\S+)/seed(\d)/(\w+)\.json$", done.stdout + done.stderr, re.M))

    def stale(*targets):
        command = [sys.executable, "-m", "dearkd", "status", *targets]
        done = subprocess.run(command, cwd=committed, capture_output=True, text=True, check=True)
        return set(re.findall(r"^stale +(\S+) seed (\d) stage (\w+)", done.stdout, re.M))

    assert made_again("all") == stale() == set()
    path = committed / "workflow/scales/digits.yaml"
    before = path.read_text()
    path.write_text(before.replace("epochs: 40", "epochs: 41"))
    assert made_again("table1", "table2") == stale("table1", "table2")
    runs = experiments.load("digits").runs_of("table1", "table2")
    assert len(stale("table1", "table2")) == jobs_of(runs)["train"], "and it is every stage of theirs"
    command = [sys.executable, "-m", "dearkd", "table", "table1"]
    refused = subprocess.run(command, cwd=committed, capture_output=True, text=True)
    assert refused.returncode == 2 and "training.epochs: 40 recorded, 41 planned" in refused.stderr
    path.write_text(before.replace("validation: 250", "validation: 240"))
    assert jobs(snakemake("-n", "--", "table1", cwd=committed))["subset"] == 1


def test_names_are_names_and_no_patterns(tmp_path):
    folder = copy_project(tmp_path)
    data = (
        "data: {c++: {kind: digits, classes: 10, image_size: 12, channels: 1, mean: [0.1], std: [0.3], validation: 50}}"
    )
    scale = f"extends: smoke\nname: own\n{data}\ntransfer: {{targets: [parity, left_of_two, c++]}}\n"
    (folder / "own.yaml").write_text(scale)
    done = snakemake("-n", "--config", "scale=own.yaml", "--", "results/own/subsets/c++/data.json", cwd=folder)
    assert jobs(done) == {"subset": 1}
    wrong = "results/own/subsets/ccc/data.json"
    done = snakemake("-n", "--config", "scale=own.yaml", "--", wrong, cwd=folder, check=False)
    assert done.returncode != 0 and "MissingRuleException" in done.stdout + done.stderr


@pytest.mark.parametrize("config", ["scael=smoke", "seeds=[7]", "scale=7", "scale=[a]"])
def test_a_mistake_in_config_is_no_run_of_digits(tmp_path, config):
    done = snakemake("-n", "--config", config, "--", "all", cwd=copy_project(tmp_path), check=False)
    said = done.stdout + done.stderr
    assert done.returncode != 0 and ("the only one is scale" in said or "expected the name of a scale" in said)
    assert "Traceback" not in said


def test_tables_and_figures_cannot_be_called_like_a_rule(tmp_path):
    rules = {
        name
        for path in Path("workflow/rules").glob("*.smk")
        for name in re.findall(r"^rule (\w+):", path.read_text(), re.M)
    }
    rules |= set(re.findall(r"^rule (\w+):", Path("Snakefile").read_text(), re.M))
    assert rules == set(experiments.RULES)
    path = tmp_path / "experiments.yaml"
    for name, message in (("all", "a rule of the workflow"), ("../t", "part of paths"), ("a b", "part of paths")):
        path.write_text(f"figures: {{{name}: {{title: t, kind: pipeline, rows: [{{label: a}}]}}}}")
        with pytest.raises(InputError, match=message):
            experiments.load("smoke", path)


def test_an_edited_stage_two_leaves_stage_one_alone(checkout):
    path = checkout / "workflow/scales/smoke.yaml"
    path.write_text(path.read_text() + "distillation: {freeze_rpe: true}\n")
    done = jobs(snakemake("-n", "--config", "scale=smoke", "--", "table2", cwd=checkout))
    two = [run for run in experiments.load("smoke").runs_of("table2") if len(run.stages) == 2]
    assert done == {"train": len(two), "evaluate": len(two), "table": 1}


def test_an_added_seed_and_an_added_row_run_only_what_is_new(checkout):
    scale = checkout / "workflow/scales/smoke.yaml"
    before = scale.read_text()
    scale.write_text(before.replace("seeds: [0]", "seeds: [0, 1]"))
    done = jobs(snakemake("-n", "--config", "scale=smoke", "--", "table2", cwd=checkout))
    whole = experiments.load("smoke")
    assert done == {**jobs_of(whole.runs_of("table2")), "table": 1}, "as many as the one seed had"
    scale.write_text(before)
    matrix = checkout / "workflow/experiments.yaml"
    line = "      - {label: more dropout, method: dearkd, student: Ti, rpe.drop: 0.3}\n"
    matrix.write_text(matrix.read_text().replace("  table3:\n", f"{line}  table3:\n"))
    done = jobs(snakemake("-n", "--config", "scale=smoke", "--", "table2", cwd=checkout))
    more = experiments.load("smoke", matrix).runs_of("table2")
    assert done == {**jobs_of([run for run in more if run.name not in whole.runs]), "table": 1}


def test_a_relabelled_row_rewrites_only_its_tables(checkout):
    matrix = checkout / "workflow/experiments.yaml"
    matrix.write_text(matrix.read_text().replace("label: DeiT-Ti distilled", "label: DeiT-Ti (distilled)"))
    done = jobs(snakemake("-n", "--config", "scale=smoke", "--", "all", cwd=checkout))
    assert done == {"table": 1, "figure": 1, "claims": 1}


def test_training_a_stage_again_repeats_what_follows_from_it(checkout):
    record = "results/smoke/runs/dearkd-Ti/seed0/I.json"
    done = jobs(snakemake("-n", "--config", "scale=smoke", "--forcerun", record, "--", "table2", cwd=checkout))
    assert done == {"train": 2, "evaluate": 1, "table": 1}


@pytest.mark.parametrize(
    "scale, message",
    [
        ("digit", "unknown scale 'digit'; did you mean 'digits'"),
        ("broken.yaml", "broken.yaml: training: unknown key 'epoch'; did you mean 'epochs'"),
        ("nameless.yaml", "nameless.yaml: missing key 'name'"),
        ("latin.yaml", "latin.yaml: line 3 is not UTF-8; save it as UTF-8"),
    ],
)
def test_a_mistake_fails_at_start_with_one_sentence(tmp_path, scale, message):
    folder = copy_project(tmp_path)
    (folder / "broken.yaml").write_text("extends: smoke\nname: broken\ntraining: {epoch: 3}\n")
    (folder / "nameless.yaml").write_text("extends: smoke\n")
    (folder / "latin.yaml").write_bytes(b"extends: smoke\nname: latin\nsummary: Bl\xfcten\n")
    done = snakemake("-n", "--config", f"scale={scale}", "--", "all", cwd=folder, check=False)
    assert done.returncode != 0 and message in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize("scale", ["imagenet", "cifar", "fashion"])
def test_the_large_scales_plan_the_right_jobs(scale):
    done = jobs(snakemake("-n", "--config", f"scale={scale}", "--", "table1", "table2", cwd=Path.cwd()))
    whole = experiments.load(scale)
    runs = whole.runs_of("table1", "table2")
    expected = {**jobs_of(runs), "table": 2}
    if scale != "fashion":  # whose teacher came with the clone
        expected |= {"subset": 1, "teacher": 1, "train": expected["train"] + (scale == "cifar")}
    if scale == "imagenet":
        # DeiT distilled and DearKD share the labels of each fraction's pixels
        epochs = -(-whole.scale.training.epochs // whole.scale.label_epochs)
        expected["labels"] = len(whole.scale.seeds) * len(whole.scale.fractions) * epochs
    assert done == expected


def test_the_snakefile_never_imports_torch(tmp_path):
    folder = copy_project(tmp_path)
    (folder / "torch.py").write_text("raise SystemExit('torch was imported')\n")
    done = snakemake("-n", "--config", "scale=smoke", "--", "all", cwd=folder)
    assert "torch was imported" not in done.stdout + done.stderr


def test_a_machine_with_several_gpus_has_a_profile(tmp_path):
    """Snakemake counts them; a job's command says how many it takes."""
    folder = copy_project(tmp_path)
    (folder / "gpus.yaml").write_text(
        "extends: smoke\nname: gpus\nresources: {train: {gpu: 2}, evaluate: {gpu: 0.15}}\n"
    )
    done = snakemake(
        "-n", "--profile", "profiles/workstation", "--config", "scale=gpus.yaml", "--", "table1", cwd=folder
    )
    said = done.stdout + done.stderr
    assert "gpu=2, gpu_percent=200" in said and "--gpu 2 --gpu-percent 200 " in said
    assert "gpu=1, gpu_percent=15" in said and "--gpu 1 --gpu-percent 15 " in said, "SLURM gives out whole ones"
