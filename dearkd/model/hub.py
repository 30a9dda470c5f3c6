"""timm's networks and the weights from a hub. If the hub does not answer, one sentence says so at once."""

import contextlib
import functools
import logging
from collections.abc import Iterator
from typing import Any, cast

import timm
from huggingface_hub import constants, get_session
from torch import nn

from dearkd.errors import InputError

PATIENCE = 5.0
"""Seconds in which the hub must answer."""


def create(name: str, pretrained: bool, args: dict[str, Any], key: str) -> nn.Module:
    """A network of timm, with its tag's weights if `pretrained`.

    Raises InputError when timm refuses the arguments, or when the weights cannot be had. It names the `key` of a scale
    that takes a local file instead.
    """
    try:
        with asked_once() if pretrained else contextlib.nullcontext():
            return timm.create_model(name, pretrained=pretrained, **args)
    except (RuntimeError, TypeError, AssertionError) as error:
        raise InputError(
            f"teacher {name}: timm cannot build it ({' '.join(str(error).split())}); correct its name or args"
        ) from None
    except OSError as error:
        why = " ".join(str(error).split())[:200] if reachable() else f"and {constants.ENDPOINT} does not answer"
        raise InputError(
            f"teacher {name}: its weights are not on this machine, {why}; give a local file (`{key}` of a scale, "
            f"--weights of a command), or load them where there is internet and copy the folder HF_HOME here"
        ) from None


def pretrained_cfg(model: str) -> Any:
    """timm's description of a model's weights: input size, crop, interpolation, mean and std.

    Raises InputError when timm has no such model or tag.
    """
    try:
        config = timm.get_pretrained_cfg(model)
    except RuntimeError:  # a tag that the architecture has not
        config = None
    if config is None:
        raise InputError(f"timm has no model {model!r}; take a name with its tag from timm.list_pretrained()")
    return config


def description(net: nn.Module) -> dict[str, Any]:
    """What timm knows of a network: mean and std of its images, names of its first convolution and its classifier."""
    return cast(dict[str, Any], net.pretrained_cfg)


@functools.cache
def reachable() -> bool:
    """Whether the hub answers, asked once for each process."""
    try:
        get_session().head(constants.ENDPOINT, timeout=PATIENCE)
    except Exception:  # which library speaks HTTP, and so what it raises, depends on the hub's version
        return False
    return True


@contextlib.contextmanager
def asked_once() -> Iterator[None]:
    """Context in which a hub that does not answer is asked once only. Its cache is read and nothing is printed."""
    offline = constants.HF_HUB_OFFLINE or not reachable()
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)
    constants.HF_HUB_OFFLINE, before = offline, constants.HF_HUB_OFFLINE
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
        logger.setLevel(level)
