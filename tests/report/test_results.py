"""Records to tables: what is stale is refused, what is missing is blank, what is ours stands beside the paper's."""

import csv
import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from dearkd import record
from dearkd.errors import InputError
from dearkd.plan import commands, verify
from dearkd.plan.experiments import load, load_scale
from dearkd.report import decimals, figures, records, schedules, tables
from dearkd.schema import override


def edit(path, change):
    values = json.loads(path.read_text())
    change(values)
    record.write(path, values)


def dearkd(whole):
    return [whole.runs["dearkd-Ti"]]


def test_a_measured_run_is_read(project):
    whole = load("smoke")
    frame = records.load(whole, dearkd(whole))
    assert frame[["run", "seed"]].values.tolist() == [["dearkd-Ti", 0]]
    with (project / "results/smoke/runs/dearkd-Ti/seed0/predictions.csv").open() as file:
        lines = list(csv.DictReader(file))
    recomputed = 100 * sum(line["label"] == line["top1"] for line in lines) / len(lines)
    assert len(lines) == 797 and frame["top1"].item() == pytest.approx(recomputed, abs=1e-4), (
        "anyone can recompute top-1"
    )


@pytest.mark.parametrize(
    "file, change, message",
    [
        (
            "I.json",
            lambda v: v["specs"][0]["training"].update(lr=0.1),
            r"I.json: stale record \(training.lr: 0.1 recorded, 0.006 planned\)",
        ),
        ("II.json", lambda v: v["specs"][1].update(losses=[["ce", 2.0]]), r"II.json: stale record \(losses"),
        ("I.json", lambda v: v["specs"][0].update(colour="red"), r"unknown key 'colour'"),
        (
            "I.json",
            lambda v: v.update(weights_sha256="0"),
            r"II.json: stale record \(its training continued from other weights",
        ),
        (
            "metrics.json",
            lambda v: v.update(weights_sha256="0"),
            r"metrics.json: stale record \(it measured other weights",
        ),
        (
            "I.json",
            lambda v: v["teacher"].update(weights_sha256="0"),
            r"I.json: stale record \(its teacher main has other weights",
        ),
    ],
)
def test_what_does_not_fit_is_refused_with_the_way_out(project, file, change, message):
    edit(project / "results/smoke/runs/dearkd-Ti/seed0" / file, change)
    whole = load("smoke")
    with pytest.raises(InputError, match=message) as error:
        records.load(whole, dearkd(whole))
    assert "make it again: python -m dearkd" in str(error.value)


def test_the_way_out_makes_the_record_again(project):
    """The commands printed, run as they are: afterwards the record fits, and nothing else was touched."""
    scale = project / "workflow/scales/smoke.yaml"
    scale.write_text(
        scale.read_text().replace("warmup_epochs: 1, validate_every", "warmup_epochs: 1, lr: 0.005, validate_every")
    )
    whole, teacher = load("smoke"), (project / "results/smoke/teachers/main.json").read_bytes()
    with pytest.raises(InputError, match=r"I.json: stale record \(training.lr: 0.006 recorded, 0.005 planned") as error:
        records.load(whole, dearkd(whole))
    printed = str(error.value).split("make it again: ")[1]
    assert printed.count(" && ") == 2, "two stages and the evaluation"
    subprocess.run(printed.replace("python ", f"{sys.executable} "), shell=True, check=True, stdout=subprocess.DEVNULL)
    assert len(records.load(whole, dearkd(whole))) == 1
    assert (project / "results/smoke/teachers/main.json").read_bytes() == teacher


