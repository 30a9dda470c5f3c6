"""Repeated results beside the committed ones: the same bits, or how different, and whether seeds differ as much."""

import math

import pandas as pd
from scipy import stats

from dearkd import disk
from dearkd.errors import InputError
from dearkd.plan import verify
from dearkd.plan.plan import Plan, Run
from dearkd.report import decimals
from dearkd.report.inference import LEVEL
from dearkd.report.records import entries

COLUMNS = ("run", "seed", "here", "committed", "mean", "sd", "seeds", "verdict")
SAME, ALONE = "same bits", "too few seeds to say"
WITHIN, OUTSIDE = "within the seeds' spread", "outside the seeds' spread"


def frame(here: Plan, committed: Plan) -> pd.DataFrame:
    """One line per run and seed that is evaluated here and, by the same recipe, in the committed scale.

    Columns: run, seed, here and committed (top-1, %), mean, sd and number of the committed seeds, verdict (`judge`, on
    the committed seeds but this one). Raises InputError where nothing can be compared, and as `verify.evaluation`.
    """
    lines = []
    for run in here.runs.values():
        twin = committed.runs.get(run.name)
        if twin is None or _recipe(twin) != _recipe(run):
            continue
        others = {s: _tested(committed, twin, s) for s in twin.seeds if committed.paths.metrics(run.name, s).is_file()}
        for seed in run.seeds:
            if others and here.paths.metrics(run.name, seed).is_file():
                lines.append({"run": run.name, "seed": seed, **_line(_tested(here, run, seed), others, seed)})
    if not lines:
        raise InputError(
            f"no run of {here.scale.name} is evaluated here and in {committed.scale.name} by the same recipe; "
            f"`python -m dearkd status --scale {here.argument}` says what is there"
        )
    return pd.DataFrame(lines, columns=list(COLUMNS))


def judge(top1: float, others: pd.Series) -> str:
    """Whether a result is in the 95 % prediction interval (Student's t) of the results of other seeds."""
    n = len(others)
    if n < 2:
        return ALONE
    half = float(stats.t.ppf((1 + LEVEL) / 2, n - 1)) * float(others.std(ddof=1)) * math.sqrt(1 + 1 / n)
    return WITHIN if abs(top1 - float(others.mean())) <= half + 1e-9 else OUTSIDE


def markdown(found: pd.DataFrame, plan: Plan, committed: Plan) -> str:
    """A sentence of counts and a table."""
    counts = ", ".join(f"{n} {verdict}" for verdict, n in found["verdict"].value_counts().items())
    lines = [
        f"{len(found)} results of `{plan.scale.name}` beside the committed `{committed.scale.name}`: {counts}.",
        "",
    ]
    lines += ["| run | seed | top-1 here | the same seed | mean ± sd (n) | verdict |", "|---" * 6 + "|"]
    for line in entries(found):
        same = "" if math.isnan(line.committed) else decimals.plain(line.committed, 2)
        spread = "" if math.isnan(line.sd) else f" ± {decimals.plain(line.sd, 2)}"
        middle = f"{decimals.plain(line.mean, 2)}{spread} ({line.seeds})"
        here = decimals.plain(line.here, 2)
        lines.append(f"| {line.run} | {line.seed} | {here} | {same} | {middle} | {line.verdict} |")
    return "\n".join(lines) + "\n"


def write(here: Plan, committed: Plan) -> str:
    """Write the comparison beside the tables of `here`; returns its text."""
    text = markdown(frame(here, committed), here, committed)
    disk.write(here.paths.results / "comparison.md", text)
    return text


def _recipe(run: Run) -> list[str]:
    return [run.fingerprint(stage.name) for stage in run.stages]


def _tested(plan: Plan, run: Run, seed: int) -> dict:
    return verify.evaluation(plan, run, seed)[1]


def _line(made: dict, others: dict[int, dict], seed: int) -> dict:
    tested = pd.Series({s: other["metrics"]["top1"] for s, other in others.items()})
    top1, twin = made["metrics"]["top1"], others.get(seed)
    same = twin is not None and twin["weights_sha256"] == made["weights_sha256"]
    return {
        "here": top1,
        "committed": tested.get(seed, math.nan),
        "mean": float(tested.mean()),
        "sd": float(tested.std(ddof=1)),
        "seeds": len(tested),
        "verdict": SAME if same else judge(top1, tested.drop(seed, errors="ignore")),
    }
