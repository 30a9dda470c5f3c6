"""The model in the ecosystem: timm's interfaces, torch.export, ONNX, and a folder that timm loads."""

import html
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import timm
import torch
from conftest import PROJECT, copy_project, small_disk
from markdown_it import MarkdownIt
from PIL import Image

import dearkd.models  # noqa: F401  registers the students
from dearkd import disk, record
from dearkd.__main__ import main
from dearkd.data import datasets
from dearkd.data.loader import evaluation_loader
from dearkd.jobs import export, inputs
from dearkd.jobs.evaluate import evaluate_run
from dearkd.jobs.subset import list_subsets
from dearkd.jobs.train import train_stage
from dearkd.plan import commands, experiments, verify

pytestmark = pytest.mark.slow

SMALL = {"depth": 4, "n_mhca": 2, "embed_dim": 48, "num_heads": 4, "patch_size": 8, "num_classes": 10}


@pytest.fixture
def student():
    torch.manual_seed(0)
    model = timm.create_model("dearkd_tiny_patch16_224", img_size=32, **SMALL)
    for parameter in model.parameters():  # alpha 0 and zero biases would hide what an export forgets
        torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


@pytest.fixture
def images():
    return torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def test_torch_export_gives_the_same_logits_for_any_batch(student, images):
    exported = torch.export.export(student, (images[:2],), dynamic_shapes=({0: torch.export.Dim("batch")},))
    for batch in (images, images[:1]):
        torch.testing.assert_close(exported.module()(batch), student(batch), atol=1e-5, rtol=0)


def test_onnx_gives_the_same_logits_for_any_batch(student, images):
    spec = experiments.load("smoke").scale.data["main"].__class__(kind="folder", classes=10, image_size=32)
    session = onnxruntime.InferenceSession(export.to_onnx(student, spec))
    for batch in (images, images[:1]):
        (logits,) = session.run(["logits"], {"images": batch.numpy()})
        assert np.abs(logits - student(batch).detach().numpy()).max() < 1e-5


def test_features_only_is_timms(student, images):
    """The same maps as the blocks' outputs by forward_intermediates."""
    net = timm.create_model("dearkd_tiny_patch16_224", features_only=True, img_size=32, out_indices=(1, 3), **SMALL)
    net.model.load_state_dict(student.state_dict(), strict=False)
    expected = student.forward_intermediates(images, indices=[1, 3], intermediates_only=True)
    for got, wanted in zip(net.eval()(images), expected, strict=True):
        assert got.shape == (5, 48, 4, 4)
        torch.testing.assert_close(got, wanted)


def test_timm_loads_the_folder_and_gives_the_runs_logits_and_predictions(project, tmp_path, capsys):
    """The folder alone, through timm's own transform, decides on test images as the record says."""
    folder = tmp_path / "out"
    arguments = ["export", "dearkd-Ti", "--scale", "smoke", "--seed", "0", "--out", str(folder), "--onnx"]
    assert main(arguments) == 0
    assert (
        capsys.readouterr().out.splitlines()[-1].endswith(f'timm.create_model("local-dir:{folder}", pretrained=True)')
    )
    plan = experiments.load("smoke")
    trained, _ = inputs.trained_student(plan, plan.runs["dearkd-Ti"], 0)
    loaded = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    spec = plan.scale.data["main"]
    images, _ = next(evaluation_loader(datasets.read(spec)["test"], spec, 50))
    torch.testing.assert_close(loaded(images), trained.eval()(images), atol=1e-5, rtol=0)
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    assert np.abs(session.run(None, {"images": images.numpy()})[0] - loaded(images).detach().numpy()).max() < 1e-5
    transform = timm.data.create_transform(**timm.data.resolve_data_config(model=loaded))
    pixels = datasets.read(spec)["test"].pixels[:50]
    prepared = torch.stack([transform(Image.fromarray(p.squeeze())) for p in pixels])
    torch.testing.assert_close(prepared, images, atol=1e-5, rtol=1e-5)
    assert sorted(p.name for p in folder.iterdir()) == ["README.md", "config.json", "model.onnx", "model.safetensors"]


