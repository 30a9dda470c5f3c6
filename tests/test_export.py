"""The model in the ecosystem: timm's interfaces, torch.export, ONNX, and a folder that timm loads."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import timm
import torch
from PIL import Image

import dearkd.models  # noqa: F401  registers the students
from dearkd import artifacts, data, export, matrix, record
from dearkd.__main__ import main
from dearkd.loader import evaluation_loader

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


def test_onnx_gives_the_same_logits_for_any_batch(student, images, tmp_path):
    spec = matrix.load("smoke").scale.data["main"].__class__(kind="folder", classes=10, image_size=32)
    export.to_onnx(student, spec, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
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
    assert capsys.readouterr().out.splitlines()[-1] == f'timm.create_model("local-dir:{folder}", pretrained=True)'
    plan = matrix.load("smoke")
    trained, _ = artifacts.trained_student(plan, plan.runs["dearkd-Ti"], 0)
    loaded = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    spec = plan.scale.data["main"]
    images, _ = next(evaluation_loader(data.read(spec)["test"], spec, 50))
    torch.testing.assert_close(loaded(images), trained.eval()(images), atol=1e-5, rtol=0)
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    assert np.abs(session.run(None, {"images": images.numpy()})[0] - loaded(images).detach().numpy()).max() < 1e-5
    transform = timm.data.create_transform(**timm.data.resolve_data_config(model=loaded))
    pixels = data.read(spec)["test"].pixels[:50]
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
    assert artifacts.sha256(folder / "model.safetensors") in card and "not recorded" in card
    assert "stages | I: epochs 0 to 2, 0.5 ce" in card and "model.onnx" not in card
    assert json.loads((folder / "config.json").read_text())["architecture"] == "dearkd_tiny_patch16_224"
    table = card[card.index("| top-1") :].split("\n\n")[0].splitlines()
    assert all(re.fullmatch(r"\| [^|]+ \| [^|]+ \|", line) for line in table), "no blank or broken row"


@pytest.mark.parametrize(
    "spoil, said",
    [
        (
            lambda: Path("checkpoints/smoke/dearkd-Ti/seed0/II/student.safetensors").unlink(),
            "weights are not committed",
        ),
        (lambda: Path("results/smoke/runs/dearkd-Ti/seed0/metrics.json").unlink(), "seed0/metrics.json"),
        (lambda: shutil.rmtree("results/smoke/runs/dearkd-Ti"), "results/smoke/runs/dearkd-Ti/seed0/II.json"),
    ],
)
def test_what_is_missing_is_named_and_nothing_is_written(project, tmp_path, capsys, spoil, said):
    spoil()
    assert main(["export", "dearkd-Ti", "--scale", "smoke", "--out", str(tmp_path / "out")]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_every_block_of_code_in_the_documentation_runs(traceable):
    page = Path("docs/model.md").read_text()
    names = {}
    with pytest.warns(UserWarning, match="pos_embed: resampled to"):
        for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
            exec(block, names)
    assert names["logits"].shape == (1, 1000) and [m.shape for m in names["maps"]] == [(1, 192, 14, 14)] * 2
    assert names["model"](torch.zeros(1, 3, 160, 160)).shape == (1, 10)
    assert [m.shape for m in names["attention"].values()] == [(1, 12, 37, 37)] * 12
    assert names["task"].stage == 2 and names["result"]["output"].shape == (8, 10)
    assert names["larger"](torch.zeros(1, 3, 48, 48)).shape == (1, 10)
    assert [m.shape[-1] for m in names["backbone"](torch.zeros(1, 3, 96, 96))] == [6, 6, 6]
