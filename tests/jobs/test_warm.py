"""Jobs forked from one warm process: same output, same exit status, same signals, as if each had started by itself."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from dearkd import __main__ as command_line
from dearkd.jobs import forkserver

pytestmark = [pytest.mark.slow, pytest.mark.cold]

JOB = f"{sys.executable} -m dearkd"
TRAIN = f"{JOB} train teacher-main --scale slow.yaml --seed 0 --stage I"


def run(script, warm=True, **environment):
    command = [sys.executable, "-m", "dearkd", "warm"] * warm + ["bash", "-c", script]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, env={**os.environ, **environment}, check=False
    )


@pytest.fixture
def slow(project):
    """A training that takes minutes, of which some steps are done before anything happens to it."""
    (project / "slow.yaml").write_text(
        "extends: smoke\nname: slow\nteachers: {main: {training: {epochs: 5000, stage1_epochs: 5000}}}\n"
    )
    log = project / "log"
    train = f"{JOB} subset main --scale slow.yaml; {TRAIN} > {log} 2>&1 & p=$!;"
    return log, f"{train} until grep -q 'epoch 2' {log}; do sleep 0.1; done;"


def test_a_job_is_the_same_warm_and_cold(project):
    predictions = "results/smoke/runs/dearkd-Ti/seed0/predictions.csv"
    script = f"{JOB} evaluate dearkd-Ti --scale smoke --seed 0; echo status $?; md5sum {predictions}"
    cold, warm = run(script, warm=False), run(script)
    assert warm.returncode == 0 and "status 0" in warm.stdout and warm.stdout == cold.stdout
    spent = r"dearkd evaluate: took [\d.]+ s of processor time and ([\d.]+) GB of memory"
    for done in (cold, warm):  # its own memory, in which torch is, not the client's
        assert float(re.search(spent, done.stderr)[1]) > 0.15


def test_a_mistake_has_its_sentence_and_status():
    done = run(f"{JOB} subset man --scale smoke")
    assert done.returncode == 2
    assert done.stderr == "dearkd subset: scale smoke: unknown data set 'man'; did you mean 'main'?\n"


def test_a_command_may_lie_beside_the_interpreter_of_an_environment_that_is_not_activated():
    warm = [sys.executable, "-m", "dearkd", "warm"]
    bare = {"env": {"PATH": "/usr/bin:/bin"}, "capture_output": True, "text": True, "timeout": 60, "check": False}
    assert re.fullmatch(r"\d+\.\d+\.\d+\n?", subprocess.run([*warm, "snakemake", "--version"], **bare).stdout)
    done = subprocess.run([*warm, "snakemaek", "-c2"], **bare)
    assert done.returncode == 2
    assert done.stderr.startswith("dearkd warm: snakemaek: no such command on PATH; name one to run")


def test_jobs_do_not_import_torch_again(project):
    done = run(f"{JOB} evaluate dearkd-Ti --scale smoke --seed 0", PYTHONPROFILEIMPORTTIME="1")
    assert done.returncode == 0 and len(re.findall(r"\|\s+torch$", done.stderr, re.MULTILINE)) == 1


def test_without_a_server_a_job_runs_by_itself(project):
    done = run(f"{JOB} subset main --scale smoke", warm=False, DEARKD_WARM="/nowhere/socket")
    assert done.returncode == 0, done.stderr


def test_a_signal_reaches_the_job_which_saves(slow):
    log, script = slow
    done = run(f"{script} kill -TERM $p; wait $p; echo status $?")
    assert "status 75" in done.stdout, done.stderr
    assert "saved" in log.read_text()


def test_a_job_whose_client_is_killed_saves_and_stops(slow):
    log, script = slow
    run(f"{script} kill -KILL $p; sleep 3")
    deadline = time.monotonic() + 20
    while "saved" not in log.read_text() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert "saved" in log.read_text()


def test_a_job_that_dies_is_a_failure(slow):
    _, script = slow
    kill = "for parent in $(pgrep -P $PPID); do pkill -KILL -P $parent -f 'dearkd warm'; done"
    done = run(f"{script} {kill}; wait $p; echo status $?")
    assert "status 137" in done.stdout, done.stderr


def test_the_server_ends_with_what_started_it():
    """The process that is killed is the one of `dearkd warm`; its server is its only other child."""
    script = "pgrep -P $PPID | grep -v $$; kill -KILL $PPID"
    server = int(run(script).stdout.split()[0])
    deadline = time.monotonic() + 20
    while Path(f"/proc/{server}").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not Path(f"/proc/{server}").exists()


def test_a_job_has_its_clients_umask_and_limits(project):
    """The file system's limit on a file's size is 1 KB for one job, smaller than what it writes."""
    data = "results/smoke/subsets/main/data.json"
    subset = f"rm -r results/smoke/subsets; {JOB} subset main --scale smoke"
    script = f"umask 077; {subset}; stat -c %a {data}; umask 022; {subset}; stat -c %a {data}; ulimit -f 1; {subset}"
    done = run(f"{script}; echo status $?; nice -n 7 {JOB} subset main --scale smoke")
    assert done.stdout.split() == ["600", "644", "status", "2"]
    assert done.stderr.startswith("dearkd subset: ") and "File too large" in done.stderr


def test_all_that_a_process_inherits_reaches_the_job():
    """Settled in a child of this process, which then has what its request says, and reports it."""
    wanted = forkserver._surroundings()
    wanted["umask"], wanted["nice"], wanted["cores"] = 0o027, wanted["nice"] + 1, wanted["cores"][:1]
    wanted["nohup"] = not wanted["nohup"]
    wanted["limits"] |= {"RLIMIT_STACK": (1 << 20, 1 << 21), "RLIMIT_CORE": (0, 0)}
    code = (
        "import json, sys; from dearkd.jobs import forkserver; forkserver._settle(json.loads(sys.argv[1]));"
        "print(json.dumps(forkserver._surroundings()))"
    )
    done = subprocess.run([sys.executable, "-c", code, json.dumps(wanted)], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == json.loads(json.dumps(wanted))


@pytest.fixture
def listener(tmp_path, monkeypatch):
    """A socket in a folder of the given mode, of the given user; what arrives at it, and all it answers is success."""
    arrived = []

    def listen(mode, user):
        folder = tmp_path / "folder"
        folder.mkdir()
        folder.chmod(mode)
        server = socket.socket(socket.AF_UNIX)
        server.bind(str(folder / "socket"))
        os.seteuid(user)
        server.listen()  # the kernel notes who listens
        os.seteuid(0 if os.getuid() == 0 else os.getuid())
        monkeypatch.setenv(forkserver.SERVER, str(folder / "socket"))

        def answer():
            with server, server.accept()[0] as connection, contextlib.suppress(OSError):
                arrived.append(connection.recv(8))
                connection.sendall(bytes(5))

        threading.Thread(target=answer, daemon=True).start()

    return listen, arrived


@pytest.mark.parametrize("mode, user", [(0o755, os.getuid()), (0o770, os.getuid()), (0o700, 65534)])
def test_another_users_socket_learns_nothing_and_answers_nothing(listener, capsys, mode, user):
    listen, arrived = listener
    if user != os.getuid() and os.getuid() != 0:
        pytest.skip("only root can pretend to be somebody else")
    listen(mode, user)
    assert forkserver.ask(["train"]) is None
    assert "other users can reach this server; the job starts without it" in capsys.readouterr().err
    time.sleep(0.1)
    assert arrived == [b""]


@pytest.mark.parametrize("spelt", [["--gpu", "2"], ["--gpu=2"], ["--gpu", "02"]])
def test_a_job_for_several_gpus_is_no_fork_however_it_is_spelt(spelt, monkeypatch):
    """It becomes torchrun, and the client of a fork would take that for its end."""
    asked = []
    monkeypatch.setenv(forkserver.SERVER, "/somewhere")
    monkeypatch.setattr(forkserver, "ask", lambda arguments: asked.append(arguments) or 0)
    monkeypatch.setattr(command_line, "main", lambda: 7)
    monkeypatch.setattr(sys, "argv", ["dearkd", "train", "r", "--seed", "0", "--stage", "I", *spelt])
    assert command_line.start() == 7 and not asked
    sys.argv[-1] = sys.argv[-1].replace("2", "1")
    assert command_line.start() == 0 and len(asked) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_whatever_asks_snakemake_to_stop_it_stops_once_and_saves(slow, project, number):
    """Sent to the process that a person sees, twice: one sentence, no lock, no orphan, and the weights are kept."""
    command = [sys.executable, "-m", "dearkd", "warm", str(Path(sys.executable).with_name("snakemake")), "-c2"]
    target = ["--logger", "dearkd", "--config", "scale=slow.yaml", "--", "results/slow/runs/teacher-main/seed0/I.json"]
    process = subprocess.Popen([*command, *target], stderr=subprocess.PIPE, text=True, start_new_session=True)
    log, deadline = project / "logs/slow/teacher-main/seed0-I.log", time.monotonic() + 100
    while not (log.exists() and "epoch 2" in log.read_text()):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    for _ in range(2):
        os.killpg(process.pid, number)
        time.sleep(0.05)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert said.count("Stopped: running jobs have saved") == 1 and not re.search("Traceback|Error|failed", said)
    assert not list(project.glob(".snakemake/locks/*"))
    state = project / "checkpoints/slow/teacher-main/seed0/I"
    assert list(state.glob("step-*.pt")) and not (state / "lease.json").exists()
    assert "saved" in log.read_text()
