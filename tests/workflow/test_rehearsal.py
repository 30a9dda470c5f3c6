"""A dress rehearsal of the paper's scale: its real recipe, models and teacher on a tiny folder in ImageNet's layout."""

import csv
import json

import numpy as np
import pytest
import timm
from conftest import copy_project, snakemake
from PIL import Image
from safetensors.torch import save_file

pytestmark = pytest.mark.slow

SCALE = """
extends: imagenet
name: rehearsal
summary: two classes of generated JPEG files, two steps a stage, CPU
seeds: [0]
fractions: [50, 100]
data:
  main: {root: tiny, classes: 2}
  other: {kind: folder, root: other, classes: 3, image_size: 240}
students: {Ti: {size: tiny, deit_heads: 3, dearkd_heads: 12}}
teachers: {main: {weights: regnety_160.safetensors, tolerance: 100}}
training: {epochs: 2, stage1_epochs: 1, batch: 8, micro_batch: 4, warmup_epochs: 0}
transfer: {targets: [other], recipes: {sgd: {epochs: 1, stage1_epochs: 1, batch: 8, micro_batch: 4, warmup_epochs: 0}}}
throughput: {repeats: 0}
loader_workers: 1
label_epochs: 1
resources:
  data: {threads: 1}
  teacher: {threads: 2, gpu: 0}
  train: {threads: 2, gpu: 0}
  evaluate: {threads: 2, gpu: 0}
  throughput: {threads: 2, gpu: 0}
only: [table2, table3, table4]
quoted:
  table2: [DeiT-Ti, DeiT-Ti distilled]
  table3: [DeiT-Ti, DeiT-S, DeiT-B, DeiT-Ti-distilled, DeiT-S-distilled, DeiT-B-distilled, DeiT-Ti-distilled-1000,
           DeiT-S-distilled-1000, DeiT-B-distilled-1000, DearKD-S, DearKD-B, DearKD-Ti-1000, DearKD-S-1000,
           DearKD-B-1000, ResNet-18, ResNet-50, ResNet-101, ResNet-152, EffiNet-B0, EffiNet-B3, EffiNet-B4, EffiNet-B6,
           EffiNet-B7, Swin-T, Swin-S, Swin-B, Swin-B-384]
  table4: [DeiT-B, DeiT-B-distilled, DearKD-S, DearKD-B]
peers: {RegNetY-16GF: {weights: regnety_160.safetensors}}
"""


def write_images(root, classes, train, val):
    """JPEG files of photographs' usual sizes, named as ImageNet's are; a class has its own hue."""
    random = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for c in range(classes):
            folder = root / split / f"n{c:08d}"
            folder.mkdir(parents=True)
            for i in range(count):
                height, width = random.integers(180, 300, 2)
                pixels = random.integers(0, 160, (height, width, 3), dtype=np.uint8)
                pixels[..., c % 3] += 90
                name = f"ILSVRC2012_val_{c}{i:07d}.JPEG" if split == "val" else f"n{c:08d}_{i}.JPEG"
                Image.fromarray(pixels).save(folder / name)


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory):
    folder = copy_project(tmp_path_factory.mktemp("rehearsal"))
    (folder / "rehearsal.yaml").write_text(SCALE)
    write_images(folder / "tiny", classes=2, train=8, val=4)
    write_images(folder / "other", classes=3, train=6, val=2)
    teacher = timm.create_model("regnety_160", num_classes=2)
    save_file(teacher.state_dict(), folder / "regnety_160.safetensors")
    snakemake("--config", "scale=rehearsal.yaml", "--", "all", cwd=folder)
    return folder


def record(folder, path):
    return json.loads((folder / "results/rehearsal" / path).read_text())


def test_it_trains_the_papers_models_by_the_papers_recipe(rehearsed):
    first, second = (record(rehearsed, f"runs/dearkd-Ti/seed0/{stage}.json") for stage in ("I", "II"))
    assert (first["steps"], second["steps"]) == (2, 4), "steps count on from stage to stage"
    stage = first["specs"][0]
    assert stage["model"]["name"] == "dearkd_tiny_patch16_224"
    assert (
        stage["training"]["augment"]["auto"] == "rand-m9-mstd0.5-inc1" and stage["training"]["augment"]["repeats"] == 3
    )
    assert [name for name, _ in stage["losses"]] == ["ce", "logit", "hidden"]
    assert stage["teacher"]["model"] == "regnety_160.deit_in1k"
    assert record(rehearsed, "teachers/main.json")["features"][2] == {
        "stage": 2,
        "channels": 448,
        "size": [28, 28],
        "nonnegative": True,
    }
    assert set(first["curve"][0]) >= {"ce", "logit", "hidden", "validation_top1", "attention_distance"}
    assert len(first["curve"][0]["attention_distance"]) == 12
    # two classes: 998 rows of 193 fewer in the head than 5,717,704
    assert record(rehearsed, "runs/dearkd-Ti/seed0/metrics.json")["parameters"] == 5_717_704 - 998 * 193


def test_a_fraction_has_half_the_images_and_as_many_steps(rehearsed):
    half = record(rehearsed, "runs/dearkd-Ti-fraction~50/seed0/I.json")
    assert (half["data"]["images"], half["data"]["draws_per_epoch"], half["steps"]) == (8, 16, 2)


def test_it_is_fine_tuned_on_other_data_at_another_resolution(rehearsed):
    tuned = record(rehearsed, "runs/transfer-Ti-target~other/seed0/transfer.json")
    assert tuned["initial"]["weights_sha256"] == record(rehearsed, "runs/dearkd-Ti/seed0/II.json")["weights_sha256"]
    assert dict(tuned["specs"][0]["model"]["args"])["img_size"] == 240 and tuned["teacher"] is None


def test_its_tables_say_where_each_number_comes_from(rehearsed):
    sources = {}
    for table in ("table2", "table3", "table4"):
        with (rehearsed / f"results/rehearsal/tables/{table}.csv").open() as file:
            rows = list(csv.DictReader(file))
        sources[table] = [r["source"] for r in rows if r["metric"] == "top1"]
    assert sources["table2"] == ["quoted"] * 4 + ["measured"] * 2
    assert sources["table3"].count("pretrained") == 1 and sources["table3"].count("measured") == 1
    assert sources["table4"].count("measured") == 1
    text = (rehearsed / "results/rehearsal/tables/table3.md").read_text()
    assert "| 5.7 | 1.28 | 224 |" in text and "pretrained |" in text
