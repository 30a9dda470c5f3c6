"""CIFAR: both layouts and their faults, the scale's teacher, its dress rehearsal on generated files."""

import csv
import functools
import hashlib
import http.server
import io
import json
import pickle
import struct
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from conftest import copy_project, pattern, snakemake
from torchvision import datasets as theirs

import dearkd.models  # noqa: F401  registers the models
from dearkd.data import cifar, datasets
from dearkd.errors import InputError
from dearkd.model import teachers
from dearkd.plan import cost, experiments, methods
from dearkd.plan.experiments import load_scale
from dearkd.plan.stage import Data

pytestmark = pytest.mark.slow


def generated(count, classes, seed=0):
    """(labels, pixels) of `count` images as CIFAR stores them: 3,072 bytes each, red, then green, then blue."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    pixels = random.integers(0, 150, (count, 3, 32, 32), dtype=np.uint8)
    pixels[np.arange(count), labels % 3] += 100  # a hue for each class, so that there is something to learn
    return labels, pixels.reshape(count, -1)


def write_binary(folder, kind, labels, pixels, files):
    """Images shared out over the files of the binary version."""
    folder.mkdir(parents=True, exist_ok=True)
    coarse = [labels // 5] if kind == "cifar100" else []
    lines = np.column_stack([*coarse, labels, pixels]).astype(np.uint8)
    for name, part in zip(files, np.array_split(lines, len(files)), strict=True):
        (folder / name).write_bytes(part.tobytes())


class Python2(pickle._Pickler):
    """Writes bytes as Python 2 wrote its strings, in which CIFAR's arrays are."""

    dispatch = pickle._Pickler.dispatch.copy()

    def save_bytes(self, value):
        self.write(b"T" + struct.pack("<i", len(value)) + value)

    dispatch[bytes] = save_bytes


def pickled(value):
    file = io.BytesIO()
    Python2(file, protocol=2).dump(value)
    return file.getvalue()


def spec(kind, root, **changes):
    return Data(**{"kind": kind, "root": str(root), "classes": 100, "image_size": 32} | changes)


@pytest.mark.parametrize("kind", ["cifar10", "cifar100"])
def test_both_layouts_give_the_same_images(kind, tmp_path, monkeypatch):
    classes = 10 if kind == "cifar10" else 100
    binary, torchvisions = cifar.BINARY[kind], {"cifar10": theirs.CIFAR10, "cifar100": theirs.CIFAR100}[kind]
    expected = {split: generated(20, classes, seed) for seed, split in enumerate(("train", "test"))}
    for split, (labels, pixels) in expected.items():
        write_binary(tmp_path / "binary" / binary.folder, kind, labels, pixels, binary.files[split])
        folder = tmp_path / "pickles" / torchvisions.base_folder
        folder.mkdir(parents=True, exist_ok=True)
        files = [name for name, _ in getattr(torchvisions, f"{split}_list")]
        sums = []
        for name, part in zip(files, np.array_split(np.arange(20), len(files)), strict=True):
            key = "labels" if kind == "cifar10" else "fine_labels"
            raw = pickled({"data": pixels[part], key: labels[part].tolist(), "filenames": ["a"]})
            (folder / name).write_bytes(raw)
            sums.append([name, hashlib.md5(raw).hexdigest()])
        monkeypatch.setattr(torchvisions, f"{split}_list", sums)
    one, other = (datasets.read(spec(kind, tmp_path / name, classes=classes)) for name in ("binary", "pickles"))
    for split, (labels, pixels) in expected.items():
        assert one[split].labels.tolist() == other[split].labels.tolist() == labels.tolist()
        assert (one[split].pixels[3, 5, 7] == pixels[3].reshape(3, 32, 32)[:, 5, 7]).all()
        assert (one[split].pixels == other[split].pixels).all() and one[split].names == other[split].names
    assert one["train"].names[:2] == ["train-00000", "train-00001"]


