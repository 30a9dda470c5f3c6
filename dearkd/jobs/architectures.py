"""The job that measures size and throughput of the architectures of Table 3."""

import torch

from dearkd import record
from dearkd.jobs import throughput
from dearkd.jobs.inputs import available_device
from dearkd.plan.plan import Plan
from dearkd.schema import to_json


def measure_architectures(plan: Plan) -> None:
    """Measure every architecture that a table names, one after the other on this machine, and write the record.

    Raises InputError when timm has no architecture of a name.
    """
    device = available_device()
    torch.set_num_threads(plan.resources("throughput").threads)
    names = plan.architectures_of(*plan.tables)
    rates = throughput.measure(names, plan.scale.throughput, device) if plan.scale.throughput.repeats else {}
    record.write(
        plan.paths.throughput,
        {
            "kind": "architectures",
            "scale": plan.scale.name,
            "spec": to_json(plan.scale.throughput),
            "threads": torch.get_num_threads(),
            "architectures": {name: {**throughput.size(name), **rates.get(name, {})} for name in names},
            **record.provenance(),
        },
    )
