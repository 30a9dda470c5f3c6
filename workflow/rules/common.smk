"""The plan, where things lie, and what jobs ask for. Nothing here imports torch."""

import functools
import gc
import math
import re
import sys
from pathlib import Path

sys.path.insert(0, workflow.basedir)

from snakemake.exceptions import WorkflowError
from snakemake.io import IOFile

from dearkd.fingerprint import fingerprint
from dearkd.places import shipped
from dearkd.plan import experiments, verify
from dearkd.schema import InputError

try:
    for key in config:
        if key != "scale":
            raise InputError(
                f"--config {key}: unknown key; the only one is scale, as in --config scale=smoke. Seeds, epochs and the "
                f"like are set in a scale file of your own"
            )
    PLAN = experiments.load(config.get("scale", "digits"))
except InputError as error:
    raise WorkflowError(str(error)) from None

gc.set_threshold(100_000, 50, 100)  # planning makes a million objects that live to its end: a tenth of its time

SCALE = config.get("scale", "digits")
PATHS = PLAN.paths
PYTHON = sys.executable
LOGS = f"logs/{PLAN.scale.name}"


PEERS = {PATHS.pretrained(label).stem: (label, peer) for label, peer in PLAN.pretrained.items()}


def one_of(names):
    """A pattern for these names and no other text."""
    return "|".join(sorted({re.escape(name) for name in names})) or "(?!)"


wildcard_constraints:
    data=one_of(PLAN.scale.data),
    teacher=one_of(PLAN.scale.teachers),
    run=one_of(PLAN.runs),
    seed=r"\d+",
    stage=one_of(stage.name for run in PLAN.runs.values() for stage in run.stages),
    peer=one_of(PEERS),
    source=one_of(PLAN.sources),
    labels=one_of(PLAN.labels),
    images=one_of(["real", *PLAN.sources]),
    shard=r"\d{4}",
    table=one_of(PLAN.tables),
    figure=one_of(PLAN.figures),


def asks(kind, field):
    """A resource of a kind of job, as the scale gives it."""
    return getattr(PLAN.resources(kind), field)


def cards(kind):
    """GPUs of a kind of job, of which a share counts as a whole one: what SLURM gives out."""
    return math.ceil(asks(kind, "gpu"))


def percent(kind):
    """The same in hundredths of a GPU, shares included: what one machine counts. Snakemake's resources are integers."""
    return math.ceil(round(100 * asks(kind, "gpu"), 6))


@functools.cache  # asked for once a seed and twice by Snakemake
def fingerprint_of(run, stage=None):
    """Identity of a stage of a run; of its last one where none is named."""
    run = PLAN.runs[run]
    return run.fingerprint(stage or run.stages[-1].name)


def stage_of(wildcards):
    return PLAN.runs[wildcards.run].stage(wildcards.stage)


def settled(result, inputs, check):
    """Inputs of a job that costs something; their times do not count for a result that came with the clone.

    Git gives files any time at all, and only a result that Snakemake made here has metadata. Elsewhere times count,
    so that a stage that is trained again repeats what follows from it. Whether the result is today's says its record:
    what `check`, a function of `verify.py`, calls stale is made again, here as in `status`.
    """
    if workflow.is_main_process and Path(result).is_file() and verify.is_stale(check):
        workflow.dag.forcefiles.add(str(result))
        return list(inputs)
    committed = Path(result).exists() and workflow.persistence.metadata(IOFile(str(result))) is None
    return [ancient(p) for p in inputs] if committed else list(inputs)


def metrics_of(*names):
    """Evaluations of all runs, seeds and systems of others that tables or figures show."""
    ours = [PATHS.metrics(run.name, seed) for run in PLAN.runs_of(*names) for seed in run.seeds]
    return ours + [PATHS.pretrained(label) for label in PLAN.pretrained_of(*names)]


def architectures_of(*names):
    """The one measurement of all architectures, where a table shows some."""
    return [PATHS.throughput] if PLAN.architectures_of(*names) else []


def diversity_of(*names):
    """Descriptions of all sets of images that tables or figures show."""
    return [PATHS.diversity(images, seed) for images in PLAN.images_of(*names) for seed in PLAN.scale.seeds]
