"""The estimate of what runs cost, against sums by hand."""

import dataclasses
import json

import pytest

from dearkd.errors import InputError
from dearkd.plan import cost, experiments
from dearkd.plan.scale import JOBS, Resources
from dearkd.schema import override

SPEED = {
    "deit_tiny_patch16_224": 1000.0,
    "deit_tiny_distilled_patch16_224": 1000.0,
    "dearkd_tiny_patch16_224": 500.0,
    "regnety_160": 250.0,
    "resnet101": 1000.0,
}
SIZE = {"deit_tiny_patch16_224": 5_717_416, "deit_tiny_distilled_patch16_224": 5_910_800}
SIZE["dearkd_tiny_patch16_224"] = 5_717_704
MILLION = {"main": 1_000_000}
TRAINED = 300e6 * 3 / 500
"""Seconds of 300 epochs of a million images for DearKD-Ti, without a teacher."""
STAGE_GB = 2 * 16 * 5_717_704 / 1e9


@pytest.fixture(scope="module")
def plan():
    """The paper's scale, where each run asks its teacher."""
    return experiments.load(
        override(experiments.load_scale("imagenet"), {"label_epochs": 0, "synthesis.shard_batches": 80}, "test")
    )


def estimate(plan, *names, **given):
    runs = [plan.runs[name] for name in names]
    return cost.estimate(plan, runs, SPEED, MILLION, SIZE, **given)


def test_one_run_by_hand(plan):
    """300 epochs of a million images at 3/500 s, the teacher's forward in the first 250; 3 seeds, 8 GPUs a job."""
    found = estimate(plan, "dearkd-Ti")
    one = TRAINED + 250e6 / 250
    assert found.jobs == 3 * 2
    assert found.gpu_hours == pytest.approx(3 * one / 3600) == pytest.approx(2333.333, abs=1e-3)
    assert found.longest_hours == pytest.approx(one / 8 / 3600)
    assert found.disk_gb == pytest.approx(3 * 2 * STAGE_GB)


def test_a_share_of_a_gpu_makes_a_job_longer_and_costs_the_same(plan):
    whole, quarter = (
        experiments.load(dataclasses.replace(plan.scale, resources=dict.fromkeys(JOBS, Resources(gpu=n))))
        for n in (1.0, 0.25)
    )
    for name in ("dearkd-Ti", "dearkd-Ti-images~adi"):
        one, four = estimate(whole, name), estimate(quarter, name)
        assert four.gpu_hours == one.gpu_hours and four.longest_hours == pytest.approx(4 * one.longest_hours)


def test_labels_are_paid_for_once(plan):
    """250 epochs of a million labels; 0.36 of the teacher's forward remains, or none without the hidden loss."""
    cached = experiments.load(override(plan.scale, {"label_epochs": 10}, "test"))
    one, two = estimate(cached, "dearkd-Ti"), estimate(cached, "dearkd-Ti", "deit_distilled-Ti")
    ahead, forward = 250e6 / 250, 250e6 / 250
    assert one.jobs == 3 * 2 + 3 * 25
    assert one.gpu_hours == pytest.approx(3 * (TRAINED + 0.36 * forward + ahead) / 3600)
    assert one.disk_gb == pytest.approx(3 * 2 * STAGE_GB + 3 * 2 * 250e6 / 1e9)
    token = 300e6 * 3 / SPEED["deit_tiny_distilled_patch16_224"]
    assert two.gpu_hours - one.gpu_hours == pytest.approx(3 * (token + 50e6 / 250) / 3600), "its last 50 epochs"


def test_on_all_of_imagenet_with_the_papers_throughputs(plan):
    """384,350,100 images a run: DeiT-Ti takes 3/2536.5 s of each, distilled 3/2529.5 and the teacher's 1/334.7."""
    given = (cost.paper_throughputs(), {"main": 1_281_167}, cost.paper_parameters())
    seconds = 300 * 1_281_167 * (3 / 2536.5)
    found = cost.estimate(plan, [plan.runs["deit-Ti"]], *given)
    assert found.jobs == 3 and found.gpu_hours == pytest.approx(3 * seconds / 3600) == pytest.approx(378.8, abs=0.1)
    found = cost.estimate(plan, [plan.runs["deit_distilled-Ti"]], *given)
    assert found.gpu_hours == pytest.approx(3 * 384_350_100 * (3 / 2529.5 + 1 / 334.7) / 3600)