def test_every_record_of_a_plan_has_its_way_out():
    """Each path of each kind gives a command of the right verb, name, seed and shard, at every scale with records."""
    for scale in ("digits", "lite0-cpu"):
        plan = load(scale)
        for path in plan.paths.results.glob("**/*.json"):
            if path.name == "data.json":
                continue
            last = commands.again(plan, path)[-1].replace("'", "")
            verb = "teacher" if "teachers" in path.parts else "throughput" if path.name == "architectures.json" else ""
            verb = verb or {"runs": "evaluate", "images": "synthesize"}[path.parts[2]]
            verb = {"diversity.json": "diversity"}.get(path.name, "train" if "teacher-main" in path.parts else verb)
            assert last.startswith(f"python -m dearkd {verb} ") and f"--scale {scale}" in last
            if verb in ("evaluate", "synthesize", "diversity", "train"):
                assert f"{path.parts[3]} " in last and f"--seed {path.parts[4].removeprefix('seed')}" in last
            if verb == "synthesize":
                assert last.endswith(f"--shard {int(path.stem[-4:])}")
    plan = load("imagenet")
    labels = next(iter(plan.labels))
    path = plan.paths.labels(labels, 2, 11)
    assert commands.again(plan, path) == [f"python -m dearkd labels {labels} --scale imagenet --seed 2 --shard 11"]


def seeds(project):
    """A scale of two seeds over the smoke scale's run, whose second seed is a copy of the first one's folder."""
    scale = project / "workflow/scales/smoke.yaml"
    scale.write_text(scale.read_text().replace("seeds: [0]", "seeds: [0, 1]"))
    folder = project / "results/smoke/runs/dearkd-Ti"
    shutil.copytree(folder / "seed0", folder / "seed1")
    return folder


def test_a_seed_copied_from_another_is_no_second_seed(project):
    seeds(project)
    whole = load("smoke")
    with pytest.raises(InputError, match=r"seed1/I.json: stale record \(its seed is 0, not 1\)"):
        records.load(whole, dearkd(whole))


@pytest.mark.parametrize(
    "name, key, wrong",
    [(n, k, w) for n in ("I", "II", "metrics") for k, w in (("run", "deit-Ti"), ("seed", 1), ("scale", "digits"))]
    + [("I", "stage", "II"), ("II", "stage", "I")],
)
def test_a_record_of_another_place_is_refused(project, name, key, wrong):
    """Sealed anew, as a copy from elsewhere would be."""
    edit(project / f"results/smoke/runs/dearkd-Ti/seed0/{name}.json", lambda v: v.update({key: wrong}))
    whole = load("smoke")
    with pytest.raises(InputError, match=rf"{name}.json: stale record \(its {key} is {wrong}, not "):
        records.load(whole, dearkd(whole))


@pytest.mark.parametrize("metric", ["top1", "top5"])
@pytest.mark.parametrize("forged", [90.8, 0.0, float("nan"), "90", None])
def test_an_accuracy_that_the_predictions_do_not_give_is_refused(project, metric, forged):
    edit(project / "results/smoke/runs/dearkd-Ti/seed0/metrics.json", lambda v: v["metrics"].update({metric: forged}))
    whole = load("smoke")
    with pytest.raises(InputError, match=rf"metrics.json: (stale record \(its {metric} is |not a whole record)"):
        records.load(whole, dearkd(whole))


def old(path):
    """A record as it was written before records had their own sha256 and those of the files beside them."""
    values = record.read(path)
    values.pop("files", None)
    path.write_text(json.dumps(values))


@pytest.mark.parametrize("change", ["a guess", "a line", "half a line", "a column", "nothing", "gone"])
@pytest.mark.parametrize("age", ["new", "old"])
def test_predictions_that_are_others_are_refused(project, change, age):
    path = project / "results/smoke/runs/dearkd-Ti/seed0/predictions.csv"
    if age == "old":
        old(path.with_name("metrics.json"))
    whole = load("smoke")
    records.load(whole, dearkd(whole))
    lines = path.read_text().splitlines(keepends=True)
    number = next(i for i, line in enumerate(lines) if line.split(",")[1] == line.split(",")[2])
    image, label, _, rest = lines[number].split(",")
    changed = {
        "a guess": [*lines[:number], f"{image},{label},{(int(label) + 1) % 10},{rest}", *lines[number + 1 :]],
        "a line": lines[:-1],
        "half a line": [*lines[:-1], lines[-1].split(",")[0]],
        "a column": [line.rpartition(",")[0].rpartition(",")[0] + "\n" for line in lines],
        "nothing": [],
        "gone": None,
    }[change]
    path.unlink() if changed is None else path.write_text("".join(changed))
    with pytest.raises(InputError, match=r"predictions\.csv|metrics\.json"):
        records.load(whole, dearkd(whole))


