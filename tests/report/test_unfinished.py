"""A scale that is being trained: every page works with some of its seeds, with one, and with none, and says so."""

import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
from conftest import PROJECT, copy_project

from dearkd.__main__ import main
from dearkd.plan import experiments
from dearkd.report import unfinished
from dearkd.report.claims import scales

pytestmark = pytest.mark.slow


@pytest.fixture
def part(tmp_path, monkeypatch):
    """A function that gives a folder the records of `digits`, of each run those of the seeds that it is told."""
    monkeypatch.chdir(copy_project(tmp_path))
    source = PROJECT / "results/digits"
    for name in ("subsets", "teachers", "architectures.json"):
        copy = shutil.copytree if (source / name).is_dir() else shutil.copy
        Path("results/digits").mkdir(parents=True, exist_ok=True)
        copy(source / name, f"results/digits/{name}")

    def give(seeds_of):
        for kind in ("runs", "images"):
            for folder in sorted((source / kind).glob("*/seed*")):
                seeds = range(3) if folder.parent.name == "teacher-main" else seeds_of(folder.parent.name)
                if int(folder.name.removeprefix("seed")) in seeds:
                    shutil.copytree(folder, f"results/digits/{kind}/{folder.parent.name}/{folder.name}")
        return experiments.load("digits")

    return give


def write_everything(whole, capsys):
    """Every table, figure and page; returns what the verbs said."""
    capsys.readouterr()
    for verb, names in {"table": whole.tables, "figure": whole.figures}.items():
        for name in names:
            assert main([verb, name, "--scale", "digits"]) == 0, name
    for verb in ("claims", "savings", "report"):
        assert main([verb, "--scale", "digits"]) == 0
    assert main(["scales"]) == 0
    return capsys.readouterr().out


def lines(path):
    return [
        [c.strip() for c in line[1:-1].split("|")] for line in Path(path).read_text().splitlines() if line[:1] == "|"
    ]


def test_rows_with_different_numbers_of_seeds(part, capsys):
    """DeiT has three seeds, DearKD two, images one: each mean says its n, each difference its pairs."""
    whole = part(lambda run: range(3) if run.startswith("deit") else range(2) if "images" not in run else [0])
    said = write_everything(whole, capsys)
    table = {line[0]: line for line in reversed(lines("results/digits/tables/table2.md"))}
    assert all(re.fullmatch(r"[\d.]+ ± [\d.]+ \(3\)", cell) for cell in table["DeiT-Ti"][1::2])
    assert all(re.fullmatch(r"[\d.]+ ± [\d.]+ \(2\)", cell) for cell in table["DearKD-Ti"][1::2])
    assert all(cell.endswith("(2)") for cell in table["gap to DearKD-Ti"][1::2]), "paired"
    way = "`snakemake -c2 --config scale=digits -- table2` makes them."
    missing = f'Missing: 4 of 12 results of "DearKD-Ti". {way}'
    assert Path("results/digits/tables/table2.md").read_text().endswith(f"\n\n{missing}\n") and missing in said
    free = {line[0]: line for line in lines("results/digits/tables/table5.md")}
    for cell in free["distilled, ADI"][1::2]:
        assert re.fullmatch(r"[\d.]+ \(1\)", cell), "no spread of one seed"
    judged = pd.read_csv("results/digits/claims.csv").set_index("id")
    assert judged.loc["C10", ["verdict", "seeds"]].tolist() == ["within noise", 2] and pd.notna(
        judged.loc["C10", "low"]
    )
    assert judged.loc["C33", ["verdict", "seeds"]].tolist() == ["one seed", 1] and pd.isna(judged.loc["C33", "low"])
    page = Path("results/digits/claims.md").read_text()
    assert "| one seed | " in page and " have one seed" in page and "results of table2; " in page
    assert "| one seed |" in scales.table(["digits"])
    savings = Path("results/digits/savings.md").read_text()
    assert "(2 seeds, 797 test images)" in savings and "(3" not in savings
    report = Path("results/digits/report.html").read_text()
    assert '<p class="absent">Partial: table1, table2' in report and "Missing:" in report
    ours = {int(n) for n in pd.read_csv("figures/digits/figure1.csv").query("mean == mean")["n"]}
    assert ours == {2, 3}


def test_one_seed_gives_no_spread_and_no_verdict(part, capsys):
    whole = part(lambda run: [0])
    write_everything(whole, capsys)
    for path in Path("results/digits/tables").glob("*.md"):
        shown = [cell for line in lines(path)[2:] for cell in line[1:]]
        assert "±" not in "".join(shown) and "(1)" in "".join(shown), path
    judged = pd.read_csv("results/digits/claims.csv").set_index("id")
    seedless = {"C24", "C25"}  # sizes and speeds
    assert set(judged["verdict"]) <= {"one seed", "not measured", "holds", "fails"}
    assert set(judged.index[judged["verdict"].isin(["holds", "fails"])]) <= seedless
    assert judged[["low", "high", "p", "holm"]].isna().all(axis=None)
    savings = Path("results/digits/savings.md").read_text()
    assert "one seed is no verdict" in savings and "beats" not in savings and "[" not in savings.replace("[95", "")


def test_nothing_but_the_teacher_and_sizes(part, capsys):
    """What has no result is refused with the command that trains; the page and Table 3 have what is there."""
    whole = part(lambda run: [])
    without = {*whole.tables, "figure1", "figure4", "figure6", "images"} - {"table3"}
    for verb, names in {"table": whole.tables, "figure": whole.figures}.items():
        for name in names:
            assert main([verb, name, "--scale", "digits"]) == (2 if name in without else 0), name
    assert main(["savings", "--scale", "digits"]) == 2
    err = capsys.readouterr().err
    assert all(f"-- {name}`" in err for name in without)
    assert main(["claims", "--scale", "digits"]) == main(["report", "--scale", "digits"]) == 0
    assert pd.read_csv("results/digits/claims.csv")["verdict"].isin(["not measured", "holds", "fails"]).all()
    report = Path("results/digits/report.html").read_text()
    assert (
        "Missing: table1, table2, table4, table5, table6, figure1, figure4, figure6, images. Partial: table3." in report
    )
    assert "<code>snakemake -c2 --config scale=digits -- figure6</code> writes it." in report


@pytest.mark.parametrize("name", ["table1", "figure1", "figure4", "figure6", "table6"])
def test_what_lacks_nothing_says_nothing(name):
    """The committed scale is whole."""
    whole = experiments.load("digits")
    assert unfinished.sentence(whole, name) == "" and unfinished.tables(whole) == "" and unfinished.begun(whole, name)
