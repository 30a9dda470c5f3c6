"""python -m benchmarks [NAME ...]: run them one after the other, and write the table and the plots."""

import argparse
import dataclasses
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

from benchmarks import NAMES, compare


def main(arguments: list[str] | None = None) -> int:
    given = options(arguments)
    if given.only_json:
        return _one(given)
    for name in given.names or NAMES:
        _child(name, given)
    from benchmarks import summary

    print(summary.write(given.out))
    return 0


def options(arguments: list[str] | None) -> argparse.Namespace:
    """The command line, read; a name that is none leaves with a sentence and status 2."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="where table and plots go")
    parser.add_argument("--deit", type=Path, help="checkout of https://github.com/facebookresearch/deit")
    parser.add_argument("--deepinversion", type=Path, help="checkout of https://github.com/NVlabs/DeepInversion")
    parser.add_argument("--threads", type=int, default=1, help="of torch; one gives the steadiest ratios")
    parser.add_argument("--only-json", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if unknown := set(given.names) - set(NAMES):
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    return given


def _one(options: argparse.Namespace) -> int:
    """Run one benchmark in this process and print its results and its peak memory as JSON."""
    import torch

    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)
    module = importlib.import_module(f"benchmarks.{options.names[0]}")
    results = [{**dataclasses.asdict(r), "met": r.met} for r in module.run(options)]
    print(json.dumps({"peak_mb": round(compare.peak(), 1), "results": results}))
    return 0


def _child(name: str, options: argparse.Namespace) -> None:
    """Run one benchmark in a process of its own, whose results go to OUT/NAME.json with the machine they are of."""
    from dearkd import record

    given = [
        a for flag in ("deit", "deepinversion") if getattr(options, flag) for a in (f"--{flag}", getattr(options, flag))
    ]
    command = [sys.executable, "-m", "benchmarks", name, "--only-json", "--out", str(options.out)]
    command += ["--threads", str(options.threads), *given]
    print(f"{name} ...", flush=True)
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    for line in found["results"]:
        print(
            f"  {line['name']}, {line['setting']}: {line['ratio']:.2f} ({line['low']:.2f} to {line['high']:.2f}), "
            f"{line['bound']} {line['target']:g}: {'met' if line['met'] else 'NOT MET'}",
            flush=True,
        )
    record.write(options.out / f"{name}.json", {"threads": options.threads, **record.provenance(), **found})


if __name__ == "__main__":
    sys.exit(main())