def test_any_byte_of_a_record_that_changes_is_noticed(project):
    """200 bytes, each replaced by another: refused, or, in a space between two fields, the same record."""
    path, chance = project / "results/smoke/runs/dearkd-Ti/seed0/II.json", random.Random(0)
    raw, values = path.read_bytes(), record.read(path)
    for place in chance.sample(range(raw.rindex(b'"record_sha256"')), 200):
        path.write_bytes(raw[:place] + bytes([(raw[place] + chance.randrange(1, 256)) % 256]) + raw[place + 1 :])
        try:
            assert record.read(path) == values
        except InputError as error:
            assert str(path) in str(error)


@pytest.mark.parametrize("name", ["I", "metrics"])
def test_a_field_that_is_missing_or_of_another_type_is_a_sentence(project, name):
    path = project / f"results/smoke/runs/dearkd-Ti/seed0/{name}.json"
    whole, values = load("smoke"), record.read(path)
    decides = {"specs", "data", "teacher", "weights_sha256", "run", "seed", "scale", "stage", "metrics"}
    for key in decides & values.keys():
        for wrong in (None, 3, "x", [], {}, [[]], ...):
            changed = {k: v for k, v in values.items() if k != key} | ({key: wrong} if wrong is not ... else {})
            record.write(path, changed)
            with pytest.raises(InputError, match=rf"{name}\.json: "):
                records.load(whole, dearkd(whole))
            record.write(path, values)


@pytest.mark.parametrize("scale", ["digits", "noisy-digits", "lite0-cpu"])
def test_every_committed_record_fits_its_plan_and_its_files(scale):
    whole = load(scale)
    runs, written = list(whole.runs.values()), list(whole.paths.results.glob("runs/*/*/metrics.json"))
    assert len(records.load(whole, runs)) == len(written) and (len(records.curves(whole, runs)) or not written)
    described = records.diversity(whole, ["real", *whole.sources])
    assert len(described) == len(list(whole.paths.results.glob("images/*/*/diversity.json")))
    for path in whole.paths.results.glob("images/*/*/shard-*.json"):
        verify.shard(whole, path.parts[-3], int(path.parts[-2].removeprefix("seed")), int(path.stem[-4:]))
    for path in whole.paths.results.glob("teachers/*.json"):
        verify.teacher(whole, path.stem)


def test_data_written_down_anew_refuses_what_was_trained_before(project):
    edit(project / "results/smoke/subsets/main/data.json", lambda v: v["sha256"].update(test="0"))
    whole = load("smoke")
    with pytest.raises(InputError, match=r"I.json: stale record \(the images of main have changed"):
        records.load(whole, dearkd(whole))


def test_a_changed_teacher_is_refused(project):
    edit(project / "results/smoke/teachers/main.json", lambda v: v["spec"].update(top1=99.0))
    whole = load("smoke")
    with pytest.raises(InputError, match=r"teachers/main.json: stale record \(top1: 99.0 recorded, 50.0 planned"):
        records.load(whole, dearkd(whole))


def test_a_field_that_came_later_is_at_its_default(project):
    for name in ("I", "II"):

        def forget(values):
            for spec in values["specs"]:
                del spec["training"]["stage2_peak"], spec["freeze_rpe"]

        edit(project / f"results/smoke/runs/dearkd-Ti/seed0/{name}.json", forget)
    whole = load("smoke")
    assert len(records.load(whole, dearkd(whole))) == 1


def test_a_broken_record_is_named(project):
    path = project / "results/smoke/runs/dearkd-Ti/seed0/I.json"
    path.write_text(path.read_text()[:100])
    whole = load("smoke")
    with pytest.raises(InputError, match=r"I.json: not a whole record"):
        records.load(whole, dearkd(whole))


