"""Which bits do short trainings end with on this CPU, and what does it cost to ask for the same bits on every CPU?

    python -m benchmarks.bits

A CPU's vector units decide in which order PyTorch, oneDNN and MKL add. `WAYS` are the environments that narrow their
choice. Each trains a CNN, a DeiT and a DearKD for some epochs and makes synthetic images, one process a job, as the
workflow does. A line of benchmarks/results/bits.csv is one job: the CPU, the way, the sha256 of what it made, and its
seconds of processor time, of which about three start each process. Where two CPUs have the same sha256 under one way,
that way gives the same bits on both.
"""

import csv
import hashlib
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from dearkd import arithmetic, record

WAYS = {
    "all that the CPU has": {"DEARKD_ARITHMETIC": "native"},
    "AVX2": arithmetic.EVERYWHERE,
    "AVX2, MKL compatible": {**arithmetic.EVERYWHERE, "MKL_CBWR": "COMPATIBLE"},
}
SCALE = """\
extends: digits
name: bits
summary: short trainings
seeds: [0]
teachers: {main: {top1: 50, tolerance: 50, training: {epochs: 30, stage1_epochs: 30, validate_every: 30}}}
training: {epochs: 45, stage1_epochs: 30, warmup_epochs: 5, validate_every: 45}
synthesis: {images: 40, per_class: 4, phases: [{size: 12, iterations: 300, lr: 0.2}]}
"""
JOBS = {
    "convnet_micro": ("train teacher-main --stage I --seed 0", "teacher main"),
    "DeiT-Ti": ("train deit-Ti --stage I --seed 0",),
    "DearKD-Ti": ("train dearkd-Ti --stage I --seed 0", "train dearkd-Ti --stage II --seed 0"),
    "DF-DearKD's images": ("synthesize df_dearkd --seed 0 --shard 0",),
}
ROOT = Path(__file__).parent.parent
OUT = ROOT / "benchmarks/results/bits.csv"
COLUMNS = ("cpu", "torch", "way", "job", "sha256", "seconds")


def main() -> None:
    hardware, lines = record.provenance()["hardware"]["cpu"], []
    for way, environment in WAYS.items():
        with tempfile.TemporaryDirectory() as folder:
            for name in ("workflow", "paper"):
                (Path(folder) / name).symlink_to(ROOT / name)
            (Path(folder) / "bits.yaml").write_text(SCALE)
            _run("subset main", folder, environment)
            for job, verbs in JOBS.items():
                before, started = _files(folder), _seconds()
                for verb in verbs:
                    _run(verb, folder, environment)
                seconds = _seconds() - started
                made = hashlib.sha256(b"".join(p.read_bytes() for p in sorted(_files(folder) - before))).hexdigest()
                lines.append(dict(zip(COLUMNS, (hardware, _torch(), way, job, made, round(seconds, 1)), strict=True)))
                print(*lines[-1].values(), flush=True)
    kept = [line for line in _lines() if (line["cpu"], line["torch"]) != (hardware, _torch())]
    with OUT.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows([*kept, *lines])


def _files(folder: str) -> set[Path]:
    """What jobs make beside their records, which name times and machines."""
    return {p for kind in ("*.safetensors", "*.zip") for p in Path(folder).rglob(kind)}


def _run(verb: str, folder: str, environment: dict[str, str]) -> None:
    command = [sys.executable, "-m", "dearkd", *verb.split(), "--scale", "bits.yaml"]
    given = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **environment}
    subprocess.run(command, cwd=folder, env=given, check=True, stdout=subprocess.DEVNULL)


def _seconds() -> float:
    """Processor time of the jobs so far, so that what else the machine does counts little."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _torch() -> str:
    return record.provenance()["versions"]["torch"]


def _lines() -> list[dict[str, str]]:
    if not OUT.is_file():
        return []
    with OUT.open(newline="") as file:
        return list(csv.DictReader(file))


if __name__ == "__main__":
    main()