def test_a_pickle_that_names_anything_but_arrays_is_refused_before_it_runs(tmp_path, monkeypatch):
    folder = tmp_path / theirs.CIFAR100.base_folder
    folder.mkdir()
    raw = pickle.dumps({"data": Path("/"), "fine_labels": [0]})
    (folder / "train").write_bytes(raw)
    with pytest.raises(InputError, match=r"train: missing or damaged \(another MD5\)"):
        datasets.read(spec("cifar100", tmp_path))
    monkeypatch.setattr(theirs.CIFAR100, "train_list", [["train", hashlib.md5(raw).hexdigest()]])
    with pytest.raises(InputError, match=r"train: refused: the pickle names pathlib"):
        datasets.read(spec("cifar100", tmp_path))


def test_what_is_wrong_with_the_files_is_said(tmp_path):
    with pytest.raises(
        InputError, match="cifar100 is missing, because there is no folder cifar-100-binary or cifar-100-python"
    ):
        datasets.read(spec("cifar100", tmp_path))
    folder = tmp_path / "cifar-100-binary"
    write_binary(folder, "cifar100", *generated(4, 100), ("train.bin",))
    with pytest.raises(InputError, match=r"test\.bin: missing; delete its folder and fetch"):
        datasets.read(spec("cifar100", tmp_path))
    write_binary(folder, "cifar100", *generated(4, 100), ("test.bin",))
    with pytest.raises(InputError, match="train labels run from 0 to 3, but the scale says classes: 2"):
        datasets.read(spec("cifar100", tmp_path, classes=2))
    for cut in (b"", (folder / "train.bin").read_bytes()[:-1]):
        (folder / "train.bin").write_bytes(cut)
        with pytest.raises(InputError, match=rf"train\.bin: {len(cut):,} bytes are not whole images of 3,074"):
            datasets.read(spec("cifar100", tmp_path))


