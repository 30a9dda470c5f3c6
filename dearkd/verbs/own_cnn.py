"""What the arguments of `synthesize --teacher` say, read before torch is imported."""

from argparse import Namespace
from pathlib import Path

from dearkd import strict_yaml
from dearkd.errors import InputError
from dearkd.plan.stage import Synthesis, Teacher
from dearkd.schema import build

ELSEWHERE = {
    "images": "--images",
    "classes": "--pick",
    "teacher": "--teacher",
    "student": "a scale (ADI)",
    "rounds": "a scale (ADI)",
    "verifier": "a scale (ADI)",
    "competition": "a scale (ADI)",
    "shard_batches": "a scale",
}
"""Keys of a scale's `synthesis` that a recipe file cannot set, and what sets them."""


def teacher(args: Namespace) -> Teacher:
    """The CNN. Raises InputError where the file of its weights is not there."""
    weights = Path(args.weights).expanduser()
    if args.weights and not args.weights.startswith("package:") and not weights.is_file():
        raise InputError(f"--weights {args.weights}: no such file; correct the path, or bring the file here")
    mean, std = (numbers(name, getattr(args, name)) for name in ("mean", "std"))
    file = str(weights) if args.weights else ""
    return Teacher(model=args.teacher, weights=file, top1=0.0, mean=mean, std=std)


def recipe(file: str) -> Synthesis | None:
    """The recipe of a YAML file; None without one. Raises InputError for a key that a recipe cannot have."""
    if not file:
        return None
    values = strict_yaml.read(Path(file).expanduser())
    if "synthesis" in values:
        raise InputError(f"{file}: write the keys of `synthesis` without `synthesis` above them, as in `r_bn: 0.5`")
    for key in values:
        if key in ELSEWHERE:
            raise InputError(f"{file}: {key} has no effect on a CNN of your own; {ELSEWHERE[key]} says it")
    return build(Synthesis, values, file)


def class_names(text: str) -> list[str]:
    """The names in `--classes`, which is a file with a name on each line, or names separated by commas.

    Raises InputError when the file cannot be read.
    """
    path = Path(text).expanduser()
    if text and "," not in text and (path.is_file() or path.suffix == ".txt" or "/" in text):
        try:
            return [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or error
            raise InputError(f"--classes: {text} cannot be read ({why}); give a text file with a name a line") from None
    return [name.strip() for name in text.split(",") if name.strip()]


def numbers(name: str, text: str) -> tuple[float, ...]:
    """The values of a comma-separated argument."""
    try:
        return tuple(float(value) for value in text.split(",") if value.strip())
    except ValueError:
        raise InputError(f"--{name} {text}: give numbers separated by commas, as in 0.5,0.5,0.5") from None
