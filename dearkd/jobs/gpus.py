"""The GPUs that a job takes, and a process for each of them. Standard library only.

On a cluster the scheduler gives a job its own GPUs. Elsewhere Snakemake only counts GPUs
(`--resources gpu_percent=400`), and jobs take them by locks: whole GPUs, or a share of a GPU beside other jobs. Each
GPU has `SLOTS` locks, and a share takes its part of them, rounded up. Shares only limit how many jobs run together.
They do not limit the time or memory of a job.
"""

import contextlib
import fcntl
import itertools
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from dearkd.errors import InputError

VISIBLE = "CUDA_VISIBLE_DEVICES"
ASK_SECONDS = 2.0
SLOTS = 20
"""Number of locks of a GPU. A share is therefore a multiple of 5 %."""
SHARE = "DEARKD_GPU_SHARE"
"""Environment variable with the share of a GPU that this job has."""
SCHEDULED = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "KUBERNETES_SERVICE_HOST")
"""Where one of these is set, a scheduler chose the visible GPUs for this job alone."""


def visible() -> list[str]:
    """GPUs that this process may use: those that CUDA_VISIBLE_DEVICES names, or all of the machine."""
    if VISIBLE in os.environ:
        return [name for name in os.environ[VISIBLE].split(",") if name.strip()]
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [str(i) for i, line in enumerate(listed.splitlines()) if line.startswith("GPU ")]


def given(asked: int | float, percent: int = 100) -> int | float:
    """Number of GPUs that a job takes: as many as `--gpu` says, or `percent` of one GPU where it says 1.

    Where `--gpu` is 0, the job takes as many as SLURM gave it by `--gres`.
    """
    if asked == 1 and 0 < percent < 100:
        return percent / 100
    return asked or int(os.environ.get("SLURM_GPUS_ON_NODE") or 0)


def spent(device_type: str, seconds: int | float, processes: int = 1) -> float:
    """GPU-seconds of a job: its seconds, times its processes, times its share of a GPU; 0 on a CPU."""
    return round(seconds * processes * float(os.environ.get(SHARE, 1)), 2) if device_type == "cuda" else 0.0


@contextlib.contextmanager
def claimed(count: int | float, locks: Path | None = None) -> Iterator[None]:
    """Within, only `count` GPUs are visible and no other job has them. Waits until so many are free.

    A count below 1 is a share of one GPU, and jobs whose shares sum to at most 1 have the GPU together. Nothing is
    locked where a scheduler made exactly so many visible, and in the processes that torchrun has started. A job for one
    GPU or a share runs on the CPU of a machine without a GPU. Raises InputError where several GPUs are asked for and
    fewer are visible, and for a count above 1 that is not a whole number.
    """
    if not 0 <= count < math.inf:
        raise InputError(f"--gpu {count:g}: write 0 or more")
    if count > 1 and count != int(count):
        raise InputError(f"--gpu {count:g}: write a whole number of GPUs, or a share of one GPU below 1, such as 0.25")
    whole = math.ceil(count)
    names = [] if count == 0 or "RANK" in os.environ else visible()
    if whole > max(len(names), 1) and "RANK" not in os.environ:
        found = f"{len(names)} are visible ({', '.join(names)})" if names else "none is visible"
        raise InputError(
            f"the job needs {whole} GPUs, and {found}; lower `gpu` under `resources` in the scale, or --gpu. Results "
            f"do not depend on the number beyond rounding"
        )
    if not names or (len(names) == whole and any(name in os.environ for name in SCHEDULED)):
        yield
        return
    folder = locks or Path(tempfile.gettempdir()) / f"dearkd-gpus-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.lstat().st_uid != os.getuid():
        raise InputError(f"{folder}: belongs to another user; set TMPDIR to a folder of your own")
    told = False
    while not (taken := _take(names, count, folder)):
        if not told:
            print(f"waiting for {count:g} of the GPUs {', '.join(names)}", flush=True)
        told = True
        time.sleep(ASK_SECONDS)
    own = {VISIBLE: ",".join(taken), SHARE: str(min(count, 1))}
    before = {name: os.environ.get(name) for name in own}
    os.environ.update(own)
    try:
        yield
    finally:
        _close(taken.values())
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def _take(names: Sequence[str], count: int | float, folder: Path) -> dict[str, list[int]]:
    """Locked files by GPU, or nothing where too few are free. Locks outlive an exec and end with the process.

    A share goes to the fullest GPU that has room, which leaves whole GPUs to others. A job that looks for locks holds
    the gate, so that two jobs never hold half of what both need.
    """
    slots = math.ceil(round(min(count, 1) * SLOTS, 6))
    gate = os.open(folder / "gate", os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(gate, fcntl.LOCK_EX)
        free = {name: _lock(folder, name) for name in names}
        fitting = sorted((name for name in names if len(free[name]) >= slots), key=lambda name: len(free[name]))
        chosen = fitting[: math.ceil(count)] if len(fitting) >= count else []
        for name, files in free.items():
            _close([files[slots:] if name in chosen else files])
        return {name: free[name][:slots] for name in names if name in chosen}
    finally:
        os.close(gate)


def _lock(folder: Path, name: str) -> list[int]:
    """Files of the slots of a GPU that were free, locked."""
    taken = []
    for slot in range(SLOTS):
        file = os.open(folder / f"{name.replace('/', '_')}.{slot}", os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(file)
            continue
        os.set_inheritable(file, True)
        taken.append(file)
    return taken


def _close(files: Iterable[list[int]]) -> None:
    for file in itertools.chain.from_iterable(files):
        os.close(file)


def become_processes(count: int, arguments: Sequence[str]) -> None:
    """Become torchrun with `count` processes of `python -m dearkd ARGUMENTS`, which share each batch. Never returns."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, *launcher, "-m", "dearkd", *arguments])