@pytest.fixture
def serve():
    """A function that serves a folder by HTTP and returns its address."""
    servers = []

    def start(folder):
        handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
        servers.append(http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_fetch_brings_the_archive_only_when_its_sha256_is_the_known_one(tmp_path, monkeypatch, serve):
    """The download itself, from a server on this machine: unpacked, and refused when it is another archive."""
    known = cifar.BINARY["cifar100"]
    for split in ("train", "test"):
        write_binary(tmp_path / known.folder, "cifar100", *generated(6, 100), known.files[split])
    archive = tmp_path / "cifar-100-binary.tar.gz"
    with tarfile.open(archive, "w:gz") as file:
        file.add(tmp_path / known.folder, known.folder)
    here = known._replace(
        url=f"{serve(tmp_path)}/{archive.name}", sha256=hashlib.sha256(archive.read_bytes()).hexdigest()
    )
    monkeypatch.setitem(cifar.BINARY, "cifar100", here)
    cifar.fetch("cifar100", str(tmp_path / "root"))
    assert len(datasets.read(spec("cifar100", tmp_path / "root"))["train"]) == 6
    assert not (tmp_path / "root" / archive.name).exists()
    monkeypatch.setitem(cifar.BINARY, "cifar100", here._replace(sha256=known.sha256))
    with pytest.raises(InputError, match="the sha256 of the download is not"):
        cifar.fetch("cifar100", str(tmp_path / "other"))
    assert [*(tmp_path / "other").iterdir()] == []


# ---------------------------------------------------------------------------------------------- the teacher


def test_resnet56_is_the_one_for_cifar():
    """6n + 2 layers, n = 9, of 16, 32 and 64 channels at 32, 16 and 8 pixels; 0.86 million parameters."""
    net = timm.create_model("resnet56_cifar", num_classes=100)
    assert sum(p.numel() for p in net.parameters()) == 861_620
    kernels = [m for m in net.modules() if isinstance(m, torch.nn.Conv2d) and m.kernel_size == (3, 3)]
    assert len(kernels) + 1 == 56, "the classifier is the last layer"
    features = net.forward_intermediates(torch.zeros(2, 3, 32, 32))[1]
    assert [tuple(f.shape[1:]) for f in features] == [(16, 32, 32), (32, 16, 16), (64, 8, 8)]


def figures(plan):
    """What the verb `plan` gives the estimate."""
    return cost.paper_throughputs(), cost.images_of(plan), cost.paper_parameters()


def test_the_teacher_learns_and_sees_at_its_own_side(monkeypatch):
    monkeypatch.setenv("CIFAR", "/nowhere")
    plan = experiments.load("cifar100")
    assert 100 < cost.estimate(plan, plan.runs_of("table1", "table2"), *figures(plan)).gpu_hours < 1000
    (trained,) = plan.runs["teacher-main"].stages
    taught = plan.runs["dearkd-Ti"].stages[0]
    assert (trained.data.image_size, taught.data.image_size) == (32, 224)
    net = pattern(timm.create_model("resnet56_cifar", num_classes=100)).eval()
    teacher = teachers.TeacherNetwork(net, (1,), side=taught.teacher.image_size)
    images = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    small = F.interpolate(images, 32, mode="bilinear", antialias=True)
    seen = teacher(images)
    assert [tuple(f.shape) for f in seen.features] == [(2, 32, 16, 16)]
    assert torch.equal(seen.features[0], net.forward_intermediates(small, indices=[1])[1][0])
    assert torch.equal(seen.decisions, net(small).argmax(1))


def test_a_teacher_without_a_side_of_its_own_learns_at_the_datas():
    digits = load_scale("digits")
    smaller = load_scale("digits", {"teachers": {"main": {"image_size": 8}}})
    runs = [methods.teacher(scale, "main")[0] for scale in (digits, smaller)]
    assert [run.data.image_size for run in runs] == [12, 8]


# ---------------------------------------------------------------------------------------------- the dress rehearsal

SCALE = """
extends: cifar100
name: rehearsal
summary: four classes of generated images in CIFAR-100's layout, two steps a stage, CPU
seeds: [0]
fractions: [100]
data: {main: {root: files, classes: 4}}
teachers: {main: {tolerance: 100, training: {epochs: 2, stage1_epochs: 2, batch: 4, micro_batch: 4}}}
training: {epochs: 2, stage1_epochs: 1, batch: 4, micro_batch: 4, warmup_epochs: 0}
attention_images: 2
loader_workers: 0
only: [table2, figure1, figure3]
quoted: {table2: [DeiT-Ti distilled]}
resources: {teacher: {threads: 1, gpu: 0}, train: {threads: 1, gpu: 0}, evaluate: {threads: 1, gpu: 0}}
"""


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory):
    folder = copy_project(tmp_path_factory.mktemp("cifar100"))
    (folder / "rehearsal.yaml").write_text(SCALE)
    for split, count in (("train", 8), ("test", 4)):
        files = cifar.BINARY["cifar100"].files[split]
        write_binary(folder / "files/cifar-100-binary", "cifar100", *generated(count, 4), files)
    snakemake("--config", "scale=rehearsal.yaml", "--", "all", "claims", cwd=folder)
    return folder / "results/rehearsal"


def test_the_scale_runs_from_cifars_files_to_its_tables(rehearsed):
    first = json.loads((rehearsed / "runs/dearkd-Ti/seed0/I.json").read_text())
    taught, training = first["specs"][0]["teacher"], first["specs"][0]["training"]
    assert (first["steps"], first["data"]["images"]) == (2, 8)
    assert (taught["model"], taught["image_size"]) == ("resnet56_cifar", 32)
    assert training["augment"]["auto"] == "rand-m9-mstd0.5-inc1" and training["augment"]["mixup"] == 0
    found = json.loads((rehearsed / "teachers/main.json").read_text())
    assert [f["size"] for f in found["features"]] == [[32, 32], [16, 16], [8, 8]]
    trained = json.loads((rehearsed / "runs/teacher-main/seed0/I.json").read_text())
    assert trained["specs"][0]["data"]["image_size"] == 32 and trained["specs"][0]["training"]["nesterov"]
    with (rehearsed / "tables/table2.csv").open() as file:
        rows = [r for r in csv.DictReader(file) if r["metric"] == "top1"]
    assert [r["source"] for r in rows] == ["measured", "quoted", "measured"]
    assert "DearKD-Ti" in (rehearsed / "tables/table2.md").read_text()
    assert (rehearsed / "claims.md").is_file() and (rehearsed / "savings.md").is_file()
