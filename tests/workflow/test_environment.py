"""The lists of versions agree, what is downloaded is checked, and make takes torch from the right index."""

import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

LOCKS = ("requirements.lock", "requirements-torch.lock")


def pins(lock):
    """The requirements of a lock file, without their hashes: name to lines."""
    found = {}
    for line in Path(lock).read_text().splitlines():
        if "==" in line:
            found.setdefault(line.split("==")[0], set()).add(line.rstrip("\\ "))
    return found


def test_environment_yml_has_the_versions_of_the_lock_files():
    locked = pins(LOCKS[0]) | pins(LOCKS[1])
    listed = yaml.safe_load(Path("environment.yml").read_text())["dependencies"][-1]["pip"]
    for line in listed:
        assert line in locked[line.split("==")[0]], f"{line} is not in a lock file"
    wanted = {
        re.split(r"[=<>]", line.strip())[0]
        for line in Path("requirements.in").read_text().splitlines()
        if line.strip() and not line.startswith("#")
    }
    assert wanted == {line.split("==")[0] for line in listed}


def test_installed_versions_are_the_locked_ones():
    locked = pins(LOCKS[0]) | pins(LOCKS[1])
    for name in ("torch", "timm", "snakemake", "lpips"):
        (line,) = locked[name]
        assert importlib.metadata.version(name).split("+")[0] == line.split("==")[1]


@pytest.mark.slow
@pytest.mark.parametrize("lock", LOCKS)
def test_every_download_is_checked_against_its_sha256(lock):
    """By pip itself, in the mode that refuses a package without a hash."""
    entries = re.findall(r"^[a-z0-9-]+==.*(?:\n    --hash=.*)*", Path(lock).read_text(), re.MULTILINE)
    assert sum(len(lines) for lines in pins(lock).values()) == len(entries)
    assert all(re.search(r" --hash=sha256:[0-9a-f]{64}( \\|$)", entry) for entry in entries)
    pip = [sys.executable, "-m", "pip", "install", "--dry-run", "--no-index", "--no-deps", "--require-hashes", "-r"]
    done = subprocess.run([*pip, lock], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
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
    torch = next(line for line in done.stdout.splitlines() if "pip install" in line and "grep" in line)
    assert index in torch and ("--index-url" in torch) == bool(index) and "about" in done.stdout
    checked = "--require-hashes -r requirements-torch.lock" in done.stdout
    assert checked == (not index), "the hashes are those of PyPI's torch"
