"""The two lists of versions agree, and the package installs."""

import re
import subprocess
import sys
from pathlib import Path

import yaml


def pins(lines):
    return {
        re.split("==", line)[0].lower(): line
        for line in (raw.strip() for raw in lines)
        if "==" in line and not line.startswith("#")
    }


def test_environment_yml_has_the_versions_of_the_lock_file():
    locked = {}
    for line in Path("requirements.lock").read_text().splitlines():
        if "==" in line:
            locked.setdefault(line.split("==")[0], set()).add(line.strip())
    listed = yaml.safe_load(Path("environment.yml").read_text())["dependencies"][-1]["pip"]
    for line in listed:
        assert line in locked[line.split("==")[0]], f"{line} is not in requirements.lock"
    wanted = {
        re.split(r"[=<>]", line.strip())[0]
        for line in Path("requirements.in").read_text().splitlines()
        if line.strip() and not line.startswith("#")
    }
    assert wanted == {line.split("==")[0] for line in listed}


def test_installed_versions_are_the_locked_ones():
    import importlib.metadata

    for name in ("torch", "timm", "snakemake", "lpips"):
        locked = next(
            line for line in Path("requirements.lock").read_text().splitlines() if line.startswith(f"{name}==")
        )
        assert importlib.metadata.version(name).split("+")[0] == locked.split("==")[1].split(" ")[0]


def test_pip_install_gives_the_package(tmp_path):
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "--target",
        str(tmp_path / "site"),
        ".",
    ]
    subprocess.run(command, check=True, capture_output=True)
    for leftover in ("build", "dearkd.egg-info"):
        subprocess.run(["rm", "-rf", leftover], check=True)
    done = subprocess.run(
        [sys.executable, "-m", "dearkd", "--help"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "train" in done.stdout and (tmp_path / "site/dearkd/paper.mplstyle").is_file()
