"""What reads records refuses a scale that has none: no page of blanks, no silence."""

import pytest

from dearkd.__main__ import main
from dearkd.command_line import VERBS
from dearkd.places import snakemake
from dearkd.verbs import report

GIVEN = {
    "table": "table2",
    "figure": "figure1",
    "compare": "--to converged",
    "curves": "deit-Ti",
    "scales": "",
    "crate": "",
}
READERS = [name for name, verb in VERBS.items() if verb.run.__module__ == report.__name__ and name != "status"]


@pytest.mark.parametrize("verb", READERS)
def test_a_reader_of_records_refuses_a_scale_without_any(verb, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    scale = ["--scale", "digits"] if VERBS[verb].scale else []
    assert main([verb, *GIVEN.get(verb, "").split(), *scale]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"dearkd {verb}: ") and err.count("\n") == 1
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("name", ["table2", "table3", "table5", "table6"])
def test_a_table_without_records_says_how_it_is_made(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["table", name, "--scale", "digits"]) == 2
    assert f"`{snakemake()} --config scale=digits -- {name}`" in capsys.readouterr().err


def test_status_counts_images_where_nothing_is_trained(capsys):
    assert main(["status", "--scale", "lite0-cpu"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{name}: 1 of 1 shards of images done" for name in ("deepinversion", "df_dearkd")
    ]


def test_claims_need_a_table_and_a_comparison_two_scales(capsys):
    assert main(["claims", "--scale", "lite0-cpu"]) == 2
    assert "leaves all tables out" in capsys.readouterr().err
    assert main(["compare", "--scale", "digits", "--to", "digits"]) == 2
    assert "the scale itself" in capsys.readouterr().err
