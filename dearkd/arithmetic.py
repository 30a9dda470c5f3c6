"""The same bits on any x86 CPU, as far as PyTorch, oneDNN and MKL can be asked: AVX2 for all of them.

Wider vector units add in another order. What a CPU chooses by itself differs between vendors and generations, and a
training amplifies the last bit. A variable that is set already is left alone; DEARKD_ARITHMETIC=native leaves the
choice to the CPU. benchmarks/bits.py compares CPUs.

A GPU adds some gradients in no fixed order. With DEARKD_ARITHMETIC=deterministic a training asks for kernels with a
fixed order (docs/performance.md).
"""

import os

from dearkd.errors import InputError, unknown

CHOICE = "DEARKD_ARITHMETIC"
CHOICES = ("", "native", "deterministic")
EVERYWHERE = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_CBWR": "AVX2"}
ON_GPU = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
"""What cuBLAS must be told, before its first use, so that PyTorch takes its sums for repeatable."""


def ask() -> None:
    """Ask this process and its children for AVX2; before torch computes anything.

    Raises InputError where `CHOICE` has another value than `CHOICES`.
    """
    if (choice := os.environ.get(CHOICE, "")) not in CHOICES:
        raise InputError(unknown(choice, CHOICES[1:], "value", CHOICE))
    for name, value in {**(EVERYWHERE if choice != "native" else {}), **(ON_GPU if deterministic() else {})}.items():
        os.environ.setdefault(name, value)


def deterministic() -> bool:
    """Whether a training on a GPU is to have sums of fixed order."""
    return os.environ.get(CHOICE) == "deterministic"


def asked() -> dict[str, str]:
    """What this process was asked for, for its records."""
    names = (*EVERYWHERE, *ON_GPU) if deterministic() else EVERYWHERE
    return {name: os.environ[name] for name in names if name in os.environ}
