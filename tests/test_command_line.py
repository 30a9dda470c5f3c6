"""The command line: every verb of the table explains itself, and refuses a name that is not there in one sentence."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import dearkd
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


@pytest.mark.parametrize(
    "typed, said",
    [
        ("shwo dearkd-Ti", "dearkd: unknown verb 'shwo'; did you mean 'show'?"),
        ("show dearkd-Ti --sclae digits", "dearkd show: unknown option '--sclae'; did you mean '--scale'?"),
        ("show dearkd-Ti digits", "dearkd show: 'digits' is one argument too many; a name with spaces needs quotes"),
        ("train-on images --out m --image-sze=32", "unknown option '--image-sze'; did you mean '--image-size'?"),
        ("synthesize --teacher resnet18 --wieghts x", "unknown option '--wieghts'; did you mean '--weights'?"),
    ],
)
def test_a_mistyped_word_is_refused_with_the_nearest(typed, said, capsys):
    assert main(typed.split()) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1


@pytest.mark.parametrize("verb", [name for name, verb in VERBS.items() if verb.scale and name != "warm"])
def test_a_setting_of_a_run_is_refused_with_the_way_to_a_scale_of_ones_own(verb, capsys):
    words = [verb, *UNKNOWN.get(verb, ("",))[0].split(), *(["--to", "digits"] if verb == "compare" else [])]
    assert main([*words, "--scale", "smoke", "--set", "training.lr=1e-4"]) == 2
    said = capsys.readouterr().err
    assert "no option --set" in said and "`extends: smoke`" in said and "--scale mine.yaml" in said


def test_a_setting_of_a_cnn_of_ones_own_belongs_in_its_recipe(capsys):
    assert main(["synthesize", "--teacher", "resnet18", "--set", "r_bn=0.1"]) == 2
    assert "no option --set; write the key, as in `r_bn: 0.5`, into a file for --recipe" in capsys.readouterr().err


def test_dearkd_alone_lists_its_verbs(capsys):
    with pytest.raises(SystemExit, match=r"^2$"):
        main([])
    said = capsys.readouterr().err
    assert not [verb for verb in VERBS if f"    {verb}" not in said]


MISTAKES = ["train dearkd-Ti --seed 0 --stage III", "evaluate dearkd-Ti --seed 0", "export dearkd-Ti --out folder"]
MISTAKES += ["keep dearkd-Ti", "fetch --scale digit", "throughput --scale digit", "train-on nowhere --out folder"]
MISTAKES += ["synthesize df_dearkt", "pretrained ResNet-18", "diversity rael --seed 0", "export dearkd-Tu --out folder"]


@pytest.mark.slow
def test_a_mistake_is_named_before_torch_is_imported(tmp_path):
    program = (
        "import contextlib, io, sys\n"
        "from dearkd.__main__ import main\n"
        "for typed in sys.argv[1:]:\n"
        "    assert main(typed.split()) == 2, typed\n"
        "    assert 'torch' not in sys.modules, typed\n"
    )
    called = subprocess.run(
        [sys.executable, "-c", program, *MISTAKES],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(dearkd.__file__).parent.parent)},
        capture_output=True,
        text=True,
    )
    assert called.returncode == 0, called.stderr
    assert called.stderr.count("\n") == len(MISTAKES), called.stderr
