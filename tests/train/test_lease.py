"""One job at a time for a run, whatever happens to it; what its attempts cost; and GPUs that no two jobs share."""

import contextlib
import errno
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dearkd.errors import InputError
from dearkd.jobs import gpus
from dearkd.train import lease, ledger
from dearkd.train.checkpoint import Checkpoints
from dearkd.train.lease import Lease

pytestmark = pytest.mark.slow

HOLD = "import sys, time, pathlib; from dearkd.train.lease import Lease\nwith Lease(pathlib.Path(sys.argv[1]), 'x'):\n"


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the run."""
    code = f"{HOLD}    print('mine', flush=True); time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "mine\n"
        yield process
        process.kill()


def test_a_second_job_is_refused_by_name_and_leaves_no_trace(tmp_path, holder):
    before = sorted(p.name for p in tmp_path.iterdir())
    with (
        pytest.raises(InputError, match=rf"in use by process {holder.pid} on .*; wait for it or stop it"),
        Lease(tmp_path),
    ):
        pass
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_it_is_taken_over_when_the_holder_was_killed(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with Lease(tmp_path):
        assert json.loads((tmp_path / "lease.json").read_text())["pid"] == os.getpid()
    assert not (tmp_path / "lease.json").exists()


def test_a_job_of_the_workflow_waits_for_it(tmp_path, holder, monkeypatch, capsys):
    monkeypatch.setattr(lease, "ASK_SECONDS", 0.01)
    threading.Timer(0.5, holder.kill).start()
    began = time.monotonic()
    with Lease(tmp_path, wait=True):
        assert time.monotonic() - began > 0.3
    assert capsys.readouterr().out.count("waiting for it") == 1


def elsewhere(tmp_path, age=0.0, **values):
    """The lease of a job on another machine, so many seconds after its last beat."""
    path = tmp_path / "lease.json"
    path.write_text(json.dumps({"host": "elsewhere", "machine": "m", "pid": 1, "job": "7", "boot": "1", **values}))
    os.utime(path, (time.time() - age,) * 2)
    return path


@pytest.fixture
def short_watch(monkeypatch):
    monkeypatch.setattr(lease, "WATCH_SECONDS", 0.5)
    monkeypatch.setattr(lease, "ASK_SECONDS", 0.05)
    monkeypatch.setattr(ledger, "READ_SECONDS", 0.01)


def test_another_machine_is_believed_for_two_minutes_and_then_watched(tmp_path, short_watch):
    elsewhere(tmp_path)
    with pytest.raises(InputError, match=r"process 1 on elsewhere \(job 7\)"), Lease(tmp_path):
        pass
    elsewhere(tmp_path, lease.LEASE_SECONDS + 1)
    began = time.monotonic()
    with Lease(tmp_path):
        assert time.monotonic() - began > 0.4


@pytest.mark.parametrize("ahead", [180, 86_400, -180, -86_400])
def test_a_living_holder_keeps_the_run_whatever_the_clocks_say(tmp_path, short_watch, ahead):
    """Its machine's clock and ours differ; its beats are seen while it is watched."""
    path, over = elsewhere(tmp_path, ahead), threading.Event()

    def beat():
        while not over.wait(0.1):
            os.utime(path, (time.time() - ahead,) * 2)

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(InputError, match="in use by process 1"), Lease(tmp_path):
            pass
    finally:
        over.set()
        thread.join()
    with Lease(tmp_path):
        pass


def test_a_process_of_another_namespace_is_not_looked_up_here(tmp_path, holder):
    """A container may have this host's name, and a process with the holder's number may or may not be in ours."""
    path = tmp_path / "lease.json"
    values = json.loads(path.read_text())
    assert values["machine"] == lease._machine()
    for number in (holder.pid, 2**22 + 1):
        path.write_text(json.dumps({**values, "pid": number, "machine": values["machine"] + "0"}))
        with pytest.raises(InputError, match=f"in use by process {number}"), Lease(tmp_path):
            pass


def test_a_process_that_cannot_be_looked_at_lives(tmp_path, monkeypatch):
    """/proc mounted with hidepid=2 shows no process of another user."""
    elsewhere(tmp_path, machine=lease._machine(), boot="123")
    monkeypatch.setattr(lease, "_started", lambda pid: "running")
    with pytest.raises(InputError, match="in use by process 1"), Lease(tmp_path):
        pass


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "7", '{"pid": 1}', "[" * 9999, '{"host": 1, "pid": "x"}', "\0ÿ"]
)
def test_a_damaged_lease_is_somebodys_until_it_is_silent(tmp_path, short_watch, text):
    path = tmp_path / "lease.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"a job that its damaged lease\.json does not name"), Lease(tmp_path):
        pass
    assert lease.held(tmp_path)
    os.utime(path, (0, 0))
    (tmp_path / "attempt-0007.json").write_text(text)
    (tmp_path / "attempt-x.json").write_text(text)
    with Lease(tmp_path) as mine:
        assert mine.ledger.costs()["attempts"] == 1 and mine.ledger.path.name == "attempt-0008.json"


