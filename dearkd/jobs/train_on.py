"""The verb `train-on`: a CNN and a DearKD on one folder of images, in one command."""

import os
import re
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dearkd import record
from dearkd.errors import InputError, unknown
from dearkd.jobs import distil, single, study
from dearkd.places import snakemake
from dearkd.plan.paths import Paths


def train_on(
    images: Path, out: Path, student: str, side: int, epochs: int, seed: int, settings: Iterable[str] = ()
) -> Path:
    """Train a ResNet-18 on a folder of images, then a DearKD with it as teacher; return the folder that timm loads.

    `out` gets checkpoints, the scale (`scale.yaml`) and the finished student (`student/`). Records are in
    results/on-<name of out>. Test images are those of val/ or test/, or a fifth of each class.

    Args:
        images: a folder of class folders, or of train/ and val/ with class folders.
        student: Ti, S or B. side: of the images, in pixels.
        settings: keys of a scale and their values, as in `training.lr=5e-4`.
    """
    if student not in distil.STUDENTS:
        raise InputError(unknown(student, distil.STUDENTS, "student", "--student"))
    if side < 8:
        raise InputError(f"--image-size {side}: write 8 pixels or more")
    if side != (fits := distil.fitting(side)):
        raise InputError(f"--image-size {side}: cannot be cut into 8 to 16 patches a side; take {fits}")
    single.outside(out, images)
    values = _scale(images.absolute(), out.absolute(), student, side, epochs, seed)
    scale = single.written(out, single.with_settings(values, settings), "train-on")
    tested = single.trained(scale, (out / "scale.yaml").as_posix(), student, seed, out / "student")
    taught = record.read(Paths(scale.name).teacher("main"))["top1"]
    print(
        f"The student has a top-1 of {tested['metrics']['top1']:.1f} % on {tested['data']['images']} test images (one "
        f"seed). Its teacher has {taught:.1f} % on {scale.data['main'].validation} validation images. The records are "
        f"in {Paths(scale.name).results}.\n"
        f"Compare it with DeiT: dearkd warm {snakemake()} --config scale={shlex.quote(f'{out}/scale.yaml')} -- table2"
    )
    return out / "student"


def _scale(images: Path, out: Path, student: str, side: int, epochs: int, seed: int) -> dict[str, Any]:
    """The keys of the scale, which extends `custom`."""
    looked, built = study.look(images), distil.sized_student(student, side)
    data = {key: looked[key] for key in ("root", "classes", "validation")}
    share = {} if looked["split"] else {"test_share": 0.2}
    recipe = {"batch": looked["batch"], "micro_batch": looked["batch"]}
    return {
        "extends": "custom",
        "name": "on-" + (re.sub(r"[^\w.+-]+", "-", out.name) or "out"),
        "summary": f"{looked['classes']} classes of our own, {side} pixels",
        "seeds": [seed],
        "fractions": looked["fractions"],
        "checkpoints": (out / "checkpoints").as_posix(),
        "data": {"main": {**data, **share, "image_size": side}},
        "students": {student: built},
        "teachers": {"main": {"training": dict(recipe)}},
        "training": {
            "epochs": epochs,
            "stage1_epochs": distil.first_stage(epochs),
            "warmup_epochs": min(10, epochs // 10),
            **recipe,
        },
        "distillation": {"pairs": [[built["n_mhca"], 1]]},
        "resources": {"train": {"threads": min(os.cpu_count() or 1, 8)}},
    }