def test_a_record_names_the_gpu_and_the_command_of_its_process(monkeypatch):
    """Every job's record does, whatever the job; a benchmark's command is not taken for the package's."""
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a card")
    monkeypatch.setattr("sys.argv", ["/somewhere/dearkd/__main__.py", "train", "x"])
    found = record.provenance()
    assert (found["hardware"]["device"], found["command"]) == ("a card", "python -m dearkd train x")
    monkeypatch.setattr("sys.argv", ["/somewhere/benchmarks/study.py", "fashion"])
    assert record.provenance()["command"] == "python benchmarks/study.py fashion"


def test_records_hold_their_provenance(project):
    values, whole = record.read(project / "results/smoke/runs/dearkd-Ti/seed0/II.json"), load("smoke")
    images = record.read(whole.paths.subsets("main") / "data.json")["images"]["train-100"]
    training = whole.scale.training
    assert [s["name"] for s in values["specs"]] == ["I", "II"] and values["data"]["images"] == images
    assert {
        "git",
        "versions",
        "hardware",
        "command",
        "written",
        "seconds",
        "attempts",
        "weights_sha256",
    } <= values.keys()
    assert values["versions"]["torch"] and values["steps"] == training.epochs * (images // training.batch)
    (entry,) = values["curve"]
    assert entry["epoch"] == training.epochs and len(entry["attention_distance"]) == 3
    first = record.read(project / "results/smoke/runs/dearkd-Ti/seed0/I.json")
    assert values["previous_sha256"] == first["weights_sha256"] and first["teacher"]["teacher"] == "main"
    assert {"loss", "ce", "logit", "hidden", "lr"} <= first["curve"][0].keys()


# ------------------------------------------------------------------------------------------------ tables


def numbers():
    """Three methods of Table 2 at four fractions and two seeds, values made up for arithmetic."""
    whole = load("digits")
    lines = []
    for i, row in enumerate(whole.tables["table2"].rows):
        for j, cell in enumerate(row.cells):
            lines += [
                {"run": cell.run, "seed": seed, "dirty": False, "top1": 50 + 10 * i + j + seed} for seed in (0, 1)
            ]
    return whole, pd.DataFrame(lines)


def test_tidy_has_a_line_per_cell_and_a_gap_paired_by_seed():
    whole, values = numbers()
    frame = tables.tidy(whole.tables["table2"], values)
    assert list(frame.columns) == [
        "row",
        "method",
        "student",
        "fraction",
        "metric",
        "mean",
        "sd",
        "n",
        "paper",
        "source",
    ]
    cells = {row.label: len(row.cells) for row in whole.tables["table2"].rows}
    assert (frame["metric"] == "top1").sum() == sum(cells.values())
    assert (frame["metric"] == "gap").sum() == sum(cells.values()) - cells[whole.tables["table2"].gap_to]
    ten = frame[(frame["row"] == "DeiT-Ti") & (frame["fraction"] == 10)].set_index("metric")
    assert ten.loc["top1", ["mean", "n", "paper"]].tolist() == [50.5, 2, 40.5]
    assert ten.loc["top1", "sd"] == pytest.approx(0.5**0.5)
    assert ten.loc["gap", ["mean", "sd", "paper"]].tolist() == [20.0, 0.0, 13.8]


def test_the_papers_gaps_are_recomputed():
    whole, values = numbers()
    frame = tables.tidy(whole.tables["table2"], values)
    with Path("paper/table2.csv").open() as file:
        expected = {
            (int(r["train_pct"]), r["method"]): float(r["gap_to_dearkd"])
            for r in csv.DictReader(file)
            if r["gap_to_dearkd"]
        }
    gaps = frame[frame["metric"] == "gap"]
    names = {"DeiT-Ti": "DeiT-Ti", "DeiT-Ti distilled": "DeiT-Ti-distilled"}
    assert {(g.fraction, names[g.row]): g.paper for g in gaps.itertuples()} == pytest.approx(expected)


def test_what_was_not_measured_is_blank_and_quoted():
    whole, values = numbers()
    frame = tables.tidy(whole.tables["table2"], values[values["run"] != "deit-Ti"])
    missing = frame[(frame["row"] == "DeiT-Ti") & (frame["fraction"] == 100) & (frame["metric"] == "top1")].iloc[0]
    assert missing["source"] == "quoted" and pd.isna(missing["mean"]) and missing["paper"] == 72.2
    shown = tables.arrange(whole.tables["table2"], frame)
    assert shown.iloc[0]["100 % ours"] == "" and shown.iloc[0]["100 % paper"] == "72.2"
    assert shown.iloc[0]["10 % ours"] == "50.5 ± 0.7 (2)"


def test_a_target_is_printed_by_its_title_and_kept_by_its_key():
    """The scale's title, the matrix's, or else the key."""
    changed = override(load_scale("digits"), {"transfer.titles": {"parity": "odd or even"}}, "test")
    table = load(changed).tables["table4"]
    cells = [cell for row in table.rows for cell in row.cells if cell.run]
    values = pd.DataFrame([{"run": run, "seed": 0, "top1": 50.0} for run in dict.fromkeys(cell.run for cell in cells)])
    frame = tables.tidy(table, values)
    heads = [*tables.arrange(table, frame).columns]
    assert heads[1:5] == ["upside_down ours", "odd or even ours", "textured ours", "left_of_two ours"]
    assert heads[5:] == ["CIFAR-10 paper", "CIFAR-100 paper", "Flowers-102 paper", "Stanford Cars paper"]
    assert set(frame["target"]) >= {"parity", "cifar10"}
    own = load("digits").scale.transfer
    assert {*own.titles} == {*own.targets}, "each target of a scale with results has a title"


@pytest.mark.parametrize(
    "titles, message",
    [
        ({"paritty": "odd"}, "unknown data set 'paritty'; did you mean 'parity'"),
        ({"parity": "textured"}, "parity and textured both have the title 'textured'; change one"),
        ({"parity": "two\nlines"}, "a text of one line"),
        ({"parity": ""}, "a text of one line"),
    ],
)
def test_a_title_that_cannot_be_one_is_refused(titles, message):
    with pytest.raises(InputError, match=message):
        load(load_scale("digits", {"transfer": {"titles": {"textured": "textured", **titles}}}))


def test_printed_forms():
    whole, values = numbers()
    table = whole.tables["table2"]
    shown = tables.arrange(table, tables.tidy(table, values))
    markdown = tables.to_markdown(whole, table, shown, dirty=True)
    assert (
        "| DearKD-Ti | 70.5 ± 0.7 (2) | 54.3 |" in markdown
        and "differ from their commit" in markdown
        and "`digits`" in markdown
    )
    latex = tables.to_latex(table, shown)
    assert (
        r"\toprule" in latex
        and r"70.5 $\pm$ 0.7 (2)" in latex
        and "%" not in latex.split("\n", 1)[1].replace(r"\%", "")
    )
    ablation = load("digits").tables["table1"]
    text = tables.to_markdown(whole, ablation, tables.arrange(ablation, tables.tidy(ablation, values)), dirty=False)
    assert "| DearKD-Ti | ✓ | ✓ | ✓ | ✓ |" in text and "| baseline |  |  |  |  |" in text and "differ" not in text


def test_writing_a_table_of_what_there_is(project):
    whole = load("smoke")
    tables.write(whole, "table1")
    folder = project / "results/smoke/tables"
    frame = pd.read_csv(folder / "table1.csv")
    nobodys = "+ MHCA + distill"  # neither the paper's nor trained here
    expected = {row: "measured" if row == "DearKD-Ti" else "" if row == nobodys else "quoted" for row in frame["row"]}
    assert frame.set_index("row")["source"].fillna("").to_dict() == expected and (folder / "table1.tex").is_file()
    assert "74.8" in (folder / "table1.md").read_text()


def test_missing_record_file():
    with pytest.raises(InputError, match=r"nothing\.json: record is missing"):
        record.read(Path("nothing.json"))


def test_figure_1_counts_the_seeds_that_were_measured_and_draws_no_line_for_a_row_without_a_number(project):
    """The plan of `smoke` with three seeds, of which one has been trained, and of one row alone."""
    extra = {"extra": {"table2": ["MHCA, no teacher"]}}
    whole = load(override(load_scale("smoke", extra), {"seeds": (0, 1, 2)}, "test"))
    assert "MHCA, no teacher" in [row.label for row in whole.tables["table2"].rows]
    drawn, frame = figures.accuracy_against_data(whole, whole.figures["figure1"])
    assert drawn.axes[0].get_title() == "ours: smoke, 1 seed"
    shown = [text.get_text() for text in drawn.legends[0].get_texts()]
    assert shown == list(frame["row"].unique())
    assert "MHCA, no teacher" not in shown and "DeiT-Ti" in shown, "one has no number, the other the paper's"


@pytest.mark.parametrize(
    "counts, said", [([3, 3], "3 seeds"), ([2, 8, 3], "2 to 8 seeds"), ([1], "1 seed"), ([], "0 seeds")]
)
def test_seeds_are_counted_where_there_is_a_mean(counts, said):
    frame = pd.DataFrame({"n": [*counts, 9], "mean": [90.0] * len(counts) + [float("nan")]})
    assert figures.counted_seeds(frame) == said


COMMITTED = sorted({path.parts[1:] for path in Path("results").glob("*/tables/*.csv")})


@pytest.mark.parametrize("scale, name", [(scale, file.removesuffix(".csv")) for scale, _, file in COMMITTED])
def test_a_committed_table_is_what_the_records_say(scale, name):
    for suffix, text in tables.rendered(load(scale), name).items():
        assert Path(f"results/{scale}/tables/{name}.{suffix}").read_text() == text, "write it again"


@pytest.mark.parametrize("scale", ["converged", "digits"])
@pytest.mark.parametrize("name", ["figure1", "figure4"])
def test_the_numbers_of_a_committed_figure_are_what_the_records_say(scale, name):
    whole = load(scale)
    drawn, numbers = figures.KINDS[whole.figures[name].kind](whole, whole.figures[name])
    plt.close(drawn)
    hollow = "hollow: 480 epochs instead of 240" in drawn.axes[0].get_title()
    assert hollow == (name == "figure1" and scale == "converged")
    assert Path(f"figures/{scale}/{name}.csv").read_text() == numbers.to_csv(
        index=False, float_format=decimals.in_csv
    ), "draw it again"


@pytest.mark.parametrize(
    "scale, table, said",
    [
        ("noisy-digits", "table1", "Rows train for 40 epochs here."),
        (
            "converged",
            "table3",
            "Rows train for 240 epochs here; ViT-B/16, Swin-T and those named *long* or *1000* for 480 epochs.",
        ),
        (
            "converged",
            "table4",
            "Rows train for 240 epochs and fine-tune for 144 here; those named *long* or *1000* for 480 epochs and "
            "fine-tune for 144.",
        ),
        ("converged", "table6", ""),
    ],
)
def test_a_table_says_how_long_its_rows_train(scale, table, said):
    whole = load(scale)
    assert schedules.sentence(whole, whole.tables[table]) == said
    shown = tables.to_markdown(whole, whole.tables[table], pd.DataFrame(), False)
    assert said in shown and ("Rows train" in shown) == bool(said)


def test_a_fraction_says_whether_it_has_as_many_steps():
    whole = load("digits")
    by_epochs = load(override(whole.scale, {"training.subset_schedule": "epochs"}, "test"))
    said = [schedules.sentence(plan, plan.tables["table2"]) for plan in (whole, by_epochs)]
    assert ["as many steps" in one for one in said] == [True, False]
