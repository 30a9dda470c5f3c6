"""Weights in files: read without unpickling, loaded strictly, and their sha256."""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models import clean_state_dict
from torch import Tensor, nn

from dearkd.errors import InputError


def weights_sha256(net: nn.Module) -> str:
    """sha256 over names and values of a network's state."""
    return state_sha256(net.state_dict())


def state_sha256(state: Mapping[str, Tensor]) -> str:
    """sha256 over names and values of a state dict."""
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def load_weights(
    net: nn.Module, path: Path, rename: Callable[[str], str] | None = None, but: tuple[str, ...] = ()
) -> None:
    """Load a state dict strictly, from safetensors or a plain file of tensors. Nothing is ever unpickled.

    `rename` turns the file's names into the network's. Names that begin with one of `but` are left as they are.
    Raises InputError as `read_weights` does, and when the weights are of another network.
    """
    state = read_weights(path)
    if rename is not None:
        state = {rename(name): value for name, value in state.items()}
    own = {name: value for name, value in net.state_dict().items() if not name.startswith(but)}
    state = {name: value for name, value in state.items() if not name.startswith(but)}
    missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    shapes = [k for k in own.keys() & state.keys() if own[k].shape != state[k].shape]
    if missing or extra or shapes:
        example = (missing or extra or shapes)[0]
        raise InputError(
            f"{path}: has the weights of another network ({len(missing)} names are missing, {len(extra)} unknown, "
            f"{len(shapes)} of another shape, for example {example}); name the right file or the right model"
        )
    net.load_state_dict(state, strict=not but)


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a weights file by name.

    Raises InputError naming the file when it is missing, cut short, or a pickle that runs code.
    """
    try:
        state: dict[str, Any] = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except FileNotFoundError:
        raise InputError(f"{path}: the weights are missing; correct the path, or bring the file here") from None
    except (SafetensorError, RuntimeError, EOFError, OSError) as error:
        raise InputError(
            f"{path}: not a whole weights file ({' '.join(str(error).split())[:120]}); fetch or train it again"
        ) from None
    except Exception as error:  # weights_only raises UnpicklingError, which torch does not export
        raise InputError(
            f"{path}: holds more than tensors ({type(error).__name__}) and is refused; save its tensors as safetensors "
            "(docs/paper-scale.md has a program for T2T-ViT's)"
        ) from None
    return clean_state_dict(next((state[k] for k in ("state_dict_ema", "model", "state_dict") if k in state), state))