def test_the_card_says_what_the_records_say(project, tmp_path):
    folder = tmp_path / "out"
    assert main(["export", "dearkd-Ti", "--scale", "smoke", "--out", str(folder)]) == 0
    card = (folder / "README.md").read_text()
    tested = record.read(Path("results/smoke/runs/dearkd-Ti/seed0/metrics.json"))
    taught = record.read(Path("results/smoke/runs/dearkd-Ti/seed0/I.json"))["teacher"]
    assert f"| top-1 | {tested['metrics']['top1']:.2f} % on {tested['data']['images']} test images |" in card
    assert f"| teacher | `convnet_micro`, top-1 {taught['top1']:.2f} % |" in card
    assert disk.sha256(folder / "model.safetensors") in card and "not recorded" in card
    assert "stages | I: epochs 0 to 2, 0.5 ce" in card and "model.onnx" not in card
    assert json.loads((folder / "config.json").read_text())["architecture"] == "dearkd_tiny_patch16_224"
    table = card[card.index("| top-1") :].split("\n\n")[0].splitlines()
    assert all(re.fullmatch(r"\| [^|]+ \| [^|]+ \|", line) for line in table), "no blank or broken row"


def test_a_clone_takes_weights_that_are_kept_beside_their_record_and_no_others(project, tmp_path, capsys):
    weights = Path("checkpoints/smoke/dearkd-Ti/seed0/II/student.safetensors")
    before = weights.read_bytes()
    assert main(["keep", "dearkd-Ti", "--scale", "smoke"]) == 0
    kept = Path(capsys.readouterr().out.removeprefix("Weights: ").strip())
    shutil.rmtree("checkpoints")
    assert main(["export", "dearkd-Ti", "--scale", "smoke", "--out", str(tmp_path / "out")]) == 0
    assert weights.read_bytes() == before
    shutil.rmtree("checkpoints")
    kept.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    assert main(["export", "dearkd-Ti", "--scale", "smoke", "--out", str(tmp_path / "other")]) == 2
    assert "make it again" in capsys.readouterr().err and not weights.exists()


def test_the_weights_that_a_clone_has_are_those_of_their_records():
    """Every student of Tables 1 and 2 at `converged`, and any other that is committed."""
    found = sorted(path.relative_to(PROJECT) for path in PROJECT.glob("results/*/runs/*/seed*/student.safetensors"))
    plans = {name: experiments.load(name) for name in {path.parts[1] for path in found}}
    whole = plans["converged"]
    wanted = {
        run.name for table in ("table1", "table2") for run in whole.runs_of(table) if not run.name.endswith("long~yes")
    }
    assert {path.parts[3] for path in found if path.parts[1] == "converged"} >= wanted
    for path in found:
        plan, seed = plans[path.parts[1]], int(path.parts[4].removeprefix("seed"))
        run = plan.run(path.parts[3])
        trained, tested = verify.evaluation(plan, run, seed)
        assert disk.sha256(path) == trained[-1]["weights_sha256"] == tested["weights_sha256"]


@pytest.mark.parametrize(
    "spoil, said",
    [
        (
            lambda: Path("checkpoints/smoke/dearkd-Ti/seed0/II/student.safetensors").unlink(),
            "its weights are not committed",
        ),
        (lambda: Path("results/smoke/runs/dearkd-Ti/seed0/metrics.json").unlink(), "seed0/metrics.json"),
        (lambda: shutil.rmtree("results/smoke/runs/dearkd-Ti"), "-- results/smoke/runs/dearkd-Ti/seed0/metrics.json"),
    ],
)
def test_what_is_missing_is_named_and_nothing_is_written(project, tmp_path, capsys, spoil, said):
    spoil()
    assert main(["export", "dearkd-Ti", "--scale", "smoke", "--out", str(tmp_path / "out")]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_run_without_weights_names_the_scales_that_have_them(project, tmp_path, capsys):
    Path("checkpoints/smoke/dearkd-Ti/seed0/II/student.safetensors").unlink()
    for scale, name in (("other", "dearkd-Ti"), ("third", "dearkd-Ti"), ("fourth", "dearkd-S")):
        kept = Path(f"results/{scale}/runs/{name}/seed0/student.safetensors")
        kept.parent.mkdir(parents=True)
        kept.touch()
    assert export_to(tmp_path / "out") == 2
    assert "take --scale other or third, whose weights are here, or make it again:" in capsys.readouterr().err


def export_to(folder, *options):
    return main(["export", "dearkd-Ti", "--scale", "smoke", "--out", str(folder), *options])


@pytest.mark.parametrize("key, value", [("mean", [0.1]), ("std", [0.9]), ("crop", 0.5), ("interpolation", "bilinear")])
def test_todays_preprocessing_is_not_written_for_weights_trained_with_another(project, tmp_path, capsys, key, value):
    text = (project / "workflow/scales/smoke.yaml").read_text()
    changed = text.replace("data: {main: {validation: 50}}", f"data: {{main: {{validation: 50, {key}: {value}}}}}")
    (project / "workflow/scales/smoke.yaml").write_text(changed)
    assert export_to(tmp_path / "out") == 2
    assert f"I.json: stale record (data.{key}: " in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["README.md", "config.json", "model.safetensors", "model.onnx"])
