"""Records: one result with its provenance, written atomically and last, read back as it was written.

A record is a small, committed JSON file. Every result in `results/` has one beside it.
"""

import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dearkd import arithmetic, disk
from dearkd.errors import InputError

PACKAGES = ("torch", "torchvision", "timm", "numpy", "lpips", "snakemake")
SEAL = "record_sha256"
TOLD_BY = {
    "stage": "curve",
    "labels": "labels",
    "images": "shard",
    "diversity": "source_fingerprint",
    "evaluation": "run",
    "pretrained": "label",
    "architectures": "architectures",
    "teacher": "features",
    "subset": "subset_seed",
    "presized": "bytes_before",
}
"""Each kind of record, and a field that it has and the kinds after it do not."""
SOURCES = ("dearkd", "workflow", "Snakefile", "paper")
"""Paths in which a change makes the tree dirty, because they decide a result. Results and docs do not."""


def write(path: Path, values: dict[str, Any], beside: Mapping[str, disk.Content] | None = None) -> None:
    """Write a record so that it is whole or absent, after the files `beside` it, by name, whose sha256 it holds.

    Its last line is the sha256 of the rest, by which `read` finds changes. Raises InputError if the file cannot be
    written.
    """
    values = {k: v for k, v in values.items() if k != SEAL}
    if beside:
        values["files"] = {name: disk.sha256_of(content) for name, content in beside.items()}
    sealed = _layout({**values, SEAL: _seal(values)})
    disk.write_all({**{path.with_name(name): content for name, content in (beside or {}).items()}, path: sealed})


def read(path: Path) -> dict[str, Any]:
    """The record at `path`; InputError when it is missing, not as written, or a file beside it is not the one it names.

    Older records without these sha256 are not checked.
    """
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(f"{path}: record is missing") from None
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, or JSON that nobody here writes
        raise InputError(f"{path}: not a whole record ({error}); delete it and run its job again") from None
    if not isinstance(values, dict):
        raise InputError(f"{path}: not a record; delete it and run its job again")
    seal = values.pop(SEAL, None)
    if seal not in (None, _seal(values)):
        raise InputError(f"{path}: changed since it was written; bring it back as it was, or run its job again")
    with whole(path):
        for name, digest in values.get("files", {}).items():
            file = path.with_name(name)
            if not file.is_file() or disk.sha256(file) != digest:
                raise InputError(
                    f"{file}: missing, or not the file that {path} describes; bring it back as it was, or run the "
                    f"record's job again"
                )
    return values


def kind(values: Mapping[str, Any]) -> str:
    """Return the kind of a record, one of `TOLD_BY`. In older records a field tells the kind."""
    return values.get("kind") or next((kind for kind, field in TOLD_BY.items() if field in values), "")


def seconds(values: Mapping[str, Any]) -> float:
    """Return the seconds that all attempts at a job took. Older records have the seconds of one attempt."""
    return values["seconds_all"] if "seconds_all" in values else values["seconds"]


@contextlib.contextmanager
def whole(path: Path) -> Iterator[None]:
    """Context in which missing fields of a record, or fields of another type, raise an InputError that names it."""
    try:
        yield
    except KeyError as error:
        raise InputError(f"{path}: lacks {error}; delete it and run its job again") from None
    except (TypeError, AttributeError, IndexError, ValueError) as error:
        raise InputError(f"{path}: not a whole record ({error}); delete it and run its job again") from None


def _seal(values: dict[str, Any]) -> str:
    """sha256 of a record's content, whatever its layout."""
    plain = json.loads(json.dumps(values))  # keys as text, as they are read back
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def differences(recorded: Any, planned: Any, where: str = "") -> list[str]:
    """Yield the differences between a recorded spec and today's, as sentences 'key: recorded, now planned'.

    Both have every field; the caller fills in the defaults of those that came later than a record.
    """
    if isinstance(recorded, dict) and isinstance(planned, dict):
        return [
            d
            for k in {**recorded, **planned}
            for d in differences(recorded.get(k), planned.get(k), f"{where}.{k}".lstrip("."))
        ]
    if recorded == planned:
        return []
    return [f"{where}: {json.dumps(recorded)} recorded, {json.dumps(planned)} planned"]


def provenance() -> dict[str, Any]:
    """Code, versions, hardware and command of this process."""
    return {
        "git": git_state(),
        "versions": {"python": platform.python_version(), **{p: _version(p) for p in PACKAGES}},
        "hardware": {
            "device": _device_name(),
            "cpu": cpu_name(),
            "cores": os.cpu_count(),
            "platform": platform.platform(terse=True),
            "arithmetic": arithmetic.asked(),
        },
        "command": " ".join([_program(), *sys.argv[1:]]),
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def git_state() -> dict[str, Any]:
    """Commit and whether the sources differ from it. Outside a checkout the commit is what DEARKD_COMMIT says."""

    def git(*args: str) -> str | None:
        try:
            done = subprocess.run(["git", *args], capture_output=True, text=True, timeout=20)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    sha = git("rev-parse", "HEAD")
    changed = git("status", "--porcelain", "--", *(s for s in SOURCES if Path(s).exists()))
    return {"sha": sha or os.environ.get("DEARKD_COMMIT"), "dirty": None if changed is None else bool(changed)}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _device_name() -> str:
    """The GPU that jobs of this process take, or `cpu`; torch is asked only where a job has imported it."""
    torch = sys.modules.get("torch")
    return torch.cuda.get_device_name() if torch and torch.cuda.is_available() else "cpu"


def _program() -> str:
    """Return the command of `sys.argv`. A process that was forked by `dearkd warm` calls itself dearkd."""
    path = Path(sys.argv[0])
    ours = path.parent.name == "dearkd" or path.name == "dearkd"
    return "python -m dearkd" if ours else f"python {Path(*path.parts[-2:])}"


def cpu_name() -> str:
    """The CPU of this machine, as it calls itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _layout(values: dict[str, Any]) -> str:
    """JSON with one top-level key a line, and one line for each entry of a list of mappings (a curve)."""
    lines = []
    for key, value in values.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            rows = ",\n".join(f"  {json.dumps(row)}" for row in value)
            lines.append(f"{json.dumps(key)}: [\n{rows}\n ]")
        else:
            lines.append(f"{json.dumps(key)}: {json.dumps(value)}")
    return "{\n " + ",\n ".join(lines) + "\n}\n"