@pytest.mark.parametrize("times", [1, 3])
def test_a_read_that_fails_takes_nothing_over(tmp_path, holder, short_watch, monkeypatch, times):
    """ESTALE of a network file system: neither a reason to take a run over nor to believe that one's own was taken."""
    failures, opened = [], Path.open

    def stale(self, *arguments, **options):
        if self.name == "lease.json" and len(failures) < times:
            failures.append(self)
            raise OSError(errno.ESTALE, "Stale file handle", str(self))
        return opened(self, *arguments, **options)

    monkeypatch.setattr(Path, "open", stale)
    with pytest.raises(InputError, match=f"in use by process {holder.pid}"), Lease(tmp_path):
        pass
    assert len(failures) == times
    holder.kill()
    holder.wait()
    with Lease(tmp_path) as mine:
        failures.clear()
        mine.check()
        assert len(failures) == times
        times = 10**9
        with pytest.raises(InputError, match=r"lease.json: cannot be read \(Stale file handle\)"):
            mine.check()
        times = 0


def test_of_many_that_find_a_dead_holder_one_gets_it(tmp_path, short_watch):
    """Sixteen processes meet a stale lease at the same moment; the one that takes it keeps it until all have tried."""
    elsewhere(tmp_path, age=time.time())
    context = multiprocessing.get_context("fork")
    ready, won = context.Barrier(16), context.Queue()

    def try_it():
        ready.wait()
        try:
            with Lease(tmp_path):
                won.put(os.getpid())
                ready.wait()
        except InputError:
            ready.wait()

    tries = [context.Process(target=try_it) for _ in range(16)]
    for process in tries:
        process.start()
    for process in tries:
        process.join(60)
    assert won.get(timeout=5) in [p.pid for p in tries] and won.empty()


def test_who_was_taken_over_while_suspended_saves_nothing(tmp_path):
    with Lease(tmp_path, "x") as mine:
        checkpoints = Checkpoints(tmp_path, mine)
        first = checkpoints.save(1, {"step": 1})
        (tmp_path / "lease.json").write_text(json.dumps({"host": "elsewhere", "pid": 2, "job": "", "boot": "2"}))
        with pytest.raises(InputError, match="another job has taken this run over"):
            checkpoints.save(2, {"step": 2})
        assert [p.name for p in tmp_path.glob("step-*")] == [first.name]
    assert (tmp_path / "lease.json").exists(), "it is the other's"


def test_costs_count_all_attempts_and_what_they_lost(tmp_path):
    """Two attempts died: 40 s of which 10 s after the last save, 25 s without any save. A third made something else."""
    now = time.time()
    for number, (began, saved, seen, of) in enumerate(
        [(-100, -70, -60, "x"), (-50, -50, -25, "x"), (-900, -900, -800, "y")], start=1
    ):
        path = tmp_path / f"attempt-{number:04d}.json"
        path.write_text(json.dumps({"of": of, "began": now + began, "saved": now + saved}))
        os.utime(path, (now + seen,) * 2)
    with Lease(tmp_path, "x") as mine:
        costs = mine.ledger.costs()
    assert costs["attempts"] == 3
    assert costs["seconds_all"] == pytest.approx(40 + 25, abs=2) and costs["seconds_lost"] == pytest.approx(35, abs=0.1)


def test_an_attempt_that_ends_in_peace_has_lost_nothing(tmp_path):
    with Lease(tmp_path, "x") as mine:
        Checkpoints(tmp_path, mine).save(1, {})
    with Lease(tmp_path, "x") as mine:
        costs = mine.ledger.costs()
    assert costs["attempts"] == 2 and costs["seconds_lost"] < 1


# -------------------------------------------------------------------------------------------------- GPUs


def held(path, count, seconds, visible="0,1,2"):
    """A process that holds so many GPUs for so long; it says which."""
    code = (
        "import os, sys, time; from pathlib import Path; from dearkd.jobs import gpus\n"
        f"with gpus.claimed({count}, Path(sys.argv[1])):\n"
        f"    print(os.environ['CUDA_VISIBLE_DEVICES'], flush=True); time.sleep({seconds})"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, str(path)],
        stdout=subprocess.PIPE,
        text=True,
        env={k: v for k, v in os.environ.items() if k not in gpus.SCHEDULED} | {"CUDA_VISIBLE_DEVICES": visible},
    )


