"""Which of the paper's claims hold at which scale: one table over the claims files of all scales."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from dearkd import disk
from dearkd.errors import InputError
from dearkd.plan.scale_file import load_scale
from dearkd.report import escaping
from dearkd.report.claims.judge import CLAIMS, FAILS, HOLDS, NOISE, NOT_MEASURED, ONE_SEED, Claim, read_lines

RESULTS = Path("results")
PAGE = RESULTS / "claims.md"
PAPERS = "the paper's numbers"
"""Name of the column of the verdicts on the paper's own numbers, of ImageNet."""
ORDER = (HOLDS, FAILS, NOISE, ONE_SEED, NOT_MEASURED)
EXPLAINED = (
    "A claim *holds* when the 95 % interval of its margin is above 0, *fails* when it is below 0, and is *within "
    "noise* otherwise. In brackets is the number of seeds, the least of its comparisons. A number without seeds "
    "decides by its sign. *one seed* is no verdict, because one seed has no spread. *–* means not measured, because "
    "the scale has not trained all that the claim needs. A scale's own page has the margins, their intervals, and "
    "p-values corrected for the number of claims. All verdicts of a scale come from the same images. Only other data "
    "can show whether an effect is general."
)


def measured() -> list[str]:
    """Names of the scales whose claims have been judged here."""
    return sorted(path.parent.name for path in RESULTS.glob("*/claims.csv"))


def matrix(scales: Sequence[str]) -> pd.DataFrame:
    """A line per claim: its statement, the verdict at each of the scales, one or more, and on the paper's numbers.

    A claim that a scale's file does not have is not measured there. Raises InputError naming a scale without a file of
    claims, with the command that writes it, or a file that is damaged.
    """
    claims = read_lines(CLAIMS, Claim)
    found = pd.DataFrame({"statement": [c.statement for c in claims]}, index=[c.id for c in claims])
    columns = {scale: _judged(scale)["verdict"] for scale in scales} | {PAPERS: _judged(scales[0])["paper_verdict"]}
    for name, verdicts in columns.items():
        found[name] = verdicts.reindex(found.index, fill_value=NOT_MEASURED)
    return found


def _judged(scale: str) -> pd.DataFrame:
    path = RESULTS / scale / "claims.csv"
    if not path.is_file():
        raise InputError(f"{path}: missing; judge its claims with `snakemake -c2 --config scale={scale} -- claims`")
    try:
        judged = pd.read_csv(path, index_col="id", keep_default_na=False)
        judged["fewest"] = judged["fewest"].astype(int)
        ok = judged.index.is_unique and {*judged["verdict"], *judged["paper_verdict"]} <= {*ORDER}
    except (ValueError, KeyError):  # pandas' own errors are ValueErrors
        ok = False
    if not ok:
        raise InputError(f"{path}: damaged; write it again with `python -m dearkd claims --scale {scale}`")
    return judged


def table(scales: Sequence[str]) -> str:
    """The matrix as a Markdown table; its last lines say how many claims have each verdict."""
    found = matrix(scales)
    columns = [*found.columns[1:]]
    seeds = pd.DataFrame({name: _judged(name)["fewest"] for name in scales}).reindex(found.index, columns=columns)
    heads = ["", "the paper says", *map(escaping.markdown, columns)]
    rows = [
        [
            id,
            escaping.markdown(found.loc[id, "statement"]),
            *(_cell(found.loc[id, c], seeds.loc[id, c]) for c in columns),
        ]
        for id in found.index
    ]
    shown = [verdict for verdict in ORDER if verdict != ONE_SEED or (found[columns] == verdict).any(axis=None)]
    rows += [["", f"*{verdict}*", *(str((found[c] == verdict).sum()) for c in columns)] for verdict in shown]
    return "\n".join(f"| {' | '.join(row)} |" for row in (heads, ["---"] * len(heads), *rows))


def _cell(verdict: str, seeds: float) -> str:
    """A verdict with its number of seeds, where it has some."""
    if verdict == NOT_MEASURED:
        return "–"
    return f"{verdict} ({int(seeds)})" if seeds > 1 else verdict


def to_markdown(scales: Sequence[str]) -> str:
    """The page: what each scale is, the matrix, what its words mean."""
    lines = [f"- [`{name}`]({name}/claims.md): {escaping.markdown(load_scale(name).summary)}" for name in scales]
    return "\n".join(
        [
            "# The paper's claims, scale by scale",
            "",
            *lines,
            "",
            table(scales),
            "",
            EXPLAINED,
            "",
            f"Written by `python -m dearkd scales {' '.join(scales)}` from the `claims.csv` of each scale.",
            "",
        ]
    )


def write(scales: Sequence[str]) -> Path:
    """Write `PAGE` for these scales, for all that are judged when none is named; InputError when there is none."""
    scales = list(dict.fromkeys(scales)) or measured()
    if not scales:
        raise InputError(f"{RESULTS}/*/claims.csv: none is there; judge a scale's claims with `snakemake -c2 claims`")
    disk.write(PAGE, to_markdown(scales))
    return PAGE
