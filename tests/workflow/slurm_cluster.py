"""A real SLURM on this machine: two nodes with three pretend GPUs each, from Debian's packages slurm-wlm and munge.

    python tests/workflow/slurm_cluster.py start|stop [FOLDER]

Root only, without systemd and cgroups; starts in seconds. The configuration must lie in /etc/slurm, because the jobs
of Snakemake's plugin see no other; one that is not ours is left alone.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

ETC = Path("/etc/slurm")
MARK = "# written by tests/workflow/slurm_cluster.py"
NODES = {"n1": 16821, "n2": 16822}
GPUS = 3
"""Of each node."""

CONFIG = """{mark}
ClusterName=pretend
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=sched_interval=2,bf_interval=2
# a requeued job becomes eligible after this many seconds, 120 by default
AuthInfo=cred_expire=5
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
GresTypes=gpu
MinJobAge=3600
KillWait=30
SlurmdTimeout=12
ReturnToService=2
StateSaveLocation={folder}/ctld
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdSpoolDir={folder}/%n
SlurmdPidFile={folder}/%n.pid
SlurmdLogFile={folder}/%n.log
SlurmdParameters=config_overrides
{nodes}
PartitionName=gpu Nodes={names} Default=YES MaxTime=INFINITE DefaultTime=60 DefMemPerCPU=100 PriorityTier=1 State=UP
PartitionName=urgent Nodes={names} MaxTime=INFINITE DefaultTime=60 DefMemPerCPU=100 PriorityTier=2 State=UP
"""
NODE = (
    "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} Sockets=1 CoresPerSocket=16 ThreadsPerCore=1 "
    "RealMemory=64000 Gres=gpu:{gpus} State=UNKNOWN"
)


def missing() -> str:
    """Why there can be no SLURM here; empty when there can."""
    absent = [name for name in ("slurmctld", "slurmd", "munged", "sbatch") if shutil.which(name, path=_path()) is None]
    if absent:
        return f"{', '.join(absent)} not found: apt-get install slurm-wlm munge"
    if os.geteuid() != 0:
        return "only root can start slurmd"
    config = ETC / "slurm.conf"
    if config.exists() and not config.read_text().startswith(MARK):
        return f"{config} belongs to a real cluster"
    return ""


def start(folder: Path) -> None:
    """Start munge, the controller and the nodes, and wait until they are idle."""
    host = socket.gethostname().split(".")[0]
    (folder / "ctld").mkdir(parents=True, exist_ok=True)
    gres = []
    for name in NODES:
        (folder / name).mkdir(exist_ok=True)
        for i in range(GPUS):
            device = folder / f"{name}-gpu{i}"
            if not device.exists():
                os.mknod(device, 0o600 | 0o020000, os.makedev(1, 3))  # a null device: plain files set no GPU number
        gres.append(f"NodeName={name} Name=gpu File={folder}/{name}-gpu[0-{GPUS - 1}]")
    ETC.mkdir(exist_ok=True)
    nodes = "\n".join(NODE.format(name=n, host=host, port=p, gpus=GPUS) for n, p in NODES.items())
    names = ",".join(NODES)
    (ETC / "slurm.conf").write_text(CONFIG.format(mark=MARK, host=host, folder=folder, nodes=nodes, names=names))
    (ETC / "gres.conf").write_text("\n".join(gres) + "\n")
    if subprocess.run(["munge", "-n"], capture_output=True).returncode != 0:
        Path("/run/munge").mkdir(mode=0o755, parents=True, exist_ok=True)
        shutil.chown("/run/munge", "munge", "munge")
        subprocess.run(["runuser", "-u", "munge", "--", shutil.which("munged", path=_path())], check=True)
    subprocess.run(["slurmctld", "-c"], check=True, env=_environment())
    for name in NODES:
        start_node(name)
    wait_for("idle")


def start_node(name: str) -> None:
    subprocess.run(["slurmd", "-c", "-N", name], check=True, env=_environment())


def kill_node(folder: Path, name: str) -> None:
    """Let a node die as a power cut would: its daemon and every process of its jobs are gone at once."""
    jobs = _ask("squeue", "-h", "-w", name, "-o", "%A").split()
    victims = [int((folder / f"{name}.pid").read_text())]
    for process in Path("/proc").glob("[0-9]*"):
        try:
            environment = (process / "environ").read_bytes().decode(errors="replace").split("\0")
            command = (process / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if any(f"SLURM_JOB_ID={job}" in environment or f"slurmstepd: [{job}." in command for job in jobs):
            victims.append(int(process.name))
    for number in victims:
        with contextlib.suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)


def wait_for(state: str, seconds: float = 60.0) -> None:
    """Wait until all nodes have a state, such as `idle`."""
    end = time.monotonic() + seconds
    while (found := set(_ask("sinfo", "-h", "-N", "-o", "%T").split())) != {state}:
        if time.monotonic() > end:
            raise TimeoutError(f"nodes are {found}, not {state}")
        time.sleep(0.2)


def stop(folder: Path) -> None:
    """End all jobs and daemons, and take the configuration away."""
    subprocess.run(["scancel", "--user", "root"], capture_output=True)
    time.sleep(1)
    for file in [*folder.glob("n*.pid"), folder / "slurmctld.pid"]:
        if file.exists():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(file.read_text()), signal.SIGTERM)
    for name in ("slurm.conf", "gres.conf"):
        (ETC / name).unlink(missing_ok=True)


def _ask(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def _path() -> str:
    return os.environ["PATH"] + ":/usr/sbin:/sbin"


def _environment() -> dict[str, str]:
    return {**os.environ, "PATH": _path()}


if __name__ == "__main__":
    verb, folder = sys.argv[1], Path(sys.argv[2] if len(sys.argv) > 2 else "/tmp/slurm-pretend")
    if reason := missing():
        sys.exit(reason)
    {"start": start, "stop": stop}[verb](folder)
