"""A finished student for use elsewhere: a folder that timm loads, with a model card, and ONNX. Run layer."""

from pathlib import Path
from typing import Any

import jinja2
import torch
from timm.models import save_for_hf
from torch import nn

from dearkd import files, record
from dearkd.artifacts import sha256, trained_student
from dearkd.plan import Plan, Run
from dearkd.schema import InputError
from dearkd.spec import Data

CARD = Path(__file__).with_name("card.md")
WEIGHTS, ONNX = "model.safetensors", "model.onnx"


def export(plan: Plan, run: Run, seed: int, folder: Path, onnx: bool = False) -> None:
    """Write a finished run's weights, timm's config.json, a model card and, if asked for, ONNX into `folder`.

    `timm.create_model(f"local-dir:{folder}", pretrained=True)`, after `import dearkd.models`, gives the same logits.
    Raises InputError for a run without weights or test accuracy, for a model that timm's arguments cannot build again,
    and where onnx is not installed.
    """
    stage = run.stages[-1]
    if stage.model.stem_stride:
        raise InputError(
            f"{run.name}: its first convolution has stride {stage.model.stem_stride}, which no argument of timm's "
            f"{stage.model.name} gives; only models that timm can build again are exported"
        )
    if files.here(plan, stage.data_name) and (changed := files.changes(plan, stage.data_name)):
        raise InputError(
            f"images of {stage.data_name}: {changed} since the run was trained and tested; put them back, or write the "
            f"subsets anew and train again"
        )
    model, trained = trained_student(plan, run, seed)
    tested = record.read(plan.paths.metrics(run.name, seed))
    if tested["weights_sha256"] != trained["weights_sha256"]:
        raise InputError(f"{plan.paths.metrics(run.name, seed)}: is of other weights; evaluate the run again")
    model.eval()
    save_for_hf(model, folder, safe_serialization=True, data_config=preprocessing(stage.data))
    if onnx:
        to_onnx(model, stage.data, folder / ONNX)
    record.write_text(folder / "README.md", card(plan, run, seed, folder, onnx))


def preprocessing(data: Data) -> dict[str, Any]:
    """What timm's transforms need to prepare an image as the evaluation did."""
    return {
        "input_size": (data.channels, data.image_size, data.image_size),
        "mean": data.mean,
        "std": data.std,
        "crop_pct": data.crop,
        "interpolation": data.interpolation,
    }


def to_onnx(model: nn.Module, data: Data, path: Path) -> None:
    """ONNX of the model in evaluation mode: `images` (batch, channels, side, side), normalised, to `logits`.

    The batch is of any size, the side is fixed. Raises InputError where onnx and onnxscript are not installed.
    """
    images = torch.zeros(2, data.channels, data.image_size, data.image_size)
    try:
        torch.onnx.export(
            model,
            (images,),
            path,
            dynamo=True,
            external_data=False,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            verbose=False,
        )
    except ImportError as error:
        raise InputError(f"--onnx: {error}; install it with `pip install onnx onnxscript`") from error


def card(plan: Plan, run: Run, seed: int, folder: Path, onnx: bool = False) -> str:
    """The model card of an exported folder, in Markdown: what the records say, and no more."""
    records = [record.read(plan.paths.stage(run.name, seed, stage.name)) for stage in run.stages]
    stage, taught = run.stages[-1], [s.teacher.model for s in run.stages if s.teacher]
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    return environment.from_string(CARD.read_text()).render(
        run=run.name,
        stages=run.stages,
        data=stage.data,
        architecture=stage.model.name,
        trained=records[-1],
        teacher=taught and {"model": taught[0], "top1": records[0]["teacher"]["top1"]},
        tested=record.read(plan.paths.metrics(run.name, seed)),
        weights_sha256=sha256(folder / WEIGHTS),
        folder=folder,
        onnx=onnx,
        command=f"snakemake -c2 --config scale={plan.scale.name} -- {plan.paths.metrics(run.name, seed)}",
    )
