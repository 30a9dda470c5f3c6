"""The identity of a spec: a hash of what differs from the defaults."""

import dataclasses
import hashlib
import json
from typing import Any

from dearkd.schema import default


def deviations(value: Any) -> Any:
    """The spec as JSON values without fields at their default, so that a new setting changes no old fingerprint."""
    if dataclasses.is_dataclass(value):
        return {
            f.name: deviations(getattr(value, f.name))
            for f in dataclasses.fields(value)
            if getattr(value, f.name) != default(f)
        }
    if isinstance(value, tuple):
        return [deviations(v) for v in value]
    return value


def fingerprint(value: Any) -> str:
    """First 16 hex digits of the sha256 of a spec's deviations from the defaults."""
    text = json.dumps(deviations(value), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
