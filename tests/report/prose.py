"""Numbers of committed files as prose has them, for the sentences of test_prose.py."""

import functools
import re
from pathlib import Path

import pandas as pd

from dearkd.plan import experiments
from dearkd.plan.plan import Plan
from dearkd.report import unfinished
from dearkd.report.claims import verdicts

BIG, SMALL = "converged", "digits"
MADE = ("DeepInversion", "ADI", "DF-DearKD")


@functools.cache
def table(scale, name):
    return pd.read_csv(f"results/{scale}/tables/{name}.csv")


def cell(name, row, metric="top1", scale=SMALL, **keys):
    """The line of a table's cell: mean, sd, n, paper."""
    found = table(scale, name)
    found = found[(found["row"] == row) & (found["metric"] == metric)]
    for key, value in keys.items():
        found = found[found[key] == value]
    (line,) = found.itertuples()
    return line


def mean(name, row, metric="top1", scale=SMALL, places=1, **keys):
    return f"{cell(name, row, metric, scale, **keys).mean:z.{places}f}".replace("-", "− ")


def spread(name, row, metric="top1", scale=SMALL, places=1, n=False, **keys):
    """mean ± sd, with the number of seeds where `n` asks for it."""
    line = cell(name, row, metric, scale, **keys)
    return f"{line.mean:.{places}f} ± {line.sd:.{places}f}{f' ({line.n})' * n}"


@functools.cache
def claims(scale):
    return pd.read_csv(f"results/{scale}/claims.csv", index_col="id")


def verdict(scale, *ids):
    """The verdict that these claims have in common; empty where they differ."""
    found = {claims(scale).loc[id, "verdict"] for id in ids}
    return found.pop() if len(found) == 1 else ""


def margin(id, sign="", above=0):
    """A claim's margin at `converged`, as prose has it: 1.1 [0.2, 1.9]. above: the number that the claim asks for."""
    return bracket(*(claims(BIG).loc[id, c] + above for c in ("margin", "low", "high")), sign)


def bracket(middle, low, high, sign=""):
    middle, low, high = (f"{value:z.1f}".replace("-", "−") for value in (middle, low, high))
    return f"{sign * (middle[0] != '−' and float(middle) > 0)}{middle} [{low}, {high}]"


@functools.cache
def savings(scale):
    return Path(f"results/{scale}/savings.md").read_text()


@functools.cache
def leads(scale):
    """(mean, low, high) of what DearKD is above a method at a share of the images, by both, where there are seeds."""
    rows = [line.strip("| ").split(" | ") for line in savings(scale).splitlines() if line.startswith("|")]
    shares = [int(re.match(r"\d+", head)[0]) for head in rows[0][1:]]
    found = {}
    for row in rows[2:]:
        for share, text in zip(shares, row[1:], strict=False):
            if bracketed := re.match(r"(\S+) \[(\S+), (\S+)\]", text):
                found[row[0], share] = tuple(map(float, bracketed.groups()))
    return found


def lead(label, share, sign=""):
    return bracket(*leads(BIG)[label, share], sign)


def holm(scale):
    """How many claims hold and fail after Holm's correction."""
    firm = claims(scale).query("holm < 0.05")["verdict"].value_counts()
    return " and ".join(
        verdicts.with_verdict(firm.get(v, 0), v) for v in ("holds", "fails") if v in firm or v == "holds"
    )


def counted(scale):
    return f"Of the paper's {len(claims(scale))} claims {verdicts.counted(claims(scale)['verdict'].value_counts())}"


def failing(scale):
    """The claims that fail, in words."""
    found = claims(scale).query("verdict == 'fails'")["statement"]
    return "; ".join(f"{re.sub(r' [(][^()]*[)]$', '', text)} ({id})" for id, text in found.items())


@functools.cache
def plan(scale) -> Plan:
    return experiments.load(scale)


def so_far(scale, number):
    """How many of its results a table has: 146 of 192."""
    lacking, planned = map(sum, zip(*unfinished.counts(plan(scale), f"table{number}").values(), strict=True))
    return f"{planned - lacking} of {planned}"


def whole(scale, *numbers):
    return not any(unfinished.lacks(plan(scale), f"table{number}") for number in numbers)


def t1(row, scale=BIG, n=True):
    return spread("table1", row, scale=scale, n=n)


def t2(row, fraction, scale=SMALL, n=False):
    return spread("table2", row, scale=scale, n=n, fraction=fraction)


def gain(row, over="baseline"):
    """What a row of the paper's Table 1 is above another."""
    return f"{cell('table1', row).paper - cell('table1', over).paper:.1f}"


def free(row, size, scale=BIG):
    """Accuracy of Table 5; without a spread where there is one seed."""
    line = cell("table5", row, scale=scale, student=size)
    return f"{line.mean:.1f} (1)" if line.n == 1 else spread("table5", row, scale=scale, student=size, n=True)


def lpips(row, metric="lpips"):
    """Mean LPIPS of Table 6 at `converged`."""
    return f"{cell('table6', row, metric, BIG).mean:.3f}"


def lpips_made(metric="lpips"):
    """The same of the three synthetic sets: the smallest and the largest."""
    found = sorted(lpips(row, metric) for row in MADE)
    return f"{found[0]} to {found[-1]}"


def paper(name, row, metric="top1", over="", **keys):
    """The paper's number, or by how much it is above that of another row."""
    less = cell(name, over, metric, **keys).paper if over else 0
    return f"{cell(name, row, metric, **keys).paper - less:.1f}"


def saved(label, said):
    """Whether the page of differences says so of a method."""
    return any(said in line for line in savings(BIG).splitlines() if f"beats {label} on all" in line)


def above(label, *shares):
    return all(leads(BIG)[label, share][1] > 0 for share in shares)


def no_difference(label, *shares):
    return all(low <= 0 <= high for share in shares for _, low, high in [leads(BIG)[label, share]])


@functools.cache
def distances(scale):
    """Mean attention distance over the seeds by row, layer and epoch."""
    frame = pd.read_csv(f"figures/{scale}/figure4.csv")
    return frame.groupby(["row", "layer", "epoch"])["value"].mean()


def at_end(scale, row, *layers):
    found = distances(scale)[row].unstack("epoch")
    return sorted(found.loc[list(layers), found.columns.max()])


def grown(scale, *layers):
    """What the distance gains after the switch, on average over these layers."""
    found = distances(scale)["DearKD-Ti"].unstack("epoch").loc[list(layers)]
    switch = plan(scale).runs["dearkd-Ti"].stages[0].last_epoch
    return float((found[found.columns.max()] - found[switch]).mean())
