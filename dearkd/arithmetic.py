"""The same bits on any x86 CPU, as far as PyTorch, oneDNN and MKL can be asked: AVX2 for all of them.

Wider vector units add in another order. What a CPU chooses by itself differs between vendors and generations, and a
training amplifies the last bit. A variable that is set already is left alone; DEARKD_ARITHMETIC=native leaves the
choice to the CPU. Nothing here concerns a GPU or another kind of CPU. benchmarks/bits.py compares CPUs.
"""

import os

EVERYWHERE = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_CBWR": "AVX2"}


def ask() -> None:
    """Ask this process and its children for AVX2; before torch computes anything."""
    if os.environ.get("DEARKD_ARITHMETIC") != "native":
        for name, value in EVERYWHERE.items():
            os.environ.setdefault(name, value)


def asked() -> dict[str, str]:
    """What this process was asked for, for its records."""
    return {name: os.environ[name] for name in EVERYWHERE if name in os.environ}
