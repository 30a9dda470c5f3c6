"""The inputs of a stage beside its recipe: images, teacher, and the weights from which it starts."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from dearkd.data.images import Images
from dearkd.data.order import Decisions, Schedule
from dearkd.model.teachers import FeatureShape, TeacherNetwork
from dearkd.plan.stage import Training
from dearkd.train.processes import Processes


@dataclass(frozen=True)
class Inputs:
    """The inputs of one stage, gathered once by `jobs.inputs.gather` and never changed.

    Args:
        train, validation: images. draws: images that an epoch draws from `train`.
        fingerprint: of the recipe. made_from: sha256 of images, teacher and weights. Both identify a checkpoint.
        teacher, features: the CNN and the shapes of its features that the stage imitates; none for labels alone.
        previous: final state of the stage before, whose weights, moments and schedule this stage continues.
        initial: weights of a finished student or of a CNN, from which fine-tuning starts.
        decisions: hard labels of the teacher, computed ahead; None where the teacher runs in each step.
        workers: processes that load images from files.
    """

    train: Images
    validation: Images
    draws: int
    fingerprint: str
    made_from: str = ""
    teacher: TeacherNetwork | None = None
    features: tuple[FeatureShape, ...] = ()
    previous: dict[str, Any] | None = None
    initial: dict[str, Tensor] | None = None
    decisions: Decisions | None = None
    workers: int = 0

    @property
    def identity(self) -> dict[str, str]:
        """The fields that a checkpoint must have."""
        return {"fingerprint": self.fingerprint, "made_from": self.made_from}

    def schedule(self, recipe: Training, seed: int, processes: Processes) -> Schedule:
        """The images of each step of this process."""
        return Schedule(
            size=len(self.train),
            draws=self.draws,
            batch=recipe.batch,
            micro_batch=recipe.micro_batch,
            repeats=recipe.augment.repeats,
            seed=seed,
            rank=processes.rank,
            processes=processes.count,
        )
