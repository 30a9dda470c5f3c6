"""A stage under way: weights, optimiser, curve, and how they are saved and taken up again."""

import contextlib
import dataclasses
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from safetensors.torch import save as save_safetensors
from timm.models.vision_transformer import VisionTransformer
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dearkd import disk
from dearkd.data.datasets import Images
from dearkd.data.loader import Decisions, MicroBatch, Schedule, evaluation_loader
from dearkd.keys import key_of
from dearkd.model import students
from dearkd.model.attention_cpu import unfuse_few_tokens
from dearkd.model.objective import FeatureScale, mean_squares, objective
from dearkd.model.teachers import Seen, Teacher
from dearkd.plan.stage import Stage
from dearkd.schema import InputError
from dearkd.train import optimise
from dearkd.train.checkpoint import Checkpoints
from dearkd.train.evaluate import accuracy, attention_distance, predict
from dearkd.train.meters import Meters
from dearkd.train.replay import Replayed
from dearkd.train.tensorboard import Board

LOOK = 20
"""Steps between two looks at whether all terms are finite: each makes the host wait for the device."""


@dataclasses.dataclass
class Work:
    """Everything a stage needs beside its spec: images, teacher, machine and where to save.

    previous: final state of the stage before, whose weights, moments and schedule this one continues.
    initial: weights of a finished student or of a CNN, from which fine-tuning starts.
    decisions: the teacher's, computed ahead; None where it is asked.
    save_seconds: longest time between two checkpoints; 0 saves at every step.
    tensorboard: folder for event files of this run and seed.
    fingerprint: of the recipe. made_from: sha256 of all that it is applied to; a checkpoint of another one is dropped.
    """

    train: Images
    validation: Images
    draws: int
    teacher: Teacher | None
    features: tuple[students.FeatureShape, ...]
    checkpoints: Checkpoints
    fingerprint: str
    title: str
    made_from: str = ""
    previous: dict[str, Any] | None = None
    initial: dict[str, Tensor] | None = None
    decisions: Decisions | None = None
    device: torch.device = torch.device("cpu")
    rank: int = 0
    processes: int = 1
    workers: int = 0
    save_seconds: float = 300.0
    tensorboard: Path | None = None


