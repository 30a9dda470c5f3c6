"""Numpy arrays from a pickle, without running code."""

import io
import pickle
from typing import Any

import numpy as np

from dearkd.errors import InputError

_RECONSTRUCT = np.ndarray(0).__reduce__()[0]
HARMLESS = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
}
"""The names that a pickle of arrays may have."""


class Arrays(pickle.Unpickler):
    """Reads arrays in mappings and lists; InputError for a pickle that names anything else, before it is called."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in HARMLESS:
            raise InputError(f"refused: the pickle names {module}.{name}, and only numpy arrays are read")
        return HARMLESS[module, name]


def read_arrays(raw: bytes) -> Any:
    """The arrays in a pickle, of Python 2 too; InputError when it names anything that could run, or is not whole."""
    try:
        return Arrays(io.BytesIO(raw), encoding="latin1").load()
    except InputError:
        raise
    except Exception as error:  # a damaged pickle may raise nearly everything
        raise InputError(f"not a whole pickle of arrays ({type(error).__name__})") from None
