"""A student from a CNN in one command, which writes a small scale and runs its jobs one after the other."""

import json
import re
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from PIL import Image

from dearkd import disk, record
from dearkd.errors import InputError, unknown
from dearkd.jobs import single
from dearkd.plan.stage import DEARKD_HEADS, SIZES

STUDENTS = {"Ti": ("tiny", 3), "S": ("small", 6), "B": ("base", 12)}
"""Size of a student, and its number of heads in DeiT."""
NARROW = {"tiny": (108, 9), "small": (216, 12), "base": (432, 16)}
"""Width and DearKD's heads of students for small images; they have six blocks."""
LARGE = 160
"""Side in pixels from which a student has the paper's width, depth and patches of 16."""
TEST_SHARE = 0.1
WIDEST = 224
"""Largest side of a student whose size nobody names."""


def distil(
    images: Path,
    model: str,
    weights: str,
    student: str,
    out: Path,
    epochs: int = 100,
    seed: int = 0,
    settings: Iterable[str] = (),
) -> Path:
    """Train a DearKD student from a CNN on the images of an archive or folder, and return the folder that timm loads.

    `out` gets images, checkpoints, the scale (`scale.yaml`) and the finished student (`student/`). Records are in
    results/<name of the scale>. A tenth of each class is held out as test images.

    Args:
        images: the images.zip of `synthesize --teacher`, or a folder with a folder for each class.
        model, weights: timm name of the CNN, and the file of its weights. Empty: as images.json says.
        student: Ti, S or B.
        settings: keys of a scale and their values, as in `training.lr=5e-4`.

    The student's outputs are the classes of the images in alphabetical order, whatever order the CNN's have.
    Raises InputError when images, CNN and classes do not belong together, or `out` has another student.
    """
    if student not in STUDENTS:
        raise InputError(unknown(student, STUDENTS, "student", "--student"))
    if (images / "images.zip").is_file():  # the folder of `synthesize`
        images = images / "images.zip"
    made = _made(images)
    if images.is_dir():
        single.outside(out, images)
    folder = images.resolve() if images.is_dir() else _unpacked(images, out / "images").resolve()
    values = _scale(folder, made, model, weights, student, out.resolve(), epochs, seed)
    scale = single.written(out, single.with_settings(values, settings), "distil")
    tested = single.trained(scale, (out / "scale.yaml").as_posix(), student, seed, out / "student")
    top1 = tested["metrics"]["top1"]
    print(
        f"The student has a top-1 of {top1:.1f} % on the tenth of these images that was held out. On real images a "
        f"student of synthetic images has less."
    )
    names = json.loads((out / "student/config.json").read_text())["label_names"]
    if names != (cnn := made.get("classes", names)):
        what = f"the CNN has {len(cnn)} outputs" if len(cnn) > len(names) else "the CNN's have another order"
        print(f"The student's outputs are {single.listed(names)}, as in label_names of its config.json; {what}.")
    return out / "student"


def _made(images: Path) -> dict[str, Any]:
    """The record images.json beside an archive, which names the CNN and its classes; empty where there is none."""
    beside = images.with_suffix(".json")
    if not images.exists():
        raise InputError(f"--images {images}: no such archive or folder; `synthesize --teacher` makes images.zip")
    return record.read(beside) if images.is_file() and beside.is_file() else {}


def _unpacked(archive: Path, folder: Path) -> Path:
    """Write the archive's images below `folder`. Raises InputError for a member outside the folder of a class."""
    try:
        with zipfile.ZipFile(archive) as members:
            for name in members.namelist():
                if not re.fullmatch(r"[^/\\]*[^/\\.][^/\\]*/[^/\\]+\.png", name):
                    raise InputError(
                        f"{archive}: {name!r} is no PNG in the folder of a class; make the archive again, or unpack it "
                        f"and name the folder"
                    )
            there = {path.relative_to(folder).as_posix(): path for path in folder.glob("*/*") if path.is_file()}
            names = members.namelist()
            if any(n not in names or path.read_bytes() != members.read(n) for n, path in there.items()):
                way = f"name another folder with --out, or delete {folder.parent}"
                raise InputError(f"{folder}: has other images than {archive}; {way}")
            for name in (n for n in names if n not in there):
                disk.write(folder / name, memoryview(members.read(name)))
    except (zipfile.BadZipFile, OSError) as error:
        raise InputError(f"{archive}: not a whole archive ({error}); make it again") from None
    return folder