class Session:
    """The state of a stage under way: what a checkpoint holds and the machinery that moves it."""

    def __init__(self, stage: Stage, seed: int, work: Work) -> None:
        self.stage, self.seed, self.work = stage, seed, work
        recipe = stage.training
        self.schedule = Schedule(
            size=len(work.train),
            draws=work.draws,
            batch=recipe.batch,
            micro_batch=recipe.micro_batch,
            repeats=recipe.augment.repeats,
            seed=seed,
            rank=work.rank,
            processes=work.processes,
        )
        self.step = stage.first_epoch * self.schedule.steps_per_epoch
        self.last_step = stage.last_epoch * self.schedule.steps_per_epoch
        student = students.create(stage.model, seed)
        if work.initial is not None:
            students.adopt(student, work.initial)
        if work.device.type == "cpu" and isinstance(student, VisionTransformer):
            unfuse_few_tokens(student)
        if stage.freeze_rpe:
            for name, parameter in student.named_parameters():
                parameter.requires_grad_(".rpe." not in name)
        torch.manual_seed(key_of(seed, "auxiliary"))
        self.trainee = students.Trainee(student, tuple(n for n, _ in stage.losses), stage.distillation, work.features)
        self.trainee.to(work.device).train()
        self.parameters = list(self.trainee.parameters())  # looking for them at each step takes 3 % of a small one
        self.scale = (
            FeatureScale(stage.distillation.hidden_norm, len(stage.pairs)).to(work.device)
            if self.trainee.wants_hidden
            else None
        )
        self.optimiser = optimise.optimiser(self.trainee, recipe)
        self.rate = optimise.learning_rate(self.optimiser, stage)
        self.ema = ModelEmaV3(student, decay=recipe.ema) if recipe.ema else None
        self.scaler = torch.amp.GradScaler(
            work.device.type, enabled=recipe.precision == "fp16" and work.device.type == "cuda"
        )
        self.loss_scale = self.scaler.get_scale()
        self.mixup = optimise.mixing(recipe.augment, stage.data.classes)
        self.meters = Meters(("loss", *dict(stage.losses)), work.device)
        self.squares: list[Tensor] = []
        self.curve: list[dict[str, Any]] = []
        self.heads: list[list[float]] = []
        self.spent = 0.0
        self.started = self.saved = time.monotonic()
        self._restore()
        self.board = None
        if work.tensorboard and work.rank == 0:
            self.board = Board(work.tensorboard, self.curve, stage.first_epoch + 1)
        if recipe.compile == "blocks":
            for part in student.blocks if isinstance(student, VisionTransformer) else [student]:
                part.compile(dynamic=False)
        self.parallel: nn.Module = self.trainee
        if work.processes > 1:
            self.parallel = DistributedDataParallel(self.trainee, broadcast_buffers=False)
        alone = work.processes == self.schedule.groups == 1 and not self.scaler.is_enabled()
        self.replayed = Replayed(self._learn) if work.device.type == "cuda" and alone else None

    # ------------------------------------------------------------------------------------------ a step

    def set_epoch(self, epoch: int) -> None:
        """Learning rate of an epoch: a pure function of its index, so a resumed run needs no history."""
        self.rate.step(epoch)

    def autocast(self) -> torch.autocast:
        dtype = precision(self.stage.training.precision, self.work.device)
        return torch.autocast(self.work.device.type, dtype or torch.bfloat16, enabled=dtype is not None)

    def mix(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """(images, soft targets) after mixup or cutmix and label smoothing."""
        return optimise.mix(self.mixup, images, labels)

    def decided(self, batch: MicroBatch) -> Tensor | None:
        """The teacher's decisions on a micro-batch where they are computed ahead; None where it is asked."""
        decisions = self.work.decisions
        return decisions.of(batch).to(self.work.device, non_blocking=True) if decisions else None

    def learn(self, images: Tensor, targets: Tensor, decisions: Tensor | None, last: bool) -> None:
        """Forward and backward of a micro-batch; the `last` of this process's share of a batch takes the step."""
        if self.replayed:
            self.replayed(self.rate.now, images, targets, decisions)
        else:
            self._learn(images, targets, decisions, last)

    def _learn(self, images: Tensor, targets: Tensor, decisions: Tensor | None, last: bool = True) -> None:
        share = self.schedule.groups // self.work.processes
        with self.autocast():
            seen = self._look(images, decisions)
            self._observe(seen)
            with contextlib.nullcontext() if last or self.work.processes == 1 else self.parallel.no_sync():
                outputs, knobs = self.parallel(images), self.stage.distillation
                parts = objective(dict(self.stage.losses), outputs, targets, seen, self.scale, knobs)
                self.scaler.scale(parts["loss"] / share).backward()
        self.meters.add(parts, share)
        if last:
            self._apply()

    def _look(self, images: Tensor, decisions: Tensor | None) -> Seen | None:
        """What the teacher says of a micro-batch; only its early stages run where its decisions are known."""
        teacher = self.work.teacher
        if teacher is None or decisions is None:
            return teacher and teacher(images)
        return Seen(decisions, teacher.features(images))

    def _observe(self, seen: Seen | None) -> None:
        """Collect the scale of the teacher's features; the very first micro-batch of the batch sets it for all."""
        if self.scale is None:
            return
        squares = mean_squares(seen.features)
        self.squares.append(squares)
        if not self.scale.known:
            first = squares.clone()
            if self.work.processes > 1:
                dist.broadcast(first, 0)
            self.scale.update(first)

    def _apply(self) -> None:
        """One optimiser step. Where fp16 overflowed, it leaves weights, their average and the feature scale alone."""
        self.scaler.unscale_(self.optimiser)
        if self.stage.training.clip:
            nn.utils.clip_grad_norm_(self.parameters, self.stage.training.clip)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.optimiser.zero_grad(set_to_none=True)
        self.meters.step += 1
        squares, self.squares = self.squares, []
        before, self.loss_scale = self.loss_scale, self.scaler.get_scale()
        if self.loss_scale < before:
            return
        if self.ema:
            self.ema.update(self.trainee.student)
        if squares:
            self.scale.update(self._mean(torch.stack(squares).mean(0)))

    def require_finite(self) -> None:
        """InputError naming the first term that was not finite, and the step; waits for the device."""
        found = self.meters.bad()
        if found is None:
            return
        step, name, number = found
        self.work.checkpoints.discard(step)  # the weights that gave this number, where they were saved
        raise InputError(
            f"{self.work.title}: {name} is {number} at step {step}; the checkpoint before it is intact. Lower "
            f"training.lr, or set training.clip: 1.0 or training.precision: bf16 or fp32"
        )

    def any_process(self, flag: bool) -> bool:
        """Whether any of the processes that share the batch says so: they must leave at the same step."""
        if self.work.processes == 1:
            return flag
        flags = torch.tensor(float(flag), device=self.work.device)
        dist.all_reduce(flags, dist.ReduceOp.MAX)
        return bool(flags.item())

    # ------------------------------------------------------------------------------------------ an epoch

    def end_epoch(self, epoch: int) -> str:
        """Add a line to the curve: means of the terms, learning rate, validation accuracy, attention distance."""
        stage = self.stage
        self.require_finite()
        means = self._means()
        entry: dict[str, Any] = {"epoch": epoch + 1, "lr": self.optimiser.param_groups[0]["lr"], **means}
        last = epoch + 1 == stage.last_epoch
        if (epoch + 1) % stage.training.validate_every == 0 or last:
            entry["validation_top1"] = round(self._validation_top1(), 3)
            if stage.attention_images:
                distance = self._attention_distance()
                entry["attention_distance"] = [round(d, 4) for d in distance.mean(1).tolist()]
                if last:
                    self.heads = [[round(d, 4) for d in layer] for layer in distance.tolist()]
        self.curve.append(entry)
        self.meters.start(self.step)
        if self.board:
            try:
                self.board.add(entry)
            except InputError:  # a full disk for the curves costs no training
                self.save()
                raise
        return "  ".join(
            [
                f"epoch {epoch + 1}",
                *(f"{k} {v:.4f}" for k, v in means.items()),
                *([f"top-1 {entry['validation_top1']:.1f} %"] if "validation_top1" in entry else []),
            ]
        )

    def _validation_top1(self) -> float:
        """Percent; the processes that share the batch share the images too."""
        recipe, device = self.stage.training, self.work.device
        images, count = self._share(len(self.work.validation)), torch.zeros(2, dtype=torch.float64)
        if len(images):
            batches = evaluation_loader(images, self.stage.data, max(recipe.micro_batch, 64), self.work.workers)
            logits, labels = predict(self.trainee.student, batches, device, precision(recipe.precision, device))
            count += torch.tensor([accuracy(logits, labels) * len(labels), len(labels)])
        right, seen = self._sum(count).tolist()
        return right / seen

    def _attention_distance(self) -> Float[Tensor, "layers heads"]:
        """In patches, on the first validation images, shared like them."""
        student, wanted = self.trainee.student, self.stage.attention_images
        images = self._share(wanted)
        total = torch.zeros(len(student.blocks), student.blocks[0].attn.num_heads, dtype=torch.float64)
        if len(images):
            pixels, _ = next(evaluation_loader(images, self.stage.data, wanted))
            total += attention_distance(student, pixels.to(self.work.device)).cpu().double() * len(images)
        return self._sum(total) / min(wanted, len(self.work.validation))

    def _share(self, count: int) -> Images:
        """This process's part of the first so many validation images."""
        work = self.work
        return work.validation.take(range(work.rank, min(count, len(work.validation)), work.processes))

    def _means(self) -> dict[str, float]:
        means = self._mean(self.meters.total / self.schedule.steps_per_epoch)
        return {k: round(v, 6) for k, v in zip(self.meters.names, means.tolist(), strict=True)}

    def _mean(self, values: Tensor) -> Tensor:
        """Mean over the processes that share the batch."""
        return self._sum(values) / self.work.processes

    def _sum(self, values: Tensor) -> Tensor:
        """Sum over the processes that share the batch."""
        if self.work.processes > 1:
            values = values.to(self.work.device, copy=True)
            dist.all_reduce(values)
        return values

    # ------------------------------------------------------------------------------------------ checkpoints

    def save_is_due(self) -> bool:
        return time.monotonic() - self.saved >= self.work.save_seconds and self.step < self.last_step

    def save(self) -> None:
        """Write a checkpoint from the first process; the others hold the same weights."""
        self.require_finite()
        if self.work.rank == 0:
            self.work.checkpoints.save(self.step, self.state())
        self.saved = time.monotonic()

    def state(self) -> dict[str, Any]:
        """Everything that the rest of the stage and the next stage depend on; moments are kept by parameter name."""
        names = {p: n for n, p in self.trainee.named_parameters()}
        moments = {names[p]: dict(self.optimiser.state[p]) for p in names if p in self.optimiser.state}
        return {
            "fingerprint": self.work.fingerprint,
            "made_from": self.work.made_from,
            "seed": self.seed,
            "step": self.step,
            "student": self.trainee.student.state_dict(),
            "auxiliary": self.trainee.auxiliary.state_dict(),
            "scale": self.scale.state_dict() if self.scale else {},
            "moments": moments,
            "ema": self.ema.module.state_dict() if self.ema else {},
            "scaler": self.scaler.state_dict(),
            "sums": self.meters.sums(),
            "curve": self.curve,
            "heads": self.heads,
            "seconds": self.spent + time.monotonic() - self.started,
        }

    def _restore(self) -> None:
        """Go on from this stage's newest checkpoint, or start from the end of the stage before."""
        saved = self.work.checkpoints.load()
        now = (self.work.fingerprint, self.work.made_from)
        if saved is not None and (saved["fingerprint"], saved.get("made_from")) != now:
            what = "the recipe" if saved["fingerprint"] != now[0] else "what it learns or starts from"
            print(f"{self.work.title}: {what} has changed since the last checkpoint; starting anew", flush=True)
            self.work.checkpoints.discard()
            saved = None
        if saved is not None:
            self.trainee.auxiliary.load_state_dict(saved["auxiliary"])
            self.scaler.load_state_dict(saved["scaler"])
            self.loss_scale = self.scaler.get_scale()
            if self.scale:
                self.scale.load_state_dict(saved["scale"])
            self.step, self.curve, self.heads = (saved[k] for k in ("step", "curve", "heads"))
            self.spent = saved["seconds"]
        self.meters.start(self.step, saved and saved["sums"])
        source = saved or self.work.previous
        if source is None:
            return
        self.trainee.student.load_state_dict(source["student"])
        if self.ema and source["ema"]:
            self.ema.module.load_state_dict(source["ema"])
        optimise.restore_moments(self.optimiser, self.trainee, source["moments"])

    def finish(self) -> dict[str, Any]:
        """The final state, saved as the last checkpoint."""
        self.require_finite()
        state = self.state()
        if self.work.rank == 0:
            self.work.checkpoints.save(self.step, state)
        if self.board:
            self.board.close()
        return state


def precision(name: str, device: torch.device) -> torch.dtype | None:
    """Autocast type on a GPU; None for fp32 and on a CPU."""
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(name) if device.type == "cuda" else None


def packed(state: dict[str, Any]) -> bytes:
    """The student alone, as safetensors."""
    return save_safetensors({k: v.contiguous() for k, v in state["student"].items()})


def export(state: dict[str, Any], path: Path) -> Path:
    """Write the student alone, as safetensors: what evaluation, transfer and other people load."""
    disk.write(path, packed(state))
    return path
