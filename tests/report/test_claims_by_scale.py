"""The matrix of claims and scales: what is committed is what the claims files say, and mistakes are named."""

import re
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest
from conftest import PROJECT, copy_project

from dearkd.__main__ import main
from dearkd.errors import InputError
from dearkd.report.claims import scales


def committed():
    """Scales whose claims are in git, or, outside a clone, all that are there."""
    done = subprocess.run(["git", "ls-files", "results/*/claims.csv"], capture_output=True, text=True, cwd=PROJECT)
    paths = done.stdout.split() if done.returncode == 0 else scales.RESULTS.glob("*/claims.csv")
    return sorted(Path(path).parent.name for path in paths)


def test_the_committed_page_is_what_the_committed_claims_say():
    assert scales.PAGE.read_text() == scales.to_markdown(committed()), "write it again as its last line says"


def test_each_verdict_stands_in_its_line_and_column():
    """Read back from the page, cell by cell."""
    lines = [re.split(r"(?<!\\)\|", line)[1:-1] for line in scales.PAGE.read_text().splitlines() if line[:1] == "|"]
    lines = [[cell.strip() for cell in line] for line in lines]
    assert len({len(line) for line in lines}) == 1
    for scale in committed():
        column = lines[0].index(scale)
        file = pd.read_csv(f"results/{scale}/claims.csv").set_index("id")
        judged = file["verdict"].replace("not measured", "–")
        seeds = file["fewest"].where((file["fewest"] > 1) & (judged != "–"))
        said = judged + seeds.map(lambda n: "" if pd.isna(n) else f" ({n:.0f})")
        assert {line[0]: line[column] for line in lines if line[0].startswith("C")} == said.to_dict()
        for verdict in ("holds", "fails", "within noise"):
            (count,) = (line[column] for line in lines if line[1] == f"*{verdict}*")
            assert int(count) == (judged == verdict).sum()


@pytest.fixture
def project(tmp_path, monkeypatch):
    copy_project(tmp_path)
    for scale in committed():
        (tmp_path / "results" / scale).mkdir(parents=True)
        shutil.copy(PROJECT / f"results/{scale}/claims.csv", tmp_path / f"results/{scale}/claims.csv")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_verb_writes_the_scales_that_it_is_given_or_all(project, capsys):
    assert main(["scales"]) == 0 and capsys.readouterr().out == "results/claims.md\n"
    assert scales.PAGE.read_text() == (PROJECT / scales.PAGE).read_text()
    assert main(["scales", "digits", "digits"]) == 0
    assert "noisy-digits" not in scales.PAGE.read_text() and "`digits`" in scales.PAGE.read_text()


def test_a_claim_that_a_file_does_not_have_is_not_measured(project):
    path = project / "results/digits/claims.csv"
    path.write_text("".join(line for line in path.read_text().splitlines(keepends=True) if line[:4] != "C01,"))
    assert scales.matrix(["digits"]).loc["C01", "digits"] == "not measured"


@pytest.mark.parametrize("raw", [b"", b"id,verdict\nC01,holds\n", b"\xff\xfe\x00", None])
def test_a_damaged_file_and_a_scale_without_one_are_named(project, raw, capsys):
    path = project / "results/digits/claims.csv"
    path.write_bytes(path.read_bytes().replace(b",holds,", b",perhaps,", 1) if raw is None else raw)
    with pytest.raises(InputError, match=r"digits/claims\.csv: damaged; write it again with"):
        scales.matrix(["digits"])
    for name, said in {"digit": "did you mean 'digits'", "lite0-cpu": "missing; judge its claims"}.items():
        assert main(["scales", name]) == 2 and said in capsys.readouterr().err
    for path in scales.RESULTS.glob("*/claims.csv"):
        path.unlink()
    assert main(["scales"]) == 2 and "none is there; judge" in capsys.readouterr().err
