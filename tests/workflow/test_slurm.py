"""`snakemake --profile slurm` on a real SLURM, through the ways in which a cluster fails.

However a job was disturbed, its weights and curve are in the end those of an undisturbed run, bit for bit. Needs root,
Debian's slurm-wlm and munge, and a quarter of an hour: `DEARKD_SLURM=required pytest tests/workflow/test_slurm.py`.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import slurm_cluster as cluster
from conftest import copy_project

from dearkd import record

WANTED = os.environ.get("DEARKD_SLURM") == "required"
REASON = cluster.missing() if WANTED else "asked for by DEARKD_SLURM=required, because it takes a quarter of an hour"
if REASON and WANTED:
    pytest.fail(f"no SLURM: {REASON}", pytrace=False)
pytestmark = [pytest.mark.slow, pytest.mark.cold, pytest.mark.skipif(bool(REASON), reason=REASON)]

RESOURCES = "resources: {train: {threads: 1, mem_mb: 2000, runtime: 10, gpu: 1}, evaluate: {mem_mb: 2000, gpu: 1}}\n"
RECORD = "results/faults/runs/dearkd-Ti/seed{}/I.json"
QUICK = ["--slurm-init-seconds-before-status-checks", "2", "--latency-wait", "5"]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """Folder of a running cluster."""
    folder = tmp_path_factory.mktemp("slurm")
    cluster.start(folder)
    yield folder
    cluster.stop(folder)


@pytest.fixture(autouse=True)
def _whole(slurm, request):
    """Each test begins with both nodes idle, and leaves its logs in the report when it fails."""
    cluster.wait_for("idle")
    yield
    subprocess.run(["scancel", "--user", "root"], check=False)
    for name in cluster.NODES:
        subprocess.run(["scontrol", "update", f"NodeName={name}", "State=RESUME"], capture_output=True, check=False)


@pytest.fixture(scope="module")
def undisturbed(smoke_project, tmp_path_factory):
    """A project with subset and teacher, and the records of seeds 0 and 1 as trained without SLURM."""
    folder = tmp_path_factory.mktemp("undisturbed") / "project"
    shutil.copytree(smoke_project, folder)
    for name in ("results", "checkpoints"):
        shutil.rmtree(folder / name / "smoke/runs", ignore_errors=True)
        shutil.rmtree(folder / name / "smoke/dearkd-Ti", ignore_errors=True)
        (folder / name / "smoke").rename(folder / name / "faults")
    (folder / "workflow/scales/faults.yaml").write_text(
        "extends: smoke\nname: faults\nseeds: [0, 1]\nsave_seconds: 1\n"
        "training: {epochs: 60, stage1_epochs: 50, validate_every: 10}\n" + RESOURCES
    )
    return folder, train_here(folder, (0, 1))


def train_here(folder, seeds):
    """The records of these seeds, trained without SLURM; then all of it is taken away."""
    command = [sys.executable, "-m", "dearkd", "train", "dearkd-Ti", "--scale", "faults", "--stage", "I", "--seed"]
    started = [subprocess.Popen([*command, str(seed)], cwd=folder, stdout=subprocess.DEVNULL) for seed in seeds]
    assert [process.wait(600) for process in started] == [0] * len(seeds)
    expected = [record.read(folder / RECORD.format(seed)) for seed in seeds]
    shutil.rmtree(folder / "results/faults/runs")
    shutil.rmtree(folder / "checkpoints/faults/dearkd-Ti")
    return expected


@pytest.fixture
def project(undisturbed, tmp_path):
    folder = tmp_path / "project"
    shutil.copytree(undisturbed[0], folder)
    return folder


def start(folder, *arguments, scale="faults", targets=(RECORD.format(0),)):
    """`snakemake --profile slurm` in the background, where Ctrl-C reaches it even if the tests ignore it."""
    snakemake = str(Path(sys.executable).with_name("snakemake"))
    command = ["env", "--default-signal=INT", snakemake, "--profile", "slurm", *QUICK, *arguments]
    with (folder / "snakemake.log").open("a") as log:
        return subprocess.Popen(
            [*command, "--config", f"scale={scale}", "--", *targets],
            cwd=folder,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        )


def finish(process, folder, seconds=600):
    status = process.wait(seconds)
    assert status == 0, (folder / "snakemake.log").read_text()[-6000:]


def running(folder, seed=0, seconds=240):
    """Number of the SLURM job that trains a seed, once it has saved a checkpoint."""
    state, end = folder / f"checkpoints/faults/dearkd-Ti/seed{seed}/I", time.monotonic() + seconds
    while not list(state.glob("step-*.pt")) or not (state / "lease.json").exists():
        assert time.monotonic() < end, (folder / "snakemake.log").read_text()[-3000:]
        time.sleep(0.1)
    return record.read(state / "lease.json")["job"]


def same(folder, undisturbed, seed=0, attempts=2):
    """The record of a seed, when its weights and curve are those of the undisturbed run."""
    got, expected = record.read(folder / RECORD.format(seed)), undisturbed[1][seed]
    assert got["weights_sha256"] == expected["weights_sha256"] and got["curve"] == expected["curve"]
    assert got["attempts"] == attempts and expected["attempts"] == 1
    return got


def show(job):
    """What SLURM says of a job."""
    text = subprocess.run(
        ["scontrol", "show", "job", "-d", str(job)], capture_output=True, text=True, check=True
    ).stdout
    return dict(re.findall(r"(\w+)=(\S*)", text))


def every_job():
    text = subprocess.run(["scontrol", "show", "job", "-d"], capture_output=True, text=True, check=True).stdout
    return [dict(re.findall(r"(\w+)=(\S*)", block)) for block in text.split("\n\n") if "JobId" in block]


def test_table2_from_a_fresh_clone(slurm, smoke_project, tmp_path):
    """The literal call, to the finished table; never more jobs with a GPU than GPUs, each on one node, one task."""
    folder = copy_project(tmp_path / "clone")
    (folder / "workflow/scales/cluster.yaml").write_text(
        "extends: smoke\nname: cluster\nonly: [table2]\nfractions: [100]\n" + RESOURCES
    )
    before = {job["JobId"] for job in every_job()}
    finish(start(folder, scale="cluster", targets=["table2"]), folder, 500)
    table = (folder / "results/cluster/tables/table2.csv").read_text()
    assert table.count(",measured") == 3 + 2, "three runs and two gaps"
    name = "runs/dearkd-Ti/seed0/II.json"
    expected = record.read(smoke_project / "results/smoke" / name)
    assert record.read(folder / "results/cluster" / name)["weights_sha256"] == expected["weights_sha256"]
    jobs = [job for job in every_job() if job["JobId"] not in before]
    with_gpu = [job for job in jobs if "gres:gpu:1" in job.get("TresPerJob", "")]
    assert len(with_gpu) >= 8 and len(jobs) >= 10
    assert all(job["NumNodes"] == "1" and job["NumTasks"] == "1" for job in jobs)
    moments = sorted({job["StartTime"] for job in with_gpu})
    at_once = [sum(j["StartTime"] <= m < j["EndTime"] for j in with_gpu) for m in moments]
    assert 2 <= max(at_once) <= cluster.GPUS * len(cluster.NODES)


def test_past_its_time_limit_it_saves_is_retried_and_resumes(slurm, project, undisturbed):
    """Two minutes' limit; SLURM looks every 30 s and signals 30 s early, rather than late: 20 to 50 s after the start.

    On this machine the run takes more than a minute, so that it meets the limit and ends after a few attempts.
    """
    epochs = round(50 * 70 / min(each["seconds"] for each in undisturbed[1]))
    scale = project / "workflow/scales/faults.yaml"
    longer = f"epochs: {epochs + 10}, stage1_epochs: {epochs}"
    scale.write_text(scale.read_text().replace("epochs: 60, stage1_epochs: 50", longer))
    undisturbed = project, train_here(project, (0,))
    extra = ["--set-resources", "train:runtime=2", "train:slurm_extra='--signal=URG@70'", "--retries", "20"]
    finish(start(project, *extra), project, 1200)
    attempts = record.read(project / RECORD.format(0))["attempts"]
    got = same(project, undisturbed, 0, attempts)
    assert got["seconds_lost"] < 2, "it saved when it was told"
    assert attempts > 1, "the limit must have been met"


def requeue(project, job, process):
    subprocess.run(["scontrol", "requeue", job], check=True)
    return process


def cancel(project, job, process):
    subprocess.run(["scancel", job], check=True)
    return process


def kill(project, job, process):
    """SIGKILL to the training process, as the kernel does when memory runs out."""
    time.sleep(0.5)
    os.kill(record.read(project / "checkpoints/faults/dearkd-Ti/seed0/I/lease.json")["pid"], signal.SIGKILL)
    return process


def kill_snakemake(project, job, process):
    """The job goes on without Snakemake, which is started again while it runs."""
    process.kill()
    process.wait()
    snakemake = [str(Path(sys.executable).with_name("snakemake")), "--config", "scale=faults"]
    subprocess.run([*snakemake, "--unlock"], cwd=project, check=True, capture_output=True)
    assert show(job)["JobState"] == "RUNNING"
    return start(project)


def interrupt(project, job, process):
    """Ctrl-C: Snakemake cancels its jobs, which save; the same call goes on."""
    process.send_signal(signal.SIGINT)
    process.wait(60)
    return start(project)


DISTURBANCES = (requeue, cancel, kill, kill_snakemake, interrupt)


@pytest.fixture(scope="module")
def disturbed(slurm, undisturbed, tmp_path_factory):
    """(project, number of its first job) by what was done to that job; they run side by side, a GPU each."""
    cluster.wait_for("idle")
    projects, jobs, processes = {}, {}, {}
    for disturb in DISTURBANCES:
        name = disturb.__name__
        projects[name] = tmp_path_factory.mktemp(name) / "project"
        shutil.copytree(undisturbed[0], projects[name])
        processes[name] = start(projects[name])
    for disturb in DISTURBANCES:
        name = disturb.__name__
        jobs[name] = running(projects[name])
        processes[name] = disturb(projects[name], jobs[name], processes[name])
    for name, process in processes.items():
        finish(process, projects[name])
    return {name: (projects[name], jobs[name]) for name in projects}


def test_requeued(disturbed, undisturbed):
    project, job = disturbed["requeue"]
    assert show(job)["Restarts"] == "1"
    same(project, undisturbed)


def test_cancelled_by_hand_it_is_submitted_again(disturbed, undisturbed):
    project, job = disturbed["cancel"]
    assert show(job)["JobState"] == "CANCELLED"
    same(project, undisturbed)


def test_killed_without_a_word(disturbed, undisturbed):
    got = same(disturbed["kill"][0], undisturbed)
    assert got["seconds_all"] > got["seconds"] and got["seconds_all"] >= got["seconds_lost"]


def test_snakemake_killed_and_started_again_while_its_jobs_run(disturbed, undisturbed):
    """The duplicate that the next Snakemake submits waits for the job of the first and takes its result over."""
    project, job = disturbed["kill_snakemake"]
    assert show(job)["JobState"] == "COMPLETED"
    logs = (project / "logs/faults/dearkd-Ti/seed0-I.log").read_text()
    assert f"(job {job}); waiting for it" in logs
    assert same(project, undisturbed)["seconds_lost"] < 2


def test_ctrl_c_of_snakemake(disturbed, undisturbed):
    project, job = disturbed["interrupt"]
    assert show(job)["JobState"] == "CANCELLED"
    assert same(project, undisturbed)["seconds_lost"] < 2


def test_preempted_by_a_higher_partition(slurm, project, undisturbed):
    process = start(project)
    job = running(project)
    urgent = [
        "sbatch",
        "-p",
        "urgent",
        "-N",
        "2",
        "-n",
        "2",
        f"--gpus-per-node={cluster.GPUS}",
        "-t",
        "1",
        "-o",
        "/dev/null",
    ]
    subprocess.run([*urgent, "--wrap", "sleep 5"], check=True, cwd=project, stdout=subprocess.DEVNULL)
    finish(process, project)
    assert show(job)["Restarts"] == "1"
    same(project, undisturbed)


def test_a_drained_node_ends_its_job_and_gets_no_other(slurm, project, undisturbed):
    process = start(project, targets=[RECORD.format(0), RECORD.format(1)])
    job = running(project)
    node = show(job)["NodeList"]
    subprocess.run(["scontrol", "update", f"NodeName={node}", "State=DRAIN", "Reason=test"], check=True)
    finish(process, project)
    assert show(job)["JobState"] == "COMPLETED" and show(job)["Restarts"] == "0"
    for seed in (0, 1):
        same(project, undisturbed, seed, attempts=1)


def test_a_node_that_dies(slurm, project, undisturbed):
    """Every process of the node is gone at once; the job waits its turn and goes on on the other node."""
    process = start(project)
    job = running(project)
    node = show(job)["NodeList"]
    cluster.kill_node(slurm, node)
    try:
        finish(process, project)
    finally:
        cluster.start_node(node)
    assert show(job)["Restarts"] == "1" and show(job)["NodeList"] != node
    same(project, undisturbed)


def test_two_gpus_are_two_processes_of_one_task(slurm, project, undisturbed):
    """torchrun inside one job; the curve is that of one process to 1e-5."""
    scale, curves = project / "workflow/scales/faults.yaml", []
    short = scale.read_text().replace(
        "epochs: 60, stage1_epochs: 50, validate_every: 10", "epochs: 3, stage1_epochs: 2"
    )
    for gpus in (1, 2):
        scale.write_text(short.replace("runtime: 10, gpu: 1", f"runtime: 10, gpu: {gpus}"))
        finish(start(project, "--forcerun", RECORD.format(0)), project)
        values = record.read(project / RECORD.format(0))
        assert values["processes"] == gpus
        curves.append(values["curve"])
        shutil.rmtree(project / "checkpoints/faults/dearkd-Ti")
    for one, two in zip(*curves, strict=True):
        assert two["loss"] == pytest.approx(one["loss"], abs=1e-5)
