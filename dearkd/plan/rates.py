"""The speed of a GPU in forward images/s of each architecture, and the source of each figure.

A figure is *measured* by us, *published* by others, or *derived* from one of these; its note says from which and how.
If there are several, the first in this order counts. Sources: the throughput record of the scale, `MEASURED`
(benchmarks/gpu.sh writes it) and `PUBLISHED`.
"""

import csv
import dataclasses
import json
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dearkd import record
from dearkd.errors import InputError, unknown
from dearkd.plan import cost
from dearkd.plan.plan import Plan, Run

MEASURED = Path("benchmarks/results/gpu.jsonl")
PUBLISHED = Path("benchmarks/results/published.csv")
PAPERS = "v100"
"""The GPU of the paper's Table 3."""
NETS = {
    f"{kind}-{size}": f"{name}_{word}_patch16_224"
    for kind, name in (("DeiT", "deit"), ("DearKD", "dearkd"))
    for size, word in (("Ti", "tiny"), ("S", "small"), ("B", "base"))
}
"""timm names of the students in `MEASURED`."""
WAYS = {"off": ("eager",), "blocks": ("compiled", "eager")}
"""Which measurements count, by `training.compile`: the first one that exists."""


@dataclasses.dataclass(frozen=True)
class Rate:
    """images_s: of a forward pass on one GPU. note: measured, published or derived, and how."""

    images_s: float
    note: str


@dataclasses.dataclass(frozen=True)
class Rates:
    """by_model: by timm name without tag. origin: a sentence on all of them."""

    by_model: dict[str, Rate]
    origin: str

    @property
    def figures(self) -> dict[str, float]:
        return {name: rate.images_s for name, rate in self.by_model.items()}

    def describe(self, models: Iterable[str]) -> str:
        """Return a line for each of these models: its rate and where that comes from."""
        names = sorted({name.partition(".")[0] for name in models} & self.by_model.keys())
        width = max(map(len, names), default=0)
        rates = ((name, self.by_model[name]) for name in names)
        return "\n".join(f"{name:<{width}}  {rate.images_s:>8,.0f}  {rate.note}" for name, rate in rates)


def rates(plan: Plan, gpu: str = "") -> Rates:
    """Return the rates of a GPU (`a100`, `h100`, ...), by default of the one that the scale was measured on, or the
    paper's.

    Raises InputError for a GPU without any figure.
    """
    own = _recorded(plan)
    if own and gpu in own.origin.lower():
        return own
    note = "published: the paper's Table 3, on a V100"
    papers = {name: Rate(rate, note) for name, rate in cost.paper_throughputs().items()} | _guessed()
    measured, published, ways = _measurements(), _published(), WAYS[plan.scale.training.compile]
    gpu = gpu or PAPERS
    found = papers if gpu == PAPERS else _of_published(published.get(gpu, []), ways)
    found |= _of_measured(measured.get(gpu, []), ways)
    if not found:
        raise InputError(unknown(gpu, sorted({PAPERS, *measured, *published}), "GPU", "--gpu"))
    if found == papers:
        return Rates(papers, note)
    return Rates(_completed(found), f"{gpu.upper()}: measured, published or derived, as the lines of `--gpu {gpu}` say")


def gpu_hours(plan: Plan, run: Run) -> tuple[float, str]:
    """(hours of one device for one seed of a run, the source of the throughputs). Jobs that the run waits for are not
    counted.

    Raises InputError when a throughput is not known.
    """
    if not cost.papers(plan):
        raise InputError(
            f"cost: images/s are known only for the paper's architectures, and {plan.scale.name} has others"
        )
    found = rates(plan)
    return cost.run_seconds(plan, run, found.figures) / 3600, found.origin


def _recorded(plan: Plan) -> Rates | None:
    """The rates measured at this scale, in bf16 on a GPU.

    DearKD counts with its bias as a matrix where training takes that path, see `rpe.drop_mode`.
    """
    if not plan.paths.throughput.is_file():
        return None
    values = record.read(plan.paths.throughput)
    rated = {name: each for name, each in values["architectures"].items() if "fp32" in each}
    dense = plan.scale.rpe.path == "dense" or (plan.scale.rpe.drop > 0 and plan.scale.rpe.drop_mode == "element")
    found, origin = _guessed(), ""
    for name, each in rated.items():
        precision = "bf16" if "bf16" in each else "fp32"
        rate = each.get(f"{precision}_dense", each[precision]) if dense else each[precision]
        origin = f"measured: {plan.paths.throughput}, {precision} on {values['hardware']['device']}"
        found[name.partition(".")[0]] = Rate(rate["median"], origin)
    return Rates(found, origin) if rated else None