def test_a_file_that_no_export_wrote_is_not_replaced(project, tmp_path, capsys, name):
    """Also where an export has put its own beside it, and where somebody has changed what an export wrote."""
    options = ["--onnx"] if name == "model.onnx" else []
    (tmp_path / name).write_text("my notes")
    assert export_to(tmp_path, *options) == 2
    assert f"{name}: exists and no export wrote it; choose another folder" in capsys.readouterr().err
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir() if p.is_file()] == [(name, "my notes")]
    out = tmp_path / "out"
    assert export_to(out, *options) == 0
    with (out / name).open("ab") as file:
        file.write(b"a line of mine")
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    assert export_to(out, *options) == 2
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before


def test_an_earlier_export_is_replaced_whole(project, tmp_path):
    """What it wrote and this one does not is of other weights, so it goes; a file of somebody else's stays."""
    assert export_to(tmp_path, "--onnx") == 0
    (tmp_path / "notes.txt").write_text("mine")
    assert export_to(tmp_path) == 0
    files_there = {"README.md", "config.json", "model.safetensors", "notes.txt"}
    assert {p.name for p in tmp_path.iterdir() if p.is_file()} == files_there
    assert len({(tmp_path / name).stat().st_mode for name in files_there}) == 1, "each has its neighbours' mode"


def test_the_printed_way_out_works(project, tmp_path, capsys):
    """Weights are not committed: the commands printed, run as they are, and the export after them."""
    figure = project / "figures/smoke/figure1.png"
    figure.parent.mkdir(parents=True)
    figure.write_bytes(b"committed")
    weights = record.read(Path("results/smoke/runs/dearkd-Ti/seed0/II.json"))["weights_sha256"]
    shutil.rmtree("checkpoints")
    assert export_to(tmp_path / "out") == 2
    printed = capsys.readouterr().err.split("make it again: ")[1].strip()
    assert "teacher" not in printed, "its weights are kept beside its record"
    subprocess.run(printed.replace("python ", f"{sys.executable} "), shell=True, check=True, stdout=subprocess.DEVNULL)
    assert export_to(tmp_path / "out") == 0 and disk.sha256(tmp_path / "out/model.safetensors")
    assert record.read(Path("results/smoke/runs/dearkd-Ti/seed0/II.json"))["weights_sha256"] == weights
    assert figure.read_bytes() == b"committed"


def test_the_commands_name_everything_that_a_run_is_made_from(project):
    """A student of synthetic images in a clone whose records are there and whose weights are not: ADI's whole chain."""
    plan = experiments.load("smoke")
    shutil.rmtree("checkpoints")
    plan.paths.kept_weights("main").unlink()
    found = [c.removeprefix("python -m dearkd ") for c in commands.run(plan, plan.runs["dearkd-Ti-images~adi"], 0)]
    steps = [c.split(" --scale smoke")[0] + c.split(" --scale smoke")[1].replace(" --seed 0", "") for c in found]
    student = "'dearkd-Ti-images~deepinversion'"
    order = ["train teacher-main --stage I", "teacher main", "synthesize deepinversion --shard 0", f"train {student}"]
    order += [f"evaluate {student}", "synthesize adi --shard 0", "train 'dearkd-Ti-images~adi' --stage II"]
    places = [next(i for i, step in enumerate(steps) if step.startswith(wanted)) for wanted in order]
    assert places == sorted(places) and len(set(steps)) == len(steps)