def test_jobs_on_one_machine_take_different_gpus_and_wait_for_free_ones(tmp_path):
    first, second = held(tmp_path, 1, 600), held(tmp_path, 1, 600)
    taken = {first.stdout.readline().strip(), second.stdout.readline().strip()}
    assert len(taken) == 2
    third = held(tmp_path, 2, 0)
    assert third.stdout.readline() == "waiting for 2 of the GPUs 0,1,2\n".replace(",", ", ")
    first.kill()
    got = set(third.stdout.readline().strip().split(","))
    assert len(got) == 2 and len(got & taken) == 1
    second.kill()
    for process in (first, second, third):
        process.communicate(timeout=30)


def test_too_few_gpus_is_said_and_one_on_a_machine_without_is_a_cpu(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    said = r"the job needs 8 GPUs, and 2 are visible \(0, 1\); lower `gpu` under `resources`"
    with pytest.raises(InputError, match=said), gpus.claimed(8):
        pass
    with gpus.claimed(2):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,1"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(InputError, match="the job needs 8 GPUs, and none is visible; lower"), gpus.claimed(8):
        pass
    for count, said in ((-1, "--gpu -1: write 0 or more"), (float("nan"), "--gpu nan"), (float("inf"), "--gpu inf")):
        with pytest.raises(InputError, match=said), gpus.claimed(count):
            pass
    with pytest.raises(InputError, match=r"--gpu 1\.5: write a whole number of GPUs"), gpus.claimed(1.5):
        pass
    for count in (1, 0.25):
        with gpus.claimed(count):
            pass


def test_shares_fill_a_gpu_and_a_whole_one_waits_for_all_of_them(tmp_path):
    """Half, 0.3 and 0.2 fit on one GPU of which a quarter more does not; a killed job gives its share back."""
    shares = [held(tmp_path, share, 600, "7") for share in (0.5, 0.3, 0.2)]
    assert [process.stdout.readline().strip() for process in shares] == ["7"] * 3
    quarter, whole = held(tmp_path, 0.25, 600, "7"), held(tmp_path, 1, 0, "7")
    assert quarter.stdout.readline() == "waiting for 0.25 of the GPUs 7\n"
    assert whole.stdout.readline() == "waiting for 1 of the GPUs 7\n"
    shares[1].kill()
    assert quarter.stdout.readline().strip() == "7"
    for process in (shares[0], shares[2], quarter):
        process.kill()
    assert whole.stdout.readline().strip() == "7"
    for process in (*shares, quarter, whole):
        process.communicate(timeout=30)


def test_a_share_goes_where_others_are_and_leaves_whole_gpus_free(tmp_path, monkeypatch):
    for name in gpus.SCHEDULED:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    with contextlib.ExitStack() as stack:
        for count, expected in ((0.25, "0"), (0.5, "0"), (0.3, "1"), (0.2, "0"), (1, "2"), (0.7, "1")):
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
            stack.enter_context(gpus.claimed(count, tmp_path))
            assert os.environ["CUDA_VISIBLE_DEVICES"] == expected
            assert gpus.spent("cuda", 100.0) == 100 * count and gpus.spent("cpu", 100.0) == 0
    with gpus.claimed(3, tmp_path):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,1,2" and gpus.spent("cuda", 10.0, 3) == 30


@settings(max_examples=50)
@given(st.lists(st.one_of(st.floats(0.001, 1), st.integers(1, 3)), max_size=8))
def test_no_gpu_is_ever_given_out_twice(counts):
    """Whatever is asked for: the locks of a GPU are exclusive, each job has its share in full or nothing at all."""
    with tempfile.TemporaryDirectory() as folder:
        jobs = []
        for count in counts:
            taken = gpus._take(["0", "1", "2"], count, Path(folder))
            assert not taken or len(taken) == max(int(count), 1)
            jobs += [(count, taken)]
        for name in "012":
            used = [count for count, taken in jobs if name in taken]
            assert sum(min(count, 1) for count in used) <= 1
        for _, taken in jobs:
            gpus._close(taken.values())
        everything = gpus._take(["0", "1", "2"], 3, Path(folder))
        assert len(everything) == 3, "a lock was left behind"
        gpus._close(everything.values())


def test_what_a_scheduler_gave_is_not_locked(tmp_path, monkeypatch):
    """On a node of SLURM each job may call its own GPU `0`."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    with gpus.claimed(0.75, tmp_path), gpus.claimed(1, tmp_path):
        assert gpus.spent("cuda", 100.0) == 100, "a whole GPU of SLURM's"
    assert not list(tmp_path.iterdir())


def test_gpus_that_slurm_gave_by_gres_are_taken_though_none_is_asked_for(monkeypatch):
    monkeypatch.delenv("SLURM_GPUS_ON_NODE", raising=False)
    assert [gpus.given(n) for n in (0, 1, 8)] == [0, 1, 8]
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "4")
    assert [gpus.given(n) for n in (0, 1, 8)] == [4, 1, 8]
    assert [gpus.given(*each) for each in ((1, 25), (1, 100), (0, 25), (8, 800), (2, 25))] == [0.25, 1, 4, 8, 2]
