"""The two lists of versions agree, and the package installs."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
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


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere PyPI's torch has no CUDA")
@pytest.mark.parametrize(
    "given, smi, index",
    [
        (["CPU_INDEX=data:,"], False, "--index-url data:,"),
        (["CPU_INDEX=data:,"], True, ""),
        (["CPU_INDEX=file:///nowhere"], False, ""),
        (["CPU_INDEX=data:,", "TORCH_INDEX=pypi"], False, ""),
        (["CPU_INDEX=data:,", "TORCH_INDEX=http://mine"], True, "--index-url http://mine"),
    ],
)
def test_make_takes_the_cpus_torch_where_there_is_no_gpu_and_its_index_answers(tmp_path, given, smi, index):
    """What would be run; `data:,` is an address that always answers, nvidia-smi is one of ours."""
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{'echo GPU 0' if smi else 'exit 9'}\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    if not smi and list(Path("/dev").glob("nvidia0")):
        pytest.skip("this machine has a GPU")
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["make", "-nB", "install", *given], capture_output=True, text=True, env=environment)
    torch = next(line for line in done.stdout.splitlines() if "pip install" in line)
    assert index in torch and ("--index-url" in torch) == bool(index) and "about" in done.stdout
