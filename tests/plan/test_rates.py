"""How fast GPUs are: which figure counts, what the others follow from, and what a note says of each."""

import csv
import dataclasses
import json
import re
from pathlib import Path

import pytest

from dearkd.__main__ import main
from dearkd.errors import InputError
from dearkd.plan import cost, experiments, rates
from dearkd.schema import override

STUDENT = "deit_small_patch16_224"


@pytest.fixture(scope="module")
def plan():
    return experiments.load("imagenet")


@pytest.fixture
def compiled(plan):
    return experiments.load(override(plan.scale, {"training.compile": "blocks"}, "test"))


@pytest.fixture
def card(tmp_path, monkeypatch):
    """A function that writes our measurements of a GPU into a file of the test's own."""

    def write(name, **trained):
        lines = [
            {"card": name, "what": "stage II", "net": net.replace("_", "-"), "way": "eager", "images_per_s": rate}
            for net, rate in trained.items()
        ]
        (tmp_path / "gpu.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        monkeypatch.setattr(rates, "MEASURED", tmp_path / "gpu.jsonl")

    return write


def published():
    with rates.PUBLISHED.open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_figure_says_what_it_rests_on(plan):
    """measured, published or derived; for every architecture of the paper's Table 3, on every GPU."""
    for gpu in ("", "v100", *{row["gpu"] for row in published()}, "h200"):
        found = rates.rates(plan, gpu)
        assert found.by_model.keys() == cost.paper_throughputs().keys()
        for line in found.describe(found.by_model).splitlines():
            assert re.search(r"  [\d,]+  (measured: ours|published: |derived: )", line), line


def test_what_is_published_has_its_address_and_what_is_derived_says_how(plan):
    """Those derived from our H200 follow from today's measurement of it."""
    h200 = {way: rates.rates(each, "h200").figures for way, each in ways(plan)}
    for row in published():
        assert row["basis"] in ("published", "derived") and row["what"] in ("training", "forward")
        assert row["url"].startswith("https://") or row["basis"] == "derived"
        if "our H200" in row["source"]:
            assert float(row["images_s"]) == pytest.approx(h200[row["way"]][row["model"]] * 3.35 / 4.8, rel=0.01)
    (a100,) = (row for row in published() if row["gpu"] == "a100" and row["model"] == STUDENT)
    assert float(a100["images_s"]) == pytest.approx(2305 / (1428 / 693), rel=0.01)


def ways(plan):
    blocks = experiments.load(override(plan.scale, {"training.compile": "blocks"}, "test"))
    return (("eager", plan), ("compiled", blocks))


def test_a_training_rate_counts_three_passes_and_compiled_ones_where_the_scale_compiles(plan, compiled):
    assert rates.rates(plan, "h100").figures[STUDENT] == 3 * 2305
    assert rates.rates(compiled, "h100").figures[STUDENT] == 3 * 7716
    assert rates.rates(plan, "4090").figures[STUDENT] == 7692.21, "a forward rate is one"


def test_others_follow_from_the_nearest_of_their_kind(plan):
    """DearKD-S on an H100: the paper's 570.1 on a V100, times 3 x 2,305 / 940.4 of DeiT-S."""
    found = rates.rates(plan, "h100").by_model["dearkd_small_patch16_224"]
    assert found.images_s == pytest.approx(570.1 * 3 * 2305 / 940.4)
    assert "derived: the paper's V100 figure, 570, x 7.35, the ratio of deit_small" in found.note
    assert "ratio of resnet50" in rates.rates(plan, "a100").by_model["regnety_160"].note, "a CNN follows from a CNN"


def test_our_measurement_counts_before_what_others_published(plan, card):
    card("NVIDIA H100 80GB HBM3", DeiT_S=3000.0, DearKD_Ti=4000.0)
    found = rates.rates(plan, "h100").by_model
    assert found[STUDENT].images_s == 9000 and "measured: ours, trains 3,000 images/s, eager" in found[STUDENT].note
    assert found["dearkd_tiny_patch16_224"].images_s == 12000
    assert found["deit_tiny_patch16_224"].images_s == pytest.approx(
        9000 * 2536.5 / 940.4
    ) or "ratio of dearkd_tiny" in (found["deit_tiny_patch16_224"].note)
    card("NVIDIA GeForce RTX 4090", DeiT_S=1.0)
    assert rates.rates(plan, "4090").figures[STUDENT] == 3
    card("Tesla V100-SXM2-32GB", DeiT_S=1.0)
    assert rates.rates(plan).figures[STUDENT] == 3 and rates.rates(plan).figures["regnety_160"] == 334.7


def test_what_was_measured_comes_out_again(plan):
    """The estimate of stage I with labels ahead is the step that was timed, teacher's early stages included."""
    given = rates.rates(plan, "h200").figures
    measured = {(m["what"], m["way"]): m for m in map(json.loads, rates.MEASURED.read_text().splitlines())}
    books = cost._Books(plan, given, {})
    assert 1 / books.step_seconds(plan.runs["dearkd-Ti"].stages[0]) == pytest.approx(
        measured["stage I, labels ahead", "eager"]["images_per_s"]
    )
    assert 1 / books.step_seconds(plan.runs["deit-Ti"].stages[0]) == pytest.approx(7606.0)


@pytest.mark.parametrize("scale", ["imagenet", "digits"])
def test_plan_refuses_an_unknown_gpu_before_it_prints(scale, capsys, monkeypatch):
    monkeypatch.setenv("IMAGENET", "/nowhere")
    assert main(["plan", "table2", "--scale", scale, "--gpu", "h10"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and "--gpu: unknown GPU 'h10'; did you mean 'h100'" in err


def test_a_gpu_of_which_nothing_is_known(plan):
    with pytest.raises(InputError, match="--gpu: unknown GPU 'h10'; did you mean 'h100'"):
        rates.rates(plan, "h10")


def test_the_scales_own_record_counts_before_everything_on_its_gpu(plan, tmp_path, monkeypatch):
    monkeypatch.setattr(cost, "PAPER", cost.PAPER.absolute())
    for name in ("MEASURED", "PUBLISHED"):
        monkeypatch.setattr(rates, name, getattr(rates, name).absolute())
    monkeypatch.chdir(tmp_path)
    record = {
        "architectures": {
            "dearkd_tiny_patch16_224": {
                k: {"median": v} for k, v in {"fp32": 1.0, "bf16": 2.0, "bf16_dense": 3.0}.items()
            },
            "resnet18.tv_in1k": {"fp32": {"median": 5.0}},
        },
        "hardware": {"device": "NVIDIA H100 80GB HBM3"},
    }
    plan.paths.throughput.parent.mkdir(parents=True)
    plan.paths.throughput.write_text(json.dumps(record))
    for gpu in ("", "h100"):
        found = rates.rates(plan, gpu)
        assert found.figures.items() >= {"dearkd_tiny_patch16_224": 3.0, "resnet18": 5.0}.items()
        assert found.figures.keys() == {"dearkd_tiny_patch16_224", "resnet18", *cost.SMALL}
        assert found.origin.startswith("measured: results/imagenet/") and "NVIDIA H100" in found.origin
    assert rates.rates(plan, "4090").figures["resnet18"] == 18247.43, "asked of another GPU"
    without = dataclasses.replace(plan, scale=override(plan.scale, {"rpe.drop": 0.0}, "test"))
    assert rates.rates(without).figures["dearkd_tiny_patch16_224"] == 2.0
    plan.paths.throughput.write_text(json.dumps({"architectures": {"resnet18": {"parameters": 1, "gmacs": 1.0}}}))
    assert rates.rates(plan).figures == cost.paper_throughputs(), "sizes alone give no rate"


def test_the_documentation_has_the_hours_of_today(plan):
    """docs/paper-scale.md: GPU-hours by table and GPU, those with the cores of the scale in brackets."""
    page = Path("docs/paper-scale.md").read_text()
    header, _, *lines = re.search(r"\| GPU-hours \| V100.*?(?=\n\n)", page, re.DOTALL).group().splitlines()
    gpus = [cell.split()[0].lower() for cell in header.split("|")[2:-1]]
    assert len(lines) >= 3 and {"v100", "h100"} <= set(gpus)
    for line in lines:
        table, *shown = (cell.strip() for cell in line.split("|")[1:-1])
        for gpu, cell in zip(gpus, shown, strict=True):
            runs = plan.runs_of(table)
            sources = [name for name in plan.images_of(table) if name in plan.sources]
            given = (rates.rates(plan, gpu).figures, cost.images_of(plan), cost.paper_parameters(), sources)
            found, fed = (cost.estimate(plan, runs, *given, fed=fed).gpu_hours for fed in (False, True))
            assert cell == f"{found:,.0f}" + (f" ({fed:,.0f})" if round(fed) > round(found) else ""), (table, gpu)