def _scale(
    folder: Path, made: dict[str, Any], model: str, weights: str, student: str, out: Path, epochs: int, seed: int
) -> dict[str, Any]:
    """The keys of the scale, which extends `custom`."""
    spec = made.get("spec", {"teacher": {}, "data": {}})
    asked = spec["teacher"].get("model", "")
    if not (model or asked):
        raise InputError("--teacher: no images.json beside the images names a CNN; name one of timm")
    if model and asked and model != asked:
        raise InputError(f"--teacher {model}: these images were made from {asked}; take that CNN")
    weights = weights or spec["teacher"].get("weights", "")
    if weights and not weights.startswith("package:"):
        weights = Path(weights).expanduser().resolve().as_posix()
        if not Path(weights).is_file():
            raise InputError(f"{weights}: the CNN's weights are missing; name their file with --weights")
    classes = sorted(path for path in folder.iterdir() if path.is_dir())
    counts = [sum(1 for file in path.iterdir() if file.is_file()) for path in classes]
    if len(classes) < 2 or min(counts) < 2:
        raise InputError(
            f"{folder}: has {len(classes)} class folders, the smallest with {min(counts, default=0)} images; "
            f"add images until there are two classes of two images"
        )
    data = spec["data"] or _data_of(next(file for file in classes[0].iterdir() if file.is_file()))
    training = sum(count - max(1, round(count * TEST_SHARE)) for count in counts)
    side, batch = fitting(data["image_size"] if spec["data"] else min(data["image_size"], WIDEST)), min(64, training)
    built = sized_student(student, side)
    teacher = {"model": model or asked, "weights": weights, "training": None, "gate": "test"}
    if spec["data"] and side != data["image_size"]:
        teacher["image_size"] = data["image_size"]
    if made:
        teacher |= {"sha256": made["state_sha256"], "outputs": made["classes"]}
        teacher |= {key: spec["teacher"][key] for key in ("mean", "std") if spec["teacher"].get(key)}
    return {
        "extends": "custom",
        "name": "distil-" + (re.sub(r"[^\w.+-]+", "-", out.name) or "out"),
        "summary": f"{len(classes)} classes, {side} pixels, taught by {teacher['model']}",
        "seeds": [seed],
        "fractions": [100],
        "checkpoints": (out / "checkpoints").as_posix(),
        "data": {
            "main": {
                "root": folder.as_posix(),
                "classes": len(classes),
                "validation": 0,
                "test_share": TEST_SHARE,
                "crop": 1.0,
                "image_size": side,
                **{key: data[key] for key in ("channels", "mean", "std") if key in data},
            }
        },
        "students": {student: built},
        "teachers": {"main": teacher},
        "training": {
            "epochs": epochs,
            "stage1_epochs": first_stage(epochs),
            "warmup_epochs": min(10, epochs // 10),
            "batch": batch,
            "micro_batch": batch,
        },
        "distillation": {"pairs": [[built["n_mhca"], 1]]},
    }


def first_stage(epochs: int) -> int:
    """Number of epochs with a teacher: five sixths, as in the paper (250 of 300), and where possible one epoch less."""
    return max(1, epochs * 5 // 6)


def _data_of(image: Path) -> dict[str, Any]:
    """The side of the data, in pixels, from one image. Mean and std stay those of the scale `custom`."""
    try:
        with Image.open(image) as opened:
            return {"image_size": min(opened.size)}
    except OSError as error:
        raise InputError(f"{image}: not a readable image ({error}); take it out of the folder") from None


def fitting(side: int) -> int:
    """The largest side, at most `side` pixels, that a student's patches cut into 8 to 16 a side (`sized_student`).

    From 160 pixels on multiples of 16 fit too, which have more patches.
    """
    fits = (s for s in range(side, 0, -1) if s <= 16 or _patch(s) * 16 >= s or (s >= LARGE and s % 16 == 0))
    return next(fits, side)


def _patch(side: int) -> int:
    """The largest patch that divides an image into at least 8 a side."""
    return max(divisor for divisor in range(1, side + 1) if side % divisor == 0 and side // divisor >= min(8, side))


def sized_student(name: str, side: int) -> dict[str, Any]:
    """The paper's student for large images, or for small images a narrow one with small patches, as in `custom`."""
    size, heads = STUDENTS[name]
    if side >= LARGE and side % 16 == 0:
        args = {"patch_size": 16, **SIZES[size]}
        return {
            "size": size,
            "args": args,
            "deit_heads": heads,
            "dearkd_heads": DEARKD_HEADS[size],
            "n_mhca": 8,
            "init": "deit",
        }
    width, dearkd_heads = NARROW[size]
    args = {"patch_size": _patch(side), "embed_dim": width, "depth": 6}
    return {
        "size": size,
        "args": args,
        "deit_heads": heads,
        "dearkd_heads": dearkd_heads,
        "n_mhca": 4,
        "init": "fan_in",
    }