def _guessed() -> dict[str, Rate]:
    """Rates of networks that no table has, on any GPU."""
    note = "derived: a guess for images of 32 pixels, of which a few percent of a run depend"
    return {name: Rate(rate, note) for name, (rate, _) in cost.SMALL.items()}


def _measurements() -> dict[str, list[dict[str, Any]]]:
    """Lines of `MEASURED` with a rate, by the number in the GPU's name: `h200`, `4090`."""
    found: dict[str, list[dict[str, Any]]] = {}
    for line in MEASURED.read_text().splitlines() if MEASURED.is_file() else ():
        values = json.loads(line)
        number = re.search(r"[a-z]?\d{3,4}", values["card"].lower())
        if number and "images_per_s" in values:
            found.setdefault(number.group(), []).append(values)
    return found


def _of_measured(lines: list[dict[str, Any]], ways: tuple[str, ...]) -> dict[str, Rate]:
    """Forward rates with which `cost` reproduces the measured times of students, RegNetY-16GF and ResNet-101."""
    trained = {(each["what"], each["net"], each["way"]): each["images_per_s"] for each in lines}
    found = {}
    for way in reversed(ways):
        for net, name in NETS.items():
            if rate := trained.get(("stage II", net, way)):
                note = f"measured: ours, trains {rate:,.0f} images/s, {way}, bf16 ({MEASURED})"
                found[name] = Rate(cost.TRAIN * rate, note)
        first, second = (trained.get((what, "DearKD-Ti", way)) for what in ("stage I, labels ahead", "stage II"))
        if first and second:
            note = f"derived: from our stages I and II of DearKD-Ti, {first:,.0f} and {second:,.0f} images/s, {way}"
            found["regnety_160"] = Rate(cost.EARLY / (1 / first - 1 / second), note)
        if rate := trained.get(("synthesis", "ResNet-101, 8 x 42", way)):
            note = f"measured: ours, {rate:,.0f} images x iterations/s of synthesis, {way} ({MEASURED})"
            found["resnet101"] = Rate(cost.TRAIN * rate, note)
    return found


def _published() -> dict[str, list[dict[str, str]]]:
    """Lines of `PUBLISHED` by GPU."""
    found: dict[str, list[dict[str, str]]] = {}
    with PUBLISHED.open(newline="") as file:
        for row in csv.DictReader(file):
            found.setdefault(row["gpu"], []).append(row)
    return found


def _of_published(rows: list[dict[str, str]], ways: tuple[str, ...]) -> dict[str, Rate]:
    """Forward rates. A rate of training counts three times, because the forward pass is a third of the work."""
    found = {}
    for way in reversed(ways):
        for row in (row for row in rows if row["way"] == way):
            rate, trains = float(row["images_s"]), row["what"] == "training"
            verb = "trains" if trains else "forward"
            note = f"{row['basis']}: {verb} {rate:,.0f} images/s, {way}; {row['source']} ({PUBLISHED})"
            found[row["model"]] = Rate(rate * (cost.TRAIN if trains else 1), note)
    return found


def _completed(known: dict[str, Rate]) -> dict[str, Rate]:
    """With the rest of Table 3: the V100's rate times the ratio of the nearest known architecture of the same kind."""
    papers, kinds = cost.paper_throughputs(), cost.paper_kinds()
    found = known | _guessed()
    for name, rate in papers.items():
        near = [other for other in known if other in papers and kinds[other] == kinds.get(name)]
        if name in found or not near:
            continue
        nearest = min(near, key=lambda other: abs(math.log(papers[other] / rate)))
        ratio = known[nearest].images_s / papers[nearest]
        note = f"derived: the paper's V100 figure, {rate:,.0f}, x {ratio:.2f}, the ratio of {nearest}"
        found[name] = Rate(ratio * rate, note)
    return found
