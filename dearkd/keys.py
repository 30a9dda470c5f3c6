"""Random numbers with keys: the key of each random choice is a function of its place in training (docs/decisions.md).

Nothing depends on how often a generator was used before, so results do not depend on the number of workers, processes
or restarts, and methods with the same seed see the same images.
"""

import hashlib
import random

import numpy as np
import torch


def key_of(*parts: object) -> int:
    """A 63-bit number that depends on all parts and nothing else, for example (seed, "order", epoch)."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def numpy_generator(*parts: object) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(key_of(*parts)))


def torch_generator(*parts: object) -> torch.Generator:
    return torch.Generator().manual_seed(key_of(*parts))


def seed_cpu(*parts: object) -> None:
    """Seed the global generators of random, numpy and torch on the CPU, for library code that draws from them (timm).

    torch.manual_seed also looks for devices. That takes 0.12 ms, a twentieth of the time to load an image.
    """
    key = key_of(*parts)
    random.seed(key)
    np.random.seed(key % 2**32)
    torch.default_generator.manual_seed(key)


def seed_all(*parts: object) -> None:
    """Seed the generators of `seed_cpu`, and torch's generators on every GPU (dropout)."""
    seed_cpu(*parts)
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(key_of(*parts))