def test_a_tenth_of_the_images_costs_as_much_unless_epochs_are_kept(plan):
    assert estimate(plan, "deit-Ti-fraction~10") == estimate(plan, "deit-Ti")
    epochs = experiments.load(override(plan.scale, {"training.subset_schedule": "epochs"}, "test"))
    tenth, whole = estimate(epochs, "deit-Ti-fraction~10"), estimate(epochs, "deit-Ti")
    assert tenth.gpu_hours == pytest.approx(whole.gpu_hours / 10)


def test_synthetic_images_by_hand(plan):
    """15,239 batches of 42 in 191 shards; an image takes 2000 passes at a quarter of the area and 2000 at full size."""
    found = estimate(plan, "dearkd-Ti-images~df_dearkd")
    image, trained = 3 * (2000 / 4 + 2000) / 1000, TRAINED + 250e6 / 1000
    assert found.jobs == 3 * (2 + 191)
    assert found.gpu_hours == pytest.approx(3 * (640_038 * image + trained) / 3600)
    assert found.longest_hours == pytest.approx((80 * 42 * image + trained / 8) / 3600)
    assert found.disk_gb == pytest.approx(3 * (2 * STAGE_GB + 640_038 * 224 * 224 * 3 * 0.7 / 1e9))
    alone = estimate(plan, sources=["df_dearkd"])
    assert alone.jobs == 3 * 191 and alone.longest_hours == pytest.approx(80 * 42 * image / 3600)


def test_an_epoch_of_synthetic_images_may_be_shorter(plan):
    epochs = experiments.load(override(plan.scale, {"training.subset_schedule": "epochs"}, "test"))
    found, images = estimate(epochs, "dearkd-Ti-images~df_dearkd"), estimate(epochs, sources=["df_dearkd"])
    trained = 640_038 * (300 * 3 / 500 + 250 / 1000)
    assert found.gpu_hours - images.gpu_hours == pytest.approx(3 * trained / 3600)


def test_adi_waits_for_the_students_that_compete_with_it(plan):
    """DeepInversion, its student, then four rounds, each with a student before it; the last run learns from all."""
    found = estimate(plan, "dearkd-Ti-images~adi")
    plain, trained = 3 * 2500 / 1000, TRAINED + 250e6 / 1000
    competing = plain + 3 * 4000 / 500
    assert found.jobs == 3 * (5 * 2 + 2 * 191)
    assert found.gpu_hours == pytest.approx(3 * (640_038 * (plain + competing) + 5 * trained) / 3600)
    longest = 3360 * plain + 4 * 3360 * competing + 5 * trained / 8
    assert found.longest_hours == pytest.approx(longest / 3600)
    assert estimate(plan, "dearkd-Ti-images~adi", "adi-student-round2", sources=["deepinversion"]) == found


def test_a_run_waits_for_the_teacher_that_is_trained_and_the_run_that_it_starts_from():
    digits = experiments.load("digits")
    speed = {**SPEED, "convnet_micro": 100.0}
    size = {**SIZE, "convnet_micro": 1000}
    run, teacher = digits.runs["dearkd-Ti"], digits.runs["teacher-main"]
    alone = cost.estimate(digits, [teacher], speed, MILLION, size)
    assert alone.jobs == 1 and alone.disk_gb == pytest.approx(2 * 16 * 1000 / 1e9)
    found = cost.estimate(digits, [run], speed, MILLION, size)
    assert found.jobs == 1 + 2 * len(run.seeds)
    own = (found.gpu_hours - alone.gpu_hours) / len(run.seeds)
    assert found.longest_hours == pytest.approx(alone.longest_hours + own), "without a GPU a job has one device"
    after = dataclasses.replace(digits.runs["deit-Ti"], name="after", initial="dearkd-Ti")
    assert cost.estimate(digits, [after], speed, MILLION, size).longest_hours > found.longest_hours


@pytest.mark.parametrize(
    "speed, images, size, message",
    [
        ({"dearkd_tiny_patch16_224": 1.0}, MILLION, SIZE, "the images/s of regnety_160 is unknown; known: dearkd_tiny"),
        (SPEED, {}, SIZE, "the number of images of main is unknown; known: none"),
        (SPEED, MILLION, {}, "the number of parameters of dearkd_tiny_patch16_224 is unknown"),
    ],
)
def test_what_has_no_figure_is_named(plan, speed, images, size, message):
    with pytest.raises(InputError, match=message):
        cost.estimate(plan, [plan.runs["dearkd-Ti"]], speed, images, size)


