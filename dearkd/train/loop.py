"""The training loop of every stage of every method, teachers included. A method is data (`plan/methods.py`).

A step is a batch of `groups` micro-batches. Each micro-batch has its own key for mixing, dropout and drop path. The
number of processes, gradient accumulation and restarts therefore change only the order of sums.
"""

import functools
import itertools
from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from dearkd.data.loader import training_loader
from dearkd.data.order import Loaded
from dearkd.errors import InputError
from dearkd.keys import seed_all
from dearkd.model.objective import mean_squares, objective
from dearkd.model.teachers import Seen
from dearkd.plan.stage import Stage
from dearkd.progress import Progress
from dearkd.train import curve, optimise
from dearkd.train.attempt import Attempt
from dearkd.train.compiled import compile_parts
from dearkd.train.inputs import Inputs
from dearkd.train.processes import Processes
from dearkd.train.replay import Replayed, replayable
from dearkd.train.state import State
from dearkd.train.track import Tracked

LOOK = 20
"""Steps between two checks that all terms are finite. Each check makes the host wait for the device."""


def train(
    stage: Stage,
    seed: int,
    inputs: Inputs,
    attempt: Attempt,
    processes: Processes = Processes(),
    track: Tracked | None = None,
) -> dict[str, Any]:
    """Train a stage to its end, from its newest checkpoint if there is one, and return its final state.

    track: the tracker of this run and seed.
    Raises Interrupted when asked to stop, and InputError when a term of the loss is not finite.
    """
    learner = Learner(stage, seed, inputs, processes, attempt.resume(inputs.identity))
    state, schedule, first = learner.state, learner.schedule, processes.rank == 0

    def values() -> dict[str, Any]:
        require_finite(state, attempt)
        return state.values()

    board = track.open(state.curve, stage.first_epoch + 1) if track and first else None
    micro_batches = training_loader(
        inputs.train,
        stage.data,
        stage.training.augment,
        schedule,
        state.step,
        learner.last_step,
        inputs.workers,
        processes.device,
    )
    with Progress(attempt.title, learner.last_step, state.step, first, stage.training.batch) as progress:
        for _, batch in itertools.groupby(micro_batches, key=lambda item: item[0].step):
            learner.step(batch)
            if state.step % schedule.steps_per_epoch == 0:
                require_finite(state, attempt)
                entry = curve.end_epoch(stage, state, inputs, processes, schedule.steps_per_epoch)
                if board:
                    try:
                        board.add(entry)
                    except InputError:  # a full disk for the curves loses no training
                        attempt.save(state.step, values())
                        raise
                progress.line(curve.text(entry))
            progress.advance(state.step)
            if state.step % LOOK == 0:
                require_finite(state, attempt)
            attempt.checkpoint(state.step, learner.last_step, values, processes.any(attempt.asked))
    final = values()
    attempt.save(state.step, final)
    if board:
        board.close()
    return final


