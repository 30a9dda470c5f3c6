"""Shared by all tests: the project's folder as working directory, one thread, and small models with fixed weights."""

import contextlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import settings

from dearkd import arithmetic
from dearkd.jobs.forkserver import SERVER

# Without a deadline: no test may depend on how fast its machine is.
settings.register_profile("same cases in each run", derandomize=True, deadline=None)
settings.register_profile("new cases in each run", deadline=None)
settings.load_profile(os.environ.get("DEARKD_HYPOTHESIS", "same cases in each run"))

arithmetic.ask()  # as jobs do: what a test computes itself has the bits of what it lets a process compute
PROJECT = Path(__file__).parent.parent

SLOW = "it starts a process or trains: say @pytest.mark.slow (`make test-fast` leaves it out)"
LONGEST = ("test_dag.py", "test_rehearsal.py", "test_faults.py", "test_train.py", "test_synthesize.py")
BRIEF = {"git", "ldconfig", "nvidia-smi", "uname"}
"""What a library or a record may ask in milliseconds."""
_running = {"fast": False}


def pytest_collection_modifyitems(items):
    """What needs a trained project is slow. Files that take minutes begin first, so that none is left to one core."""
    items.sort(key=lambda item: item.path.name not in LONGEST)
    for item in items:
        if "smoke_project" in item.fixturenames:
            item.add_marker("slow")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    _running["fast"] = item.get_closest_marker("slow") is None
    try:
        return (yield)
    finally:
        _running["fast"] = False


def _refuse_processes(event, arguments):
    """Hear of every process as Python starts it, whichever fixture asks for it."""
    if not _running["fast"] or event not in ("subprocess.Popen", "os.fork", "os.posix_spawn"):
        return
    if event == "os.fork" or Path(os.fsdecode(arguments[0])).name not in BRIEF:
        pytest.fail(SLOW)


sys.addaudithook(_refuse_processes)


@pytest.fixture(scope="session")
def server():
    """Socket of a server that forks each `python -m dearkd …`, because importing torch takes most of a test's time.

    All else is as without it, which test_warm.py shows. The mark `cold` keeps a test from it.
    """
    command = [sys.executable, "-m", "dearkd", "warm", "sh", "-c", f'echo "${SERVER}"; exec cat']
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process.stdout.readline().strip()
        process.stdin.close()


@pytest.fixture(autouse=True)
def _in_project(monkeypatch, request):
    monkeypatch.chdir(PROJECT)
    if not _running["fast"] and request.node.get_closest_marker("cold") is None:
        monkeypatch.setenv(SERVER, request.getfixturevalue("server"))
    if torch := sys.modules.get("torch"):
        torch.set_flush_denormal(False)  # a job that a test has run in this process leaves it on; hypothesis minds
    if _running["fast"]:
        monkeypatch.setattr("multiprocessing.process.BaseProcess.start", lambda *_: pytest.fail(SLOW))
        if loop := sys.modules.get("dearkd.train.loop"):
            monkeypatch.setattr(loop.Learner, "step", lambda *_: pytest.fail(SLOW))


def pytest_configure():
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture
def traceable():
    """Shapes in signatures are checked in tests alone, and torch.fx's stand-ins for tensors have none."""
    import jaxtyping

    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def pattern(module):
    """Fill every parameter and running statistic with a fixed pattern, the same on any machine and torch version."""
    import torch

    with torch.no_grad():
        for i, (name, tensor) in enumerate(sorted(module.state_dict().items())):
            if not tensor.is_floating_point():
                continue
            wave = torch.sin(torch.arange(tensor.numel(), dtype=torch.float64) * 1.7 + i)
            scale = 1.5 / max(tensor[0].numel() if tensor.ndim > 1 else 1, 1) ** 0.5
            tensor.copy_((1.2 + 0.5 * wave if name.endswith("running_var") else scale * wave).view_as(tensor))
    return module


def copy_project(folder):
    """What a job needs to run in another folder, so that tests write nothing into the checkout."""
    for name in ("dearkd", "workflow", "profiles", "paper", "Snakefile", "slurm", "snakemake_logger_plugin_dearkd"):
        source = PROJECT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.is_file():
            shutil.copy(source, folder / name)
    return folder


def snakemake(*arguments, cwd, check=True):
    """As `make demo` runs it: jobs of one warm process. A dry run has none."""
    warm = [sys.executable, "-m", "dearkd", "warm"] if "-n" not in arguments else []
    command = [*warm, str(Path(sys.executable).with_name("snakemake")), "--cores", "2", *arguments]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert not check or done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done


@contextlib.contextmanager
def small_disk(folder, kilobytes, options=""):
    """A file system of that size in the place of a folder, with what the folder holds."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a file system")
    kept = [(p, p.read_bytes()) for p in folder.rglob("*") if p.is_file()]
    folder.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("no file system can be mounted here")
    try:
        for path, raw in kept:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(raw)
        if options:
            subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture(scope="session")
def smoke_project(tmp_path_factory):
    """A copy of the project in which the smoke scale's teacher and one DearKD run have really been trained."""
    folder = copy_project(tmp_path_factory.mktemp("smoke"))
    before = Path.cwd()
    os.chdir(folder)
    try:
        from dearkd.jobs.evaluate import evaluate_run
        from dearkd.jobs.subset import list_subsets
        from dearkd.jobs.teacher import admit_teacher
        from dearkd.jobs.train import train_stage
        from dearkd.plan import experiments

        whole = experiments.load("smoke")
        list_subsets(whole, "main")
        train_stage(whole, whole.runs["teacher-main"], 0, "I")
        admit_teacher(whole, "main")
        for stage in ("I", "II"):
            train_stage(whole, whole.runs["dearkd-Ti"], 0, stage)
        evaluate_run(whole, whole.runs["dearkd-Ti"], 0)
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def project(smoke_project, tmp_path, monkeypatch):
    """A private copy of that project, as working directory."""
    folder = tmp_path / "project"
    shutil.copytree(smoke_project, folder)
    monkeypatch.chdir(folder)
    return folder
