"""The command line: every verb of the table explains itself, and refuses a name that is not there in one sentence."""

import pytest

from dearkd.__main__ import main
from dearkd.command_line import VERBS

UNKNOWN = {
    "subset": ("mian", "data set", "main"),
    "presize": ("mian", "data set", "main"),
    "teacher": ("mian", "teacher", "main"),
    "labels": ("main-0123 --seed 0 --shard 0", "set of labels", None),
    "train": ("dearkd-Tu --seed 0 --stage I", "run", "dearkd-Ti"),
    "evaluate": ("dearkd-Tu --seed 0", "run", "dearkd-Ti"),
    "export": ("dearkd-Tu --out folder", "run", "dearkd-Ti"),
    "keep": ("dearkd-Tu", "run", "dearkd-Ti"),
    "synthesize": ("df_dearkt", "source", "df_dearkd"),
    "diversity": ("rael --seed 0", "set of images", "real"),
    "pretrained": ("ResNet-18", "system", None),
    "table": ("tabel2", "table", "table2"),
    "figure": ("figrue2", "figure", "figure2"),
    "curves": ("dearkd-Tu", "run", "dearkd-Ti"),
    "show": ("dearkd-Tu", "run, teacher or set of images", "dearkd-Ti"),
    "plan": ("tabel2", "table or figure", "table2"),
    "status": ("tabel2", "table or figure", "table2"),
}


@pytest.mark.parametrize("verb", UNKNOWN)
def test_an_unknown_name_is_refused_with_the_nearest(verb, capsys):
    given, kind, near = UNKNOWN[verb]
    assert main([verb, *given.split(), "--scale", "digits"]) == 2
    said = capsys.readouterr().err
    hint = f"did you mean '{near}'?" if near else "known: none"
    assert said == f"dearkd {verb}: scale digits: unknown {kind} '{given.split()[0]}'; {hint}\n"


def test_every_verb_that_takes_a_name_is_here():
    named = {verb for verb, about in VERBS.items() if any(not n[0].startswith("-") for n, _ in about.arguments)}
    assert named - {"init", "train-on", "warm", "scales"} == set(UNKNOWN)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(verb, capsys):
    with pytest.raises(SystemExit, match=r"^0$"):
        main([verb, "--help"])
    assert " ".join(VERBS[verb].help.split()) in " ".join(capsys.readouterr().out.split())
