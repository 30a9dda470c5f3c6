"""The package without a clone: a wheel in an environment of its own, used from folders that know nothing of it."""

import os
import re
import shutil
import site
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import PROJECT
from PIL import Image

import dearkd
from dearkd.errors import InputError
from dearkd.jobs import study
from dearkd.jobs.subset import list_subsets
from dearkd.plan import experiments
from dearkd.plan.scale_file import load_scale

pytestmark = [pytest.mark.slow, pytest.mark.cold]

BUILT = ("dearkd", "snakemake_logger_plugin_dearkd", "workflow", "paper", "profiles", "slurm", "Snakefile")
BUILT += ("pyproject.toml", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """The folder of programs of an environment that has the wheel, and what it needs from this one."""
    source, venv = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("environment")
    for name in BUILT:
        path = PROJECT / name
        if path.is_dir():
            shutil.copytree(path, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(path, source / name)
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    wheel = ["wheel", "--no-deps", "--no-build-isolation", "-w", str(source), str(source)]
    subprocess.run([*pip, *wheel], check=True, capture_output=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    (packages,) = venv.glob("lib/python*/site-packages")
    (packages / "others.pth").write_text("\n".join(site.getsitepackages()))
    (built,) = source.glob("*.whl")
    install = ["--python", str(venv / "bin/python"), "install", "--no-deps", str(built)]
    subprocess.run([*pip, *install], check=True, capture_output=True)
    shutil.rmtree(source)
    return venv / "bin"


def call(environment, *command, cwd):
    """Output of a program of that environment; nothing of this checkout is in its way."""
    without = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run([str(environment / command[0]), *command[1:]], cwd=cwd, env=without, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


def test_the_wheel_has_every_file_of_the_workflow_and_the_paper(environment):
    (packages,) = environment.parent.glob("lib/python*/site-packages")
    for folder in ("workflow", "paper", "profiles", "slurm", "dearkd"):
        place = packages / "dearkd" if folder == "dearkd" else packages / "dearkd/shipped" / folder
        for path in (PROJECT / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                assert (place / path.relative_to(PROJECT / folder)).read_bytes() == path.read_bytes()
    assert not [path for path in packages.rglob("*") if path.is_symlink()]


def test_it_plans_the_papers_experiments_in_an_empty_folder(environment, tmp_path):
    assert call(environment, "dearkd", "--version", cwd=tmp_path) == f"dearkd {dearkd.__version__}\n"
    ours = subprocess.run([sys.executable, "-m", "dearkd", "plan", "--scale", "digits"], capture_output=True, text=True)
    theirs = call(environment, "dearkd", "plan", "--scale", "digits", cwd=tmp_path)
    runs, left = theirs.split("\n\n")
    assert runs == ours.stdout.split("\n\n")[0] and runs.count("\n") > 50, "what is done there is another matter"
    assert "0 of them done" in left
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def images(tmp_path):
    """folder/<class>/<number>.png, 20 a class."""
    noise = np.random.default_rng(0)
    for label in ("left", "right"):
        (tmp_path / "images" / label).mkdir(parents=True)
        for i in range(20):
            pixels = noise.integers(0, 90, (32, 32, 3), dtype=np.uint8)
            pixels[:, slice(0, 16) if label == "left" else slice(16, 32)] += 150
            Image.fromarray(pixels).save(tmp_path / "images" / label / f"{i}.png")
    return tmp_path / "images"


def test_a_study_of_ones_own_runs_to_its_tables(environment, images, tmp_path):
    """Short and small, by the lines of its scale that a person may change."""
    call(environment, "dearkd", "init", "birds", "--images", "images", cwd=tmp_path)
    folder = tmp_path / "birds"
    scale = yaml.safe_load((folder / "birds.yaml").read_text())
    quick = {"epochs": 2, "stage1_epochs": 1, "warmup_epochs": 0, "batch": 8, "micro_batch": 8}
    scale |= {
        "training": quick,
        "seeds": [0],
        "fractions": [100],
        "only": ["table2"],
        "distillation": {"pairs": [[2, 1]]},
    }
    scale["data"]["main"]["image_size"] = 32
    scale["students"] = {"Ti": {"args": {"embed_dim": 36, "depth": 2}, "n_mhca": 1}}
    scale["teachers"] = {"main": {"model": "resnet10t", "training": quick | {"stage1_epochs": 2}}}
    (folder / "birds.yaml").write_text(yaml.safe_dump(scale))
    snakemake = [str(environment / "python"), "-m", "snakemake", "-c1", "--", "study"]
    call(environment, "dearkd", "warm", *snakemake, cwd=folder)
    table = (folder / "results/birds/tables/table2.md").read_text()
    assert re.search(r"^\| DearKD-Ti \|.* \d+\.\d \(1\) ", table, re.MULTILINE), table
    assert "5 done" in call(environment, "dearkd", "status", "--scale", "birds.yaml", cwd=folder)


def test_inside_a_clone_its_own_files_count(environment, tmp_path):
    """A changed scale of the clone, whatever came with the package."""
    (tmp_path / "workflow/scales").mkdir(parents=True)
    text = (PROJECT / "workflow/scales/smoke.yaml").read_text()
    (tmp_path / "workflow/scales/smoke.yaml").write_text(re.sub("^seeds: .*", "seeds: [5]", text, flags=re.MULTILINE))
    assert "seeds 5\n" in call(environment, "dearkd", "plan", "table2", "--scale", "smoke", cwd=tmp_path)


@pytest.mark.parametrize("split", [False, True])
def test_the_scale_of_a_study_says_what_is_in_the_folder(images, tmp_path, monkeypatch, split):
    if split:
        for name in ("train", "val"):
            shutil.copytree(images, tmp_path / "split" / name)
    monkeypatch.chdir(tmp_path)
    scale = load_scale(study.init(Path("1e3"), Path("split" if split else "images")).as_posix())
    data = scale.data["main"]
    assert (scale.name, data.classes, data.test_share) == ("1e3", 2, 0.0 if split else 0.2)
    assert data.root == str(tmp_path / ("split" if split else "images"))
    assert (data.validation, scale.fractions) == ((4, (25, 50, 100)) if split else (2, (25, 50, 100)))
    runs = experiments.load(scale)
    assert runs.tables.keys() == {"table1", "table2"}
    list_subsets(runs, "main")  # refuses a batch of more images than there are


def test_a_study_without_images_is_a_plan_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    experiments.load(study.init(Path("later")).as_posix())
    assert "lines marked EDIT" in Path("later/README.md").read_text()


@pytest.mark.parametrize(
    "name, images, said",
    [
        ("digits", None, "the package has a scale named digits"),
        ("a b", None, "letters, digits"),
        ("full", None, "full: exists and is not empty"),
        ("new", "nowhere", "nowhere: no such folder"),
        ("new", "full", "0 folders with images"),
    ],
)
def test_a_folder_that_can_be_no_study_is_refused_and_nothing_is_written(tmp_path, monkeypatch, name, images, said):
    monkeypatch.chdir(tmp_path)
    Path("full").mkdir()
    Path("full/notes.txt").write_text("mine")
    with pytest.raises(InputError, match=said):
        study.init(Path(name), images and Path(images))
    assert [path.name for path in tmp_path.rglob("*")] == ["full", "notes.txt"]