def test_the_cores_that_feed_a_gpu_by_hand(plan):
    """DeiT-Ti at 1000 images/s forward trains 333.3, of 300 a core; DearKD's stage I waits for its teacher too."""
    runs = [plan.runs[name] for name in ("deit-Ti", "dearkd-Ti")]
    assert cost.loading(plan, runs, SPEED) == (
        "deit_tiny_patch16_224 takes 333 images/s on a GPU: "
        "1.1 CPU cores at 300 images/s each; the GPU decides, with 12"
    )
    # 3/500 + 1/250 s an image in stage I, 3/500 in stage II: 166.7 images/s
    assert "takes 167 images/s on a GPU: 0.6 CPU" in cost.loading(plan, runs[1:], SPEED)
    main = dataclasses.replace(plan.scale.data["main"], presize=320)
    copied = experiments.load(dataclasses.replace(plan.scale, data={**plan.scale.data, "main": main}))
    assert "0.9 CPU cores at 390 images/s" in cost.loading(copied, [copied.runs["deit-Ti"]], SPEED)


def test_where_the_cores_load_less_than_the_gpu_trains_they_decide(plan):
    """Ten times as fast, DeiT-Ti trains 3,333 images/s of the 3,000 that 10 of 80 cores load; DearKD-Ti 1,667."""
    fast = {name: 10 * rate for name, rate in SPEED.items()}
    resources = {**plan.scale.resources, "train": Resources(threads=80, gpu=8.0)}
    tight = experiments.load(dataclasses.replace(plan.scale, resources=resources))
    runs = [tight.runs[name] for name in ("deit-Ti", "dearkd-Ti")]
    assert cost.loading(tight, runs, fast).endswith(
        "11.1 CPU cores at 300 images/s each; LOADING DECIDES: a GPU has 10"
    )
    both = [[cost.estimate(tight, [run], fast, MILLION, SIZE, fed=fed) for fed in (False, True)] for run in runs]
    assert both[0][1].gpu_hours == pytest.approx(3 * 300e6 / 3000 / 3600)
    assert both[0][1].gpu_hours == pytest.approx(10 / 9 * both[0][0].gpu_hours) and both[1][0] == both[1][1]
    said = cost.describe(both[0][0], 8, "", "", both[0][1]).splitlines()
    assert said[1:3] == [
        "GPU-hours      75.0, 83.3 with the CPU cores of the scale",
        "on 8 GPUs      10.4 hours, 0.4 days",
    ]


def test_digits_are_not_loaded_from_files():
    digits = experiments.load("digits")
    assert cost.loading(digits, digits.runs.values(), SPEED) == ""
    assert "loading" not in cost.describe(cost.Cost(0, 0.0, 0.0, 0.0), 1, "measured here")


def test_nothing_costs_nothing(plan):
    assert estimate(plan) == cost.Cost(0, 0.0, 0.0, 0.0)


def test_the_estimate_in_words():
    found = cost.Cost(jobs=1914, gpu_hours=4800.0, longest_hours=50.0, disk_gb=723.94)
    assert cost.describe(found, 8, "measured here").splitlines() == [
        "jobs           1,914",
        "GPU-hours      4,800.0",
        "on 8 GPUs      600.0 hours, 25.0 days",
        "disk           723.9 GB",
        "throughputs    measured here",
    ]
    assert "on 1000 GPUs   50.0 hours, 2.1 days" in cost.describe(found, 1000, "")


def test_the_papers_figures():
    speed, size = cost.paper_throughputs(), cost.paper_parameters()
    assert speed["regnety_160"] == 334.7 and speed["dearkd_small_patch16_224"] == 570.1 and speed["resnet101"] == 753.6
    assert speed["deit_tiny_distilled_patch16_224"] == 2529.5 and size["dearkd_tiny_patch16_224"] == 5_717_704
    assert not [name for name in speed if "." in name or " " in name or name in ("not", "ours", "arch")]
    assert len(speed) == 36 - 3 - 3 - 3 + len(cost.SMALL), "three that timm lacks, six rows of 1000 epochs"


def test_sizes_of_data_sets(plan, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cost.images_of(plan)["main"] == 1_281_167
    folder = plan.paths.subsets("main")
    folder.mkdir(parents=True)
    (folder / "data.json").write_text(json.dumps({"images": {"train-100": 999}}))
    assert cost.images_of(plan)["main"] == 999