def test_where_nothing_is_trained_the_way_out_is_a_target_of_the_workflow(project, tmp_path, capsys):
    shutil.rmtree("results/smoke/runs/dearkd-Ti")
    assert export_to(tmp_path / "out") == 2
    command = re.search(r"`snakemake (.*)`", capsys.readouterr().err)[1]
    done = subprocess.run(f"{sys.executable} -m snakemake -n {command}", shell=True, capture_output=True, text=True)
    assert done.returncode == 0 and re.search(r"^evaluate +1$", done.stdout, re.MULTILINE)


def test_a_full_disk_leaves_nothing_behind(project, tmp_path, capsys):
    with small_disk(tmp_path / "out", 80):
        assert export_to(tmp_path / "out") == 2
        assert "No space left on device" in capsys.readouterr().err and not list((tmp_path / "out").iterdir())


CLASSES = ("1", "10", "2", "été | `x` <script> [a](b)")


def test_classes_of_ones_own_are_named_in_the_order_of_the_outputs(tmp_path, monkeypatch):
    """In timm's config and on the card, whatever their folders are called; and no licence for what others own."""
    monkeypatch.chdir(copy_project(tmp_path))
    for number, name in enumerate(CLASSES):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(6):
            Image.new("RGB", (32, 32), (60 * number, 10 * i, 0)).save(tmp_path / "images" / name / f"{i}.png")
    Path("mine.yaml").write_text(
        "extends: custom\nname: mine\nseeds: [0]\nfractions: [100]\nonly: [table2]\n"
        "data: {main: {root: images, test_share: 0.2, classes: 4, validation: 4, image_size: 32}}\n"
        "students: {Ti: {args: {embed_dim: 36, depth: 4}, n_mhca: 3}}\n"
        "training: {epochs: 1, stage1_epochs: 1, warmup_epochs: 0, batch: 4, micro_batch: 4}\n"
        "teachers: {main: {training: {batch: 4, micro_batch: 4}}}\n"
    )
    plan = experiments.load("mine.yaml")
    run = plan.runs["deit-Ti"]
    list_subsets(plan, "main")
    train_stage(plan, run, 0, run.stages[0].name)
    evaluate_run(plan, run, 0)
    export.export(plan, run, 0, tmp_path / "out")
    test = datasets.read(plan.scale.data["main"])["test"]
    expected = [next(n.split("/")[0] for n, y in zip(test.names, test.labels, strict=True) if y == k) for k in range(4)]
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["label_names"] == expected and sorted(expected) == sorted(CLASSES) and config["num_classes"] == 4
    card = (tmp_path / "out/README.md").read_text()
    page = MarkdownIt().render(card.split("\n---\n")[1])
    assert "<script>" not in page and "license:" not in card
    assert [html.unescape(text) for text in re.findall(r"<li>(.*)</li>", page)] == expected


def test_every_block_of_code_in_the_documentation_runs(traceable):
    page = Path("docs/model.md").read_text()
    names = {}
    with pytest.warns(UserWarning, match="pos_embed: the weights were resampled to"):
        for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
            exec(block, names)
    assert names["logits"].shape == (1, 1000) and [m.shape for m in names["maps"]] == [(1, 192, 14, 14)] * 2
    assert names["model"](torch.zeros(1, 3, 160, 160)).shape == (1, 10)
    assert [m.shape for m in names["attention"].values()] == [(1, 12, 37, 37)] * 12
    assert names["task"].stage == 2 and names["result"]["output"].shape == (8, 10)
    assert names["larger"](torch.zeros(1, 3, 48, 48)).shape == (1, 10)
    assert [m.shape[-1] for m in names["backbone"](torch.zeros(1, 3, 96, 96))] == [6, 6, 6]
