"""The plan, the paths and the resources of all rules. Nothing here imports torch."""

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
from dearkd.errors import InputError, unknown

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

gc.set_threshold(100_000, 50, 100)  # planning keeps a million objects; collecting garbage took a tenth of its time

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
    """Return the resource `field` that the scale gives a kind of job."""
    return getattr(PLAN.resources(kind), field)


def cards(kind):
    """Return the whole GPUs that a kind of job needs. SLURM allocates whole ones, so a share of a GPU counts as one."""
    return math.ceil(asks(kind, "gpu"))


def percent(kind):
    """Return the GPUs of a kind of job in hundredths, for one machine: Snakemake's resources are integers."""
    return math.ceil(round(100 * asks(kind, "gpu"), 6))


@functools.cache  # Snakemake asks twice for each seed
def fingerprint_of(run, stage=None):
    """Return the fingerprint of a stage of a run, by default of its last stage."""
    run = PLAN.runs[run]
    return run.fingerprint(stage or run.stages[-1].name)


def stage_of(wildcards):
    return PLAN.runs[wildcards.run].stage(wildcards.stage)


def settled(result, inputs, check):
    """Return the inputs of an expensive job. Their time stamps do not count for a result that came with the clone.

    Git sets time stamps arbitrarily. A result that Snakemake made here has metadata, and there time stamps count: when
    a stage is trained again, the jobs that depend on it run again. `check`, a function of `verify.py`, says from the
    record whether a result is stale. A stale result is made again, here as in `status`.
    """
    if workflow.is_main_process and Path(result).is_file() and verify.is_stale(check):
        workflow.dag.forcefiles.add(str(result))
        return list(inputs)
    committed = Path(result).exists() and workflow.persistence.metadata(IOFile(str(result))) is None
    return [ancient(p) for p in inputs] if committed else list(inputs)


def metrics_of(*names):
    """Return the evaluations of all runs, seeds and pretrained peers that tables or figures show."""
    ours = [PATHS.metrics(run.name, seed) for run in PLAN.runs_of(*names) for seed in run.seeds]
    return ours + [PATHS.pretrained(label) for label in PLAN.pretrained_of(*names)]


def architectures_of(*names):
    """Return the measurement of all architectures if a table shows one of them."""
    return [PATHS.throughput] if PLAN.architectures_of(*names) else []


def diversity_of(*names):
    """Return the diversity records of all sets of images that tables or figures show."""
    return [PATHS.diversity(images, seed) for images in PLAN.images_of(*names) for seed in PLAN.scale.seeds]


def refuse_target(wildcards):
    """Raise the sentence for a target that no rule makes."""
    targets = [rule.name for rule in workflow.rules if not rule.has_wildcards()]
    raise WorkflowError(unknown(wildcards.target, targets, "target", f"scale {PLAN.scale.name}"))