class Learner:
    """Takes the steps of a stage. Each step moves `state` by one batch.

    Args:
        saved: the stage's newest checkpoint, if there is one.
    """

    def __init__(
        self,
        stage: Stage,
        seed: int,
        inputs: Inputs,
        processes: Processes = Processes(),
        saved: dict[str, Any] | None = None,
    ) -> None:
        self.stage, self.seed, self.inputs, self.processes = stage, seed, inputs, processes
        self.schedule = inputs.schedule(stage.training, seed, processes)
        self.last_step = stage.last_epoch * self.schedule.steps_per_epoch
        first_step = stage.first_epoch * self.schedule.steps_per_epoch
        self.state = State(stage, seed, inputs, processes.device, first_step, saved)
        self.teacher = inputs.teacher and inputs.teacher.to(processes.device)
        self.rate = optimise.learning_rate(self.state.optimiser, stage)
        self.mixup = optimise.mixing(stage.training.augment, stage.data.classes)
        # listing the parameters at each step would take 3 % of a small step
        self.parameters = list(self.state.trainee.parameters())
        self.squares: list[Tensor] = []
        if stage.training.compile == "blocks":
            compile_parts(self.state.trainee, self.teacher)
        self.parallel: nn.Module = processes.parallel(self.state.trainee)
        self.share = self.schedule.groups // processes.count
        alone = processes.count == 1 and not self.state.scaler.is_enabled()
        works = [functools.partial(self.learn, last=i == self.share) for i in range(1, self.share + 1)]
        replayed = processes.device.type == "cuda" and alone and replayable(self.share, stage.training.compile != "off")
        self.replayed = Replayed(*works) if replayed else None

    def step(self, batch: Iterable[Loaded]) -> None:
        """Take one step: mix each micro-batch (images, labels) of this process and learn from it."""
        device, decisions = self.processes.device, self.inputs.decisions
        self.rate.step(self.state.step // self.schedule.steps_per_epoch)  # of the epoch: a resumed run needs no history
        for i, (micro, images, labels) in enumerate(batch, 1):
            seed_all(self.seed, "forward", micro.step, micro.group)
            images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
            images, targets = optimise.mix(self.mixup, images, labels)
            known = decisions.of(micro).to(device, non_blocking=True) if decisions else None
            if self.replayed:
                self.replayed(self.rate.now, images, targets, known, place=i - 1)
            else:
                self.learn(images, targets, known, last=i == self.share)
        self.state.step += 1

    def learn(
        self,
        images: Float[Tensor, "batch channels height width"],
        targets: Float[Tensor, "batch classes"],
        decisions: Int[Tensor, " batch"] | None,
        last: bool = True,
    ) -> None:
        """Forward and backward pass of a micro-batch. The `last` one of this process's share moves the weights."""
        state, processes, losses = self.state, self.processes, dict(self.stage.losses)
        with processes.no_sync(self.parallel, last):
            with optimise.autocast(self.stage.training.precision, processes.device):
                seen = self._look(images, decisions)
                self._observe(seen)
                outputs = self.parallel(images)
                parts = objective(losses, outputs, targets, seen, state.scale, self.stage.distillation)
            state.scaler.scale(parts["loss"] / self.share).backward()  # autocast would round fp32 gradients to bf16
        state.meters.add(parts, self.share)
        if last:
            self._move()

    def _look(self, images: Tensor, decisions: Tensor | None) -> Seen | None:
        """The teacher's outputs for a micro-batch. Only its early stages run where its decisions are known."""
        if self.teacher is None:
            return None
        return self.teacher(images) if decisions is None else Seen(decisions, self.teacher.features(images))

    def _observe(self, seen: Seen | None) -> None:
        """Collect the scale of the teacher's features. The very first micro-batch sets it for all processes."""
        scale = self.state.scale
        if scale is None or seen is None:
            return
        self.squares.append(mean_squares(seen.features))
        if not scale.known:
            scale.update(self.processes.first(self.squares[-1]))

    def _move(self) -> None:
        """Clip, step, EMA. After an fp16 overflow the weights, their average and the features' scale do not change."""
        state, clip = self.state, self.stage.training.clip
        scaler, squares, self.squares = state.scaler, self.squares, []
        scaler.unscale_(state.optimiser)
        if clip:
            nn.utils.clip_grad_norm_(self.parameters, clip)
        scaler.step(state.optimiser)
        before = scaler.get_scale()
        scaler.update()
        state.optimiser.zero_grad(set_to_none=True)
        state.meters.step += 1
        if scaler.get_scale() < before:
            return
        if state.ema:
            state.ema.update(state.student)
        if state.scale is not None and squares:
            state.scale.update(self.processes.mean(torch.stack(squares).mean(0)))


def require_finite(state: State, attempt: Attempt) -> None:
    """Raise InputError that names the step and the first term that was not finite there. Waits for the device.

    A checkpoint with the weights of that step is removed.
    """
    found = state.meters.bad()
    if found is None:
        return
    step, name, number = found
    attempt.checkpoints.discard(step)
    raise InputError(
        f"{attempt.title}: {name} is {number} at step {step}; the checkpoint before it is intact. Lower "
        f"training.lr, or set training.clip: 1.0 or training.precision: bf16 or fp32"
    )
