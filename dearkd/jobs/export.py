"""The export of a finished student: a folder that timm loads, with a model card, and ONNX."""

import json
import re
import shlex
import tempfile
from pathlib import Path
from typing import Any

import jinja2
import torch
from safetensors.torch import save as save_safetensors
from timm.models._hub import save_config_for_hf
from torch import nn

from dearkd import disk
from dearkd.errors import InputError
from dearkd.jobs import publish
from dearkd.jobs.inputs import trained_student
from dearkd.places import all_shipped
from dearkd.plan import files, verify
from dearkd.plan.plan import Plan, Run
from dearkd.plan.scale_file import SCALES
from dearkd.plan.stage import Data

TEMPLATE = Path(__file__).with_name("card.md")
WEIGHTS, CONFIG, ONNX, CARD = "model.safetensors", "config.json", "model.onnx", "README.md"
WRITTEN = re.compile(r"\n<!-- dearkd export wrote (\{.*\}) -->\n\Z")
"""The card's last line: the sha256 of each file of the folder, the card above the line included."""


def export(plan: Plan, run: Run, seed: int, folder: Path, onnx: bool = False, source: str = "") -> list[str]:
    """Write a finished run's weights, timm's config.json, a model card and, if asked for, ONNX into `folder`.

    After `import dearkd.models`, `timm.create_model(f"local-dir:{folder}", pretrained=True)` gives the same logits.
    An earlier export in `folder` is replaced. Returns the names of the files.

    source: where the card says that timm finds the model; empty: the folder.
    Raises InputError where `folder` has a file of these names that no export wrote, for a run whose records are stale,
    that has no weights or no test accuracy, for a model that timm's arguments cannot build, and where onnx is missing.
    """
    stage = run.stages[-1]
    if stage.model.stem_stride:
        raise InputError(
            f"{run.name}: its first convolution has stride {stage.model.stem_stride}, which no argument of timm's "
            f"{stage.model.name} gives; only models that timm can build again are exported"
        )
    if files.here(plan, stage.data_name) and (changed := files.changes(plan, stage.data_name)):
        raise InputError(
            f"images of {stage.data_name}: {changed} since the run was trained and tested; restore them, or write the "
            f"subsets again and train again"
        )
    own = _written(folder)
    for name in (WEIGHTS, CONFIG, CARD, *([ONNX] if onnx else [])):
        if (folder / name).exists() and name not in own:
            raise InputError(f"{folder / name}: exists and no export wrote it; choose another folder for --out")
    records, tested = verify.evaluation(plan, run, seed)
    model, _ = trained_student(plan, run, seed)
    model.eval()
    names = class_names(plan, run, seed)
    content: dict[str, disk.Content] = {
        WEIGHTS: save_safetensors({k: v.contiguous() for k, v in model.state_dict().items()}),
        CONFIG: _config(model, stage.data, names),
    }
    if onnx:
        content[ONNX] = to_onnx(model, stage.data)
    source = source or f"local-dir:{folder}"
    text = card(plan, run, records, tested, source, names, disk.sha256_of(content[WEIGHTS]), onnx)
    sums = {name: disk.sha256_of(raw) for name, raw in {**content, CARD: text}.items()}
    content[CARD] = f"{text}\n<!-- dearkd export wrote {json.dumps(sums)} -->\n"
    disk.write_all({folder / name: raw for name, raw in content.items()})
    if ONNX in own and not onnx:
        (folder / ONNX).unlink()  # an earlier export's, of other weights
    return list(content)


def _written(folder: Path) -> set[str]:
    """The files of a folder that an export wrote and nobody has changed since."""
    try:
        text = (folder / CARD).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return set()
    if (match := WRITTEN.search(text)) is None:
        return set()
    is_now = {CARD: disk.sha256_of(text[: match.start()])}
    is_now |= {name: disk.sha256(folder / name) for name in (WEIGHTS, CONFIG, ONNX) if (folder / name).is_file()}
    return {name for name, digest in json.loads(match[1]).items() if is_now.get(name) == digest}


