"""THE loop: every stage of every method, teachers included. A method is data (`methods.py`); nothing here knows one.

A step is a global batch of `groups` micro-batches. Each micro-batch has its own key for mixing, dropout and drop path,
so the processes that share a batch, gradient accumulation and restarts change nothing but the order of sums.
"""

import itertools
from collections.abc import Iterable
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from dearkd.data.loader import MicroBatch, training_loader
from dearkd.keys import seed_all
from dearkd.model.objective import mean_squares, objective
from dearkd.model.teachers import Seen
from dearkd.plan.stage import Stage
from dearkd.progress import Progress
from dearkd.schema import InputError
from dearkd.train import curve, optimise
from dearkd.train.attempt import Attempt
from dearkd.train.inputs import Inputs
from dearkd.train.processes import Processes
from dearkd.train.replay import Replayed
from dearkd.train.state import State
from dearkd.train.track import Tracked

LOOK = 20
"""Steps between two looks at whether all terms are finite: each makes the host wait for the device."""


def train(
    stage: Stage,
    seed: int,
    inputs: Inputs,
    attempt: Attempt,
    processes: Processes = Processes(),
    track: Tracked | None = None,
) -> dict[str, Any]:
    """Train a stage to its end, from its newest checkpoint if there is one; returns its final state.

    track: where the curve of this run and seed is shown.
    Raises Interrupted when asked to stop, InputError when the loss is not finite.
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
    with Progress(attempt.title, learner.last_step, state.step, first) as progress:
        for _, batch in itertools.groupby(micro_batches, key=lambda item: item[0].step):
            learner.step(batch)
            if state.step % schedule.steps_per_epoch == 0:
                require_finite(state, attempt)
                entry = curve.end_epoch(stage, state, inputs, processes, schedule.steps_per_epoch)
                if board:
                    try:
                        board.add(entry)
                    except InputError:  # a full disk for the curves costs no training
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
    """Takes a stage's steps: moves its `state` by one batch after the other.

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
        # looking for them at each step takes 3 % of a small one
        self.parameters = list(self.state.trainee.parameters())
        self.squares: list[Tensor] = []
        if stage.training.compile == "blocks":
            student = self.state.student
            for part in student.blocks if isinstance(student, VisionTransformer) else [student]:
                part.compile(dynamic=False)
        self.parallel: nn.Module = processes.parallel(self.state.trainee)
        self.share = self.schedule.groups // processes.count
        alone = processes.count == self.schedule.groups == 1 and not self.state.scaler.is_enabled()
        self.replayed = Replayed(self.learn) if processes.device.type == "cuda" and alone else None

    def step(self, batch: Iterable[tuple[MicroBatch, Tensor, Tensor]]) -> None:
        """One step: each of this process's micro-batches of (images, labels) is mixed and learned from."""
        device, decisions = self.processes.device, self.inputs.decisions
        self.rate.step(self.state.step // self.schedule.steps_per_epoch)  # of the epoch: a resumed run needs no history
        for i, (micro, images, labels) in enumerate(batch, 1):
            seed_all(self.seed, "forward", micro.step, micro.group)
            images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
            images, targets = optimise.mix(self.mixup, images, labels)
            known = decisions and decisions.of(micro).to(device, non_blocking=True)
            if self.replayed:
                self.replayed(self.rate.now, images, targets, known)
            else:
                self.learn(images, targets, known, last=i == self.share)
        self.state.step += 1

    def learn(self, images: Tensor, targets: Tensor, decisions: Tensor | None, last: bool = True) -> None:
        """Forward and backward of a micro-batch; the `last` of this process's share of a batch moves the weights."""
        state, processes, losses = self.state, self.processes, dict(self.stage.losses)
        with optimise.autocast(self.stage.training.precision, processes.device):
            seen = self._look(images, decisions)
            self._observe(seen)
            with processes.no_sync(self.parallel, last):
                outputs = self.parallel(images)
                parts = objective(losses, outputs, targets, seen, state.scale, self.stage.distillation)
                state.scaler.scale(parts["loss"] / self.share).backward()
        state.meters.add(parts, self.share)
        if last:
            self._move()

    def _look(self, images: Tensor, decisions: Tensor | None) -> Seen | None:
        """What the teacher says of a micro-batch; only its early stages run where its decisions are known."""
        if self.teacher is None or decisions is None:
            return self.teacher and self.teacher(images)
        return Seen(decisions, self.teacher.features(images))

    def _observe(self, seen: Seen | None) -> None:
        """Collect the scale of the teacher's features; the very first micro-batch of the batch sets it for all."""
        scale = self.state.scale
        if scale is None:
            return
        self.squares.append(mean_squares(seen.features))
        if not scale.known:
            scale.update(self.processes.first(self.squares[-1]))

    def _move(self) -> None:
        """Clip, step, EMA. Where fp16 overflowed, weights, their average and the features' scale stay as they are."""
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
        if squares:
            state.scale.update(self.processes.mean(torch.stack(squares).mean(0)))


def require_finite(state: State, attempt: Attempt) -> None:
    """InputError naming the first term that was not finite, and the step; waits for the device.

    The weights that gave this number are removed where they were saved.
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
