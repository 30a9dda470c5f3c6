"""An exported folder on the hub: the metadata of its card, a list of what a push would send, and the push."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, HfApi, ModelCardData, constants
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError
from huggingface_hub.utils import validate_repo_id

from dearkd import disk
from dearkd.errors import InputError
from dearkd.model import hub
from dearkd.plan.stage import Data, Stage

DATASETS = {"cifar10": "uoft-cs/cifar10", "cifar100": "uoft-cs/cifar100"}
"""Kinds of data that are one data set of the hub, by its name there."""
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
NAMES = {"digits": tuple("0123456789"), "cifar10": CIFAR10}
"""The classes of kinds of data, in the order of their labels."""
TRIED = "nothing was sent; the folder is written, so the same call tries again"


def metadata(name: str, stages: tuple[Stage, ...], summary: str, tested: Mapping[str, Any]) -> str:
    """The metadata of a card as YAML: data sets, metrics, the teacher if the hub has it, results as a model-index.

    name: of the run. summary: of the scale. tested: record of the evaluation. Values without a name on the hub are left
    out.
    """
    data = stages[-1].data
    taught = {s.teacher.model for s in stages if s.teacher and not (s.teacher.weights or s.teacher.training)}
    metrics = {"top1": "top-1 accuracy (%)", "top5": "top-5 accuracy (%)"}
    results = [
        EvalResult(
            task_type="image-classification",
            dataset_type=DATASETS.get(data.kind, data.kind),
            dataset_name=summary,
            dataset_split="test",
            metric_type="accuracy",
            metric_name=metrics[key],
            metric_value=round(value, 4),
        )
        for key, value in tested["metrics"].items()
        if key in metrics and (key != "top5" or data.classes > 5)
    ]
    values = ModelCardData(
        model_name=name,
        library_name="timm",
        pipeline_tag="image-classification",
        tags=["image-classification", "timm", "dearkd"],
        datasets=[DATASETS[data.kind]] if data.kind in DATASETS else None,
        metrics=["accuracy"],
        base_model=[f"timm/{model}" for model in sorted(taught)] or None,
        eval_results=results,
    )
    return values.to_yaml()


def named(data: Data) -> list[str]:
    """The class names of a kind of data; none for class folders, and for a task that is made from the data."""
    return list(NAMES.get(data.kind, ())) if data.task == "digit" else []


def checked(repository: str) -> str:
    """The argument, if it is a name ORG/NAME of the hub. Raises InputError otherwise."""
    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise InputError(f"--push {repository}: {' '.join(str(error).split())}") from None
    if "/" not in repository:
        raise InputError(f"--push {repository}: name its owner too, as in {repository}/my-model")
    return repository


def listed(folder: Path, names: list[str], repository: str) -> str:
    """What a push would send: a line for each file, with size and sha256. Nothing is sent."""
    lines = [f"{n}  {(folder / n).stat().st_size:,} bytes  sha256 {disk.sha256(folder / n)}" for n in names]
    return "\n".join(
        [f"would be sent to {constants.ENDPOINT}/{repository}, a private repository if it is new:", *lines]
    )


def push(folder: Path, names: list[str], repository: str, message: str) -> str:
    """Send files of a folder to a repository of the hub, and return its address. A new repository is private.

    Raises InputError where the hub does not answer or refuses.
    """
    if not hub.reachable():
        raise InputError(f"--push {repository}: {constants.ENDPOINT} does not answer; {TRIED}")
    api = HfApi()
    try:
        api.create_repo(repository, private=True, exist_ok=True)
        patterns = [re.sub(r"([*?\[])", r"[\1]", name) for name in names]
        api.upload_folder(repo_id=repository, folder_path=folder, allow_patterns=patterns, commit_message=message)
    except LocalTokenNotFoundError:
        raise InputError(f"--push {repository}: no token of the hub here; run `hf auth login` first; {TRIED}") from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        way = "; run `hf auth login` with a token that may write there" if status in (401, 403) else ""
        raise InputError(f"--push {repository}: {constants.ENDPOINT} refuses ({status}){way}; {TRIED}") from None
    except OSError as error:
        raise InputError(f"--push {repository}: {constants.ENDPOINT}: {error}; {TRIED}") from None
    return f"{constants.ENDPOINT}/{repository}"
