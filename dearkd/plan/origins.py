"""Where a value comes from: a row, a scale's file, or a default, and who chose the default."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from dearkd.plan.scale import Scale, Student
from dearkd.plan.stage import (
    DEARKD_HEADS,
    DEIT_HEADS,
    Augment,
    Data,
    Distillation,
    Fast,
    Model,
    Rpe,
    Stage,
    Synthesis,
    Teacher,
    Training,
)
from dearkd.schema import default

Path = tuple[str, ...]
"""The keys from a scale to one of its values. A key may contain dots, because `peers` has labels of architectures."""
METHOD = "paper, Sec. 3.1"
SETUP = "paper, Sec. 5.1"
DATA_FREE = "paper, Sec. 5.5"
DEIT = "DeiT"
DEEPINVERSION = "DeepInversion"
FAST_DATAFREE = "Fast-Datafree"
OURS = "our decision: docs/decisions.md"
CODE = "our code: no part of the method"
KEY = "a key of the scale"
OFF = "off"
"""Origin of a default that has no effect unless a scale uses it."""

DEFAULTS: dict[type, dict[str, str]] = {
    Data: {
        SETUP: "channels",
        DEIT: "mean std crop interpolation",
        OURS: "order",
        OFF: "root validation label_noise task test_share presize",
    },
    Augment: {
        DEIT: "kind decode crop_scale flip auto erasing mixup cutmix mix switch smoothing repeats",
        CODE: "finish",
        OFF: "shift rotate zoom",
    },
    Training: {
        SETUP: "epochs stage1_epochs batch optimiser lr augment",
        DEIT: "weight_decay betas momentum warmup_epochs warmup_lr min_lr drop_path",
        OURS: "lr_scaling stage2_lr stage2_peak subset_schedule",
        CODE: "micro_batch validate_every precision",
        OFF: "clip ema compile nesterov",
    },
    Rpe: {
        METHOD: "mix",
        OURS: "init alpha form scale param positive learn_delta drop drop_mode per_sample coord value_identity "
        "weight_decay",
        CODE: "path",
    },
    Distillation: {
        METHOD: "kind",
        DEIT: "temperature",
        KEY: "teacher",
        OURS: "alpha beta pairs hidden_norm hidden_ln pooled_head pool_before_norm freeze_rpe",
    },
    Teacher: {
        CODE: "tolerance gate",
        OFF: "args weights sha256 training start mean std image_size channels outputs",
    },
    Synthesis: {
        DATA_FREE: "batch_classes per_class phases ce tv l2 r_bn easy_positive triplet start",
        DEEPINVERSION: "competition jitter flip betas warmup",
        OURS: "images first_bn margin feature feature_norm keep rounds",
        KEY: "teacher student",
        CODE: "together shard_batches precision",
        OFF: "classes augment verifier fast",
    },
    Fast: {
        FAST_DATAFREE: "rehearsals iterations lr lr_code width code upsamplings",
        OURS: "class_code",
        OFF: "images per_class shard_batches ce easy_positive",
    },
    Student: {SETUP: "n_mhca", DEIT: "init", OURS: "lr_factor", OFF: "args"},
    Model: {DEIT: "init", OFF: "args stem_stride start"},
    Stage: {
        OURS: "subset_draw",
        CODE: "subset_seed",
        OFF: "data_name fraction teacher_name teacher distillation initial source shards freeze_rpe attention_images",
    },
    Scale: {OURS: "subset_draw", CODE: "subset_seed attention_images"},
}
"""For each spec, who chose the defaults of which fields."""


def of_default(spec: type, name: str) -> str:
    """Who chose the default of a spec's field; empty where the field has none."""
    return next((origin for origin, names in DEFAULTS.get(spec, {}).items() if name in names.split()), "")


def idle(spec: Any) -> tuple[str, ...]:
    """The fields of a spec that its other fields leave without effect."""
    if isinstance(spec, Augment):
        pixels = "crop_scale flip auto erasing decode finish" if spec.kind != "timm" else ""
        return (*pixels.split(), *(("mix", "switch") if not spec.mixup and not spec.cutmix else ()))
    if isinstance(spec, Training):
        return ("momentum", "nesterov") if spec.optimiser == "adamw" else ("betas",)
    if isinstance(spec, Distillation):
        return ("temperature",) if spec.kind == "hard" else ()
    return ()


@dataclasses.dataclass(frozen=True)
class Origins:
    """Origins of one run's values. written: by path, the scale whose file has the value. settings: the run's own."""

    scale: Scale
    written: Mapping[Path, str]
    method: str
    student: str = ""
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def of(self, path: Path, value: Any) -> str:
        """Return the origin of `value`, which a stage has instead of the scale's value at `path`."""
        holder = self.holder(path)
        if ".".join(path) in self.settings or (len(path) == 1 and path[0] in self.settings):
            return "its row of workflow/experiments.yaml"
        if dataclasses.is_dataclass(holder):
            field = {field.name: field for field in dataclasses.fields(holder)}.get(path[-1])
            if field is not None and value == default(field) and (chosen := of_default(type(holder), path[-1])):
                return chosen
        if _heads(holder, path[-1], value):
            return SETUP if path[-1] == "dearkd_heads" else DEIT
        if holder is not None and value == _get(holder, path[-1]):
            return f"scale {self.written.get(path, self.scale.name)}"
        return self._changed(path)

    def holder(self, path: Path) -> Any:
        """Return the object that has the last key of a path in this scale; None if there is none."""
        found: Any = self.scale
        for key in path[:-1]:
            found = _get(found, key)
        return found

    def _changed(self, path: Path) -> str:
        """The origin of a value that is not the scale's at its path."""
        if self.settings.get("long") and path[-1] in ("epochs", "stage1_epochs"):
            return f"scale {self.written.get(('long',), self.scale.name)}: long"
        if path == ("training", "lr"):
            return f"scale {self.scale.name}: training.lr x students.{self.student}.lr_factor"
        return f"method {self.method}"


def _get(holder: Any, key: str) -> Any:
    if isinstance(holder, tuple):
        holder = dict(holder)
    return holder.get(key) if isinstance(holder, dict) else getattr(holder, key, None)


def _heads(holder: Any, name: str, value: Any) -> bool:
    """Whether a student's number of heads is that of the paper's student of its size."""
    usual = {"dearkd_heads": DEARKD_HEADS, "deit_heads": DEIT_HEADS}
    return isinstance(holder, Student) and name in usual and value == usual[name][holder.size]
