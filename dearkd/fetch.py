"""What a scale needs from elsewhere: weights and data sets; which are missing, and how they are brought. Run layer."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import timm
from huggingface_hub import try_to_load_from_cache
from torchvision import datasets

from dearkd import lite0, trunks
from dearkd.data import read, root_of
from dearkd.plan import Plan
from dearkd.schema import InputError
from dearkd.spec import Data
from dearkd.teachers import pretrained_cfg

PUBLIC: dict[str, Callable[[str], object]] = {
    "cifar10": lambda root: datasets.CIFAR10(root, download=True),
    "cifar100": lambda root: datasets.CIFAR100(root, download=True),
    "flowers102": lambda root: datasets.Flowers102(root, download=True),
}
"""Data sets that torchvision downloads."""


@dataclasses.dataclass(frozen=True)
class Need:
    """name: what it is. missing: why it is not there, or empty. bring: fetches it; None: only the user can."""

    name: str
    missing: str
    bring: Callable[[], object] | None


def needs(plan: Plan) -> Iterator[Need]:
    """Everything that the scale's data sets, teachers, compared systems and LPIPS take from elsewhere."""
    for name, data in plan.scale.data.items():
        yield _data_set(name, data)
    sought = [(t.model, t.weights) for t in plan.scale.teachers.values() if t.training is None]
    sought += [(t.model, t.start.removeprefix("timm")) for t in plan.scale.teachers.values() if t.start]
    sought += [(p.model, p.weights) for p in plan.pretrained.values()]
    for model, weights in dict.fromkeys(sought):
        yield _weights(model, weights)
    if plan.scale.diversity.pairs and any(t.reads == "diversity" for t in plan.tables.values()):
        yield from _trunk(plan)


def _data_set(name: str, data: Data) -> Need:
    try:
        read(data)
        missing = ""
    except InputError as error:
        missing = str(error)
    bring = PUBLIC.get(data.kind)
    return Need(f"data {name}", missing, bring and (lambda: bring(root_of(data.root))))


def _weights(model: str, weights: str) -> Need:
    if weights:
        try:
            there = (lite0.path() if weights == lite0.WEIGHTS else Path(weights)).is_file()
        except InputError as error:
            return Need(f"weights {model}", str(error), None)
        return Need(f"weights {model}", "" if there else f"{weights} is not there; copy it", None)
    config = pretrained_cfg(model)
    repository = config.hf_hub_id and (config.hf_hub_id + model if config.hf_hub_id.endswith("/") else config.hf_hub_id)
    cached = repository and any(
        isinstance(try_to_load_from_cache(repository, file), str) for file in ("model.safetensors", "pytorch_model.bin")
    )
    missing = "" if cached else f"{repository or config.url} is not in the hub's cache (HF_HOME)"
    return Need(f"weights {model}", missing, lambda: timm.create_model(model, pretrained=True))


def _trunk(plan: Plan) -> Iterator[Need]:
    spec = plan.scale.diversity
    if spec.trunk == "random":
        return
    for net in (spec.net, *spec.also):
        path = Path(spec.trunk) if spec.trunk else trunks.path(net)
        missing = "" if path.is_file() else f"{path} is not there"
        yield Need(f"LPIPS trunk {net}", missing, None if spec.trunk else functools.partial(trunks.fetch, net))


def fetch(plan: Plan, check: bool) -> None:
    """Bring what is missing, a line for each need; with `check` only look.

    Raises InputError with a line for everything that is missing in the end and the command that brings it.
    """
    missing = []
    for need in needs(plan):
        reason = need.missing
        if reason and need.bring and not check:
            print(f"{need.name}: fetching", flush=True)
            try:
                need.bring()
                reason = ""
            except (OSError, RuntimeError, InputError) as error:
                reason = " ".join(str(error).split())
        print(f"{need.name}: {reason or 'there'}", flush=True)
        if reason:
            command = (
                f"python -m dearkd fetch --scale {plan.scale.name}"
                if need.bring
                else "by hand: the scale's file and docs/paper-scale.md say where it is"
            )
            missing.append(f"  {need.name}: {reason} [{command}]")
    if missing:
        raise InputError(f"scale {plan.scale.name} lacks {len(missing)}:\n" + "\n".join(missing))
