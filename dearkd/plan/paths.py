"""The places of a scale's files."""

import dataclasses
from pathlib import Path

from dearkd.places import slug


@dataclasses.dataclass(frozen=True)
class Paths:
    """The path of every file of a scale, relative to the project's folder."""

    scale: str
    checkpoints: str = "checkpoints"

    @property
    def results(self) -> Path:
        return Path("results") / self.scale

    @property
    def figures(self) -> Path:
        return Path("figures") / self.scale

    def subsets(self, data: str) -> Path:
        """Folder with the list of each fraction and of the validation split."""
        return self.results / "subsets" / data

    def seen(self, data: str) -> Path:
        """Sizes and times of the files of a data set when their contents were last read on this machine."""
        return Path(self.checkpoints) / self.scale / "seen" / f"{data}.csv"

    def presized(self, data: str) -> Path:
        """Record of the smaller copy of a data set's training images."""
        return self.results / "presized" / f"{data}.json"

    def presized_images(self, data: str, side: int) -> Path:
        """Folder of that copy, laid out as the original."""
        return Path(self.checkpoints) / self.scale / "presized" / f"{data}-{side}"

    def teacher(self, name: str) -> Path:
        """Record of a teacher that has passed its accuracy gate."""
        return self.results / "teachers" / f"{name}.json"

    def seed(self, run: str, seed: int) -> Path:
        return self.results / "runs" / run / f"seed{seed}"

    def stage(self, run: str, seed: int, stage: str) -> Path:
        """Record of a finished stage."""
        return self.seed(run, seed) / f"{stage}.json"

    def metrics(self, run: str, seed: int) -> Path:
        """Record of a run's evaluation on the test images; its predictions are beside it."""
        return self.seed(run, seed) / "metrics.json"

    def state(self, run: str, seed: int, stage: str) -> Path:
        """Folder of a stage's checkpoints and exported weights."""
        return Path(self.checkpoints) / self.scale / run / f"seed{seed}" / stage

    def pretrained(self, label: str) -> Path:
        """Record of the evaluation of a system that others have trained."""
        return self.results / "pretrained" / f"{slug(label.replace('/', '-'))}.json"

    @property
    def throughput(self) -> Path:
        """Record of the size and throughput of the architectures of Table 3."""
        return self.results / "architectures.json"

    def teacher_weights(self, name: str) -> Path:
        """The teacher's weights as every job of this scale reads them."""
        return Path(self.checkpoints) / self.scale / "teachers" / f"{name}.safetensors"

    def kept_weights(self, name: str) -> Path:
        """A small teacher's weights beside its record, so that a clone has the same teacher."""
        return self.teacher(name).with_suffix(".safetensors")

    def kept_student(self, run: str, seed: int) -> Path:
        """A small student's final weights beside its record, so that a clone has them without training."""
        return self.seed(run, seed) / "student.safetensors"

    def labels(self, name: str, seed: int, shard: int) -> Path:
        """Record of a shard of a teacher's labels."""
        return self.results / "labels" / name / f"seed{seed}" / f"{shard:04d}.json"

    def label_file(self, name: str, seed: int, shard: int) -> Path:
        """The labels themselves, uint16 by epoch and position; their checkpoints are in the folder of the same name."""
        return Path(self.checkpoints) / self.scale / "labels" / name / f"seed{seed}" / f"{shard:04d}.npy"

    def images(self, source: str, seed: int) -> Path:
        """Folder with the records of a set of images: its shards, its diversity, latent codes and a sample."""
        return self.results / "images" / source / f"seed{seed}"

    def shard(self, source: str, seed: int, shard: int) -> Path:
        """Record of a finished shard of synthetic images."""
        return self.images(source, seed) / f"shard-{shard:04d}.json"

    def diversity(self, source: str, seed: int) -> Path:
        return self.images(source, seed) / "diversity.json"

    def archive(self, source: str, seed: int, shard: int) -> Path:
        """The shard's images, a zip file of PNG; its checkpoints are in the folder of the same name."""
        return Path(self.checkpoints) / self.scale / "images" / source / f"seed{seed}" / f"shard-{shard:04d}.zip"
