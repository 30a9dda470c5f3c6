"""DearKD in your own training loop: ten lines that do not depend on DearKD. A minute on a CPU.

    python examples/timm_loop.py

`DearKDTask` has the interface of timm's training tasks, so the loop that trains the CNN and a plain DeiT trains DearKD
too. Any CNN and any data set will do; only `digits` below belongs to this example. It prints accuracies of one seed,
with settings chosen on the same images: it shows that the loop works and is no measurement.
"""

import sys

import timm
import timm.optim
import torch
from timm.task import ClassificationTask, TrainingTask
from torch import Tensor, nn
from torchvision.transforms import v2

from dearkd.data import datasets
from dearkd.model import networks
from dearkd.plan.stage import Data, Model
from dearkd.schema import freeze
from dearkd.train.task import DearKDTask

DIGITS = Data(kind="digits", classes=10, image_size=12, channels=1, mean=(0.135,), std=(0.293,))
SHAPE = {"img_size": 12, "patch_size": 3, "in_chans": 1, "num_classes": 10, "embed_dim": 36, "depth": 3}
AUGMENT = v2.RandomAffine(8, translate=(0.12, 0.12), scale=(0.92, 1.08))


def train(task: TrainingTask, images: Tensor, labels: Tensor, steps: int, lr: float = 6e-3) -> nn.Module:
    """Train with any of timm's tasks and return the trained model."""
    task.train()
    optimiser = timm.optim.create_optimizer_v2(
        task.get_trainable_module(), "adamw", lr=lr, weight_decay=0.1, betas=(0.9, 0.99)
    )
    rate = torch.optim.lr_scheduler.OneCycleLR(optimiser, lr, total_steps=steps, cycle_momentum=False)
    for step in range(steps):
        chosen = torch.randint(len(images), (32,))
        task(AUGMENT(images[chosen]), labels[chosen])["loss"].backward()
        nn.utils.clip_grad_norm_(task.get_clip_parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        rate.step()
        task.update_ema(step + 1)  # also tells the task the number of updates
    return task.get_eval_model().eval()


def digits(split: str) -> tuple[Tensor, Tensor]:
    """(images (n, 1, 12, 12), labels) of the placed digits."""
    found = datasets.read(DIGITS)[split]
    images = torch.from_numpy(found.pixels).movedim(-1, 1) / 255
    return (images - DIGITS.mean[0]) / DIGITS.std[0], torch.from_numpy(found.labels)


def student(name: str, **args: int) -> nn.Module:
    """`timm.create_model`, initialised for a narrow model: timm's standard deviation of 0.02 is right for width 192."""
    return networks.create(Model(name=name, args=freeze({**SHAPE, **args}), init="fan_in"), seed=0)


def main(steps: int = 1000) -> dict[str, float]:
    """Top-1 (%) on 797 test images: a CNN that saw 1,000 images, a DeiT and a DearKD that saw 250 of them."""
    torch.manual_seed(0)
    images, labels = digits("train")
    few, loss = torch.randperm(len(images))[:250], nn.CrossEntropyLoss(label_smoothing=0.1)

    cnn = timm.create_model("convnet_micro", in_chans=1, num_classes=10)  # or any CNN of timm's, with its weights
    cnn = train(ClassificationTask(cnn, loss), images, labels, steps)

    deit = student("deit_tiny_patch16_224", num_heads=3)
    deit = train(ClassificationTask(deit, loss), images[few], labels[few], steps)

    dearkd = student("dearkd_tiny_patch16_224", num_heads=9, n_mhca=2)
    task = DearKDTask(dearkd, cnn, loss, stage1_updates=steps * 5 // 6, distillation={"pairs": [[2, 1]], "beta": 4})
    dearkd = train(task, images[few], labels[few], steps)

    images, labels = digits("test")
    trained = {"CNN, 1,000 images": cnn, "DeiT, 250 images": deit, "DearKD, 250 images": dearkd}
    with torch.no_grad():
        right = {name: model(images).argmax(1) == labels for name, model in trained.items()}
    return {name: 100 * hits.float().mean().item() for name, hits in right.items()}


if __name__ == "__main__":
    for name, value in main(*map(int, sys.argv[1:])).items():
        print(f"{name:20} {value:5.1f} %")
