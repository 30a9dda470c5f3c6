"""The weights and data sets that a scale needs from elsewhere: which are missing, and how they are fetched."""

import dataclasses
import functools
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.error import HTTPError, URLError

from huggingface_hub import constants, try_to_load_from_cache
from torchvision import datasets

from dearkd.data import cifar, subsets
from dearkd.data.datasets import read
from dearkd.errors import InputError
from dearkd.model import efficientnet_lite0, hub, lpips_trunks, teachers
from dearkd.model.weights import weights_sha256
from dearkd.places import home
from dearkd.plan.files import root_of
from dearkd.plan.plan import Plan
from dearkd.plan.stage import IN_FILES, Data, Teacher

PUBLIC: dict[str, Callable[[str], object]] = {
    "cifar10": functools.partial(cifar.fetch, "cifar10"),
    "cifar100": functools.partial(cifar.fetch, "cifar100"),
    "flowers102": lambda root: datasets.Flowers102(root, download=True),
}
"""Data sets that are downloaded, by kind."""
SILENCE = 20.0
"""Seconds without a byte after which a download is given up."""


@dataclasses.dataclass(frozen=True)
class Need:
    """A file or data set that a scale needs.

    name: in messages. missing: why it cannot be used; empty: it can. bring: fetches it; None: only the user can.
    pin: for weights that the scale could pin, returns their `state_sha256`. from_hub: whether timm's hub has them.
    """

    name: str
    missing: str
    bring: Callable[[], object] | None
    pin: Callable[[], str] | None = None
    from_hub: bool = False


def needs(plan: Plan, look: bool = False) -> Iterator[Need]:
    """Everything that the scale's data sets, teachers, compared systems and LPIPS need from elsewhere.

    look: open every image file, and print which files of a folder are left out.
    """
    seen = {stage.data_name for run in plan.runs.values() for stage in run.stages}
    for name in plan.scale.data:
        if name == "main" or name in seen:
            yield _data_set(plan, name, look)
    elsewhere = [t for t in plan.scale.teachers.values() if t.training is None]
    elsewhere += [
        Teacher(model=p.model, args=p.args, top1=0.0, weights=p.weights, sha256=p.sha256)
        for p in plan.pretrained.values()
    ]
    starts = [(t.model, t.start.removeprefix("timm")) for t in plan.scale.teachers.values() if t.start]
    pins = {
        (t.model, t.weights): None if t.sha256 else functools.partial(_state_sha256, t, plan.scale.data["main"])
        for t in elsewhere
    }
    for model, weights in dict.fromkeys([*pins, *starts]):
        yield dataclasses.replace(_weights(model, weights), pin=pins.get((model, weights)))
    if plan.scale.diversity.pairs and any(t.reads == "diversity" for t in plan.tables.values()):
        yield from _trunk(plan)


def _data_set(plan: Plan, name: str, look: bool) -> Need:
    data, missing = plan.scale.data[name], ""
    try:
        sets = read(data)
        if look and data.kind in IN_FILES:
            print(subsets.survey(data, subsets.sha256s(plan, name, sets)), flush=True)
    except InputError as error:
        missing = str(error)
    bring = PUBLIC.get(data.kind)
    return Need(f"data {name}", missing, bring and (lambda: bring(root_of(data.root))))


def _weights(model: str, weights: str) -> Need:
    if weights:
        try:
            there = (
                efficientnet_lite0.path() if weights == efficientnet_lite0.WEIGHTS else Path(home(weights))
            ).is_file()
        except InputError as error:
            return Need(f"weights {model}", str(error), None)
        return Need(f"weights {model}", "" if there else f"{weights} is missing; copy it", None)
    config = hub.pretrained_cfg(model)
    repository = config.hf_hub_id and (config.hf_hub_id + model if config.hf_hub_id.endswith("/") else config.hf_hub_id)
    cached = repository and any(
        isinstance(try_to_load_from_cache(repository, file), str) for file in ("model.safetensors", "pytorch_model.bin")
    )
    missing = "" if cached else f"{repository or config.url} is not in the hub's cache (HF_HOME)"
    bring = functools.partial(hub.create, model, True, {}, "weights")
    return Need(f"weights {model}", missing, bring, from_hub=True)


def _state_sha256(teacher: Teacher, data: Data) -> str:
    return weights_sha256(teachers.build(teacher, data).net)


def _trunk(plan: Plan) -> Iterator[Need]:
    spec = plan.scale.diversity
    if spec.trunk == "random":
        return
    for net in (spec.net, *spec.also):
        path = Path(home(spec.trunk)) if spec.trunk else lpips_trunks.path(net)
        missing = "" if path.is_file() else f"{path} is missing"
        yield Need(f"LPIPS trunk {net}", missing, None if spec.trunk else functools.partial(lpips_trunks.fetch, net))


def fetch(plan: Plan, check: bool) -> None:
    """Fetch what is missing and print a line for each need. With `check` nothing is fetched.

    Raises InputError with a line for each need that is still missing, and the command that fetches it.
    """
    missing = []
    socket.setdefaulttimeout(SILENCE)  # torchvision sets none
    listed = list(needs(plan, look=check))
    offline = not check and any(n.missing and n.from_hub for n in listed) and not hub.reachable()
    if offline:
        print(
            f"{constants.ENDPOINT} does not answer; fetch its weights where there is internet, and copy the folder "
            f"HF_HOME (~/.cache/huggingface) here",
            flush=True,
        )
    for need in listed:
        reason = need.missing
        if reason and need.bring and not check and not (offline and need.from_hub):
            print(f"{need.name}: fetching", flush=True)
            try:
                need.bring()
                reason = ""
            except (OSError, RuntimeError, InputError) as error:
                reason = " ".join(str(error).split())
                if isinstance(error, URLError) and not isinstance(error, HTTPError):
                    reason = f"no answer ({error.reason}); run this where there is internet, and copy the folder here"
        if reason:
            command = (
                f"python -m dearkd fetch --scale {plan.argument}"
                if need.bring
                else "by hand: the scale's file and docs/paper-scale.md say where it is"
            )
            missing.append(f"  {need.name}: {reason} [{command}]")
        else:
            pinned = f"; to pin these weights, write sha256: {need.pin()}" if need.pin and not check else ""
            print(f"{need.name}: present{pinned}", flush=True)
    if missing:
        raise InputError(f"scale {plan.scale.name} lacks {len(missing)} of its needs:\n" + "\n".join(missing))
