"""Which GPUs a job takes, and a process for each of them. Standard library only.

On a cluster the scheduler gives a job its own GPUs. On one machine with several, where Snakemake only counts them
(`--resources gpu=4`), jobs take them by locks, so that no two share one.
"""

import contextlib
import fcntl
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from dearkd.schema import InputError

VISIBLE = "CUDA_VISIBLE_DEVICES"
ASK_SECONDS = 2.0


def visible() -> list[str]:
    """GPUs that this process may use: those that CUDA_VISIBLE_DEVICES names, or all of the machine."""
    if VISIBLE in os.environ:
        return [name for name in os.environ[VISIBLE].split(",") if name.strip()]
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [str(i) for i, line in enumerate(listed.splitlines()) if line.startswith("GPU ")]


def given(asked: int) -> int:
    """How many GPUs a job takes: as many as `--gpu` says, or, where that is 0, as many as SLURM gave it by `--gres`."""
    return asked or int(os.environ.get("SLURM_GPUS_ON_NODE") or 0)


@contextlib.contextmanager
def claimed(count: int, locks: Path | None = None) -> Iterator[None]:
    """Within, `count` GPUs are the only visible ones and no other job has them; waits until so many are free.

    Nothing is locked where exactly so many are visible, as in a job of a cluster, and in the processes that torchrun
    has started. A job for one GPU runs on the CPU of a machine without any. Raises InputError where several are asked
    for and fewer are visible.
    """
    if count < 0:
        raise InputError(f"--gpu {count}: 0 is the fewest")
    names = [] if count == 0 or "RANK" in os.environ else visible()
    if count > max(len(names), 1) and "RANK" not in os.environ:
        found = f"{len(names)} visible ({', '.join(names)})" if names else "none visible"
        raise InputError(
            f"{count} GPUs asked for, {found}: lower `gpu` under `resources` in the scale, or --gpu; results do not "
            f"depend on the number beyond rounding"
        )
    if not names or len(names) == count:
        yield
        return
    folder = locks or Path(tempfile.gettempdir()) / f"dearkd-gpus-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.lstat().st_uid != os.getuid():
        raise InputError(f"{folder}: belongs to another user; set TMPDIR to a folder of your own")
    told = False
    while len(taken := _take(names, count, folder)) < count:
        _close(taken)
        if not told:
            print(f"waiting for {count} of the GPUs {', '.join(names)}", flush=True)
        told = True
        time.sleep(ASK_SECONDS)
    before = os.environ.get(VISIBLE)
    os.environ[VISIBLE] = ",".join(taken)
    try:
        yield
    finally:
        _close(taken)
        os.environ.pop(VISIBLE)
        if before is not None:
            os.environ[VISIBLE] = before


def _take(names: Sequence[str], count: int, folder: Path) -> dict[str, int]:
    """Locked files of as many free GPUs as there are, up to `count`; locks outlive an exec and end with the process."""
    taken: dict[str, int] = {}
    for name in names:
        file = os.open(folder / name.replace("/", "_"), os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(file)
            continue
        os.set_inheritable(file, True)
        taken[name] = file
        if len(taken) == count:
            break
    return taken


def _close(taken: dict[str, int]) -> None:
    for file in taken.values():
        os.close(file)


def become_processes(count: int, arguments: Sequence[str]) -> None:
    """Become torchrun with `count` processes of `python -m dearkd ARGUMENTS`, which share each batch; never returns."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, *launcher, "-m", "dearkd", *arguments])