def class_names(plan: Plan, run: Run, seed: int) -> list[str]:
    """The name of each output's class, in order; empty where classes have no names.

    Names of class folders are read from the verified predictions, where each test image is in the folder of its class.
    """
    data = run.stages[-1].data
    if data.kind != "folder":
        return publish.named(data)
    lines = verify.rows(plan.paths.metrics(run.name, seed).with_name("predictions.csv"))
    found = {int(line["label"]): line["image"].partition("/")[0] for line in lines}
    return [found[label] for label in range(data.classes)] if len(found) == data.classes else []


def _config(model: nn.Module, data: Data, names: list[str]) -> bytes:
    """timm's config.json: how the model is built and how its images are prepared."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, CONFIG)
        named = {"label_names": names} if names else None
        save_config_for_hf(model, str(path), model_config=named, data_config=preprocessing(data))
        values = json.loads(path.read_bytes())
        values["pretrained_cfg"].pop("license", None)  # timm's entry is about the architecture, not about these weights
        return (json.dumps(values, indent=2) + "\n").encode()


def preprocessing(data: Data) -> dict[str, Any]:
    """The arguments with which timm's transforms prepare an image as the evaluation did."""
    return {
        "input_size": (data.channels, data.image_size, data.image_size),
        "mean": data.mean,
        "std": data.std,
        "crop_pct": data.crop,
        "interpolation": data.interpolation,
    }


def to_onnx(model: nn.Module, data: Data) -> bytes:
    """ONNX of the model in evaluation mode, from normalised `images` (batch, channels, side, side) to `logits`.

    The batch may have any size; the side is fixed. Raises InputError where onnx and onnxscript are not installed.
    """
    images = torch.zeros(2, data.channels, data.image_size, data.image_size)
    try:
        program = torch.onnx.export(
            model,
            (images,),
            dynamo=True,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            verbose=False,
        )
    except ImportError as error:
        raise InputError(f"--onnx: {error}; install it with `pip install onnx onnxscript`") from error
    assert program is not None, "torch.onnx.export returns a program where dynamo is True"
    return program.model_proto.SerializeToString()


def card(
    plan: Plan,
    run: Run,
    records: list[dict[str, Any]],
    tested: dict[str, Any],
    source: str,
    names: list[str],
    weights_sha256: str,
    onnx: bool = False,
) -> str:
    """The model card of an exported folder, in Markdown. It says only what the records say."""
    stage, taught = run.stages[-1], [s.teacher.model for s in run.stages if s.teacher]
    own = plan.scale.name not in (path.stem for path in all_shipped(SCALES, "*.yaml"))
    file = Path(plan.file if plan.file.endswith(".yaml") else f"{plan.scale.name}.yaml")
    file = Path(file.name) if file.is_absolute() else file  # the card is for others
    scale = shlex.quote(file.as_posix() if own else plan.scale.name)
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters["plain"] = _plain
    return environment.from_string(TEMPLATE.read_text()).render(
        run=run.name,
        stages=run.stages,
        data=stage.data,
        names=names,
        architecture=stage.model.name,
        trained=records[-1],
        teacher=taught and {"model": taught[0], "top1": records[0]["teacher"]["top1"]},
        tested=tested,
        weights_sha256=weights_sha256,
        source=source,
        summary=plan.scale.summary,
        file=file.as_posix() if own else "",
        metadata=publish.metadata(f"{run.name}-{plan.scale.name}", run.stages, plan.scale.summary, tested),
        onnx=onnx,
        command=f"snakemake -c2 --config scale={scale} -- {plan.paths.metrics(run.name, tested['seed'])}",
    )


def _plain(text: str) -> str:
    """A name that a person gave as Markdown that shows it and does nothing else."""
    return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", " ".join(text.split()))
