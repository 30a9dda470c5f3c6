"""What only timm knows of a plan is found out before anything is trained."""

import dataclasses

import pytest
import timm
import torch

from dearkd.errors import InputError
from dearkd.jobs.preflight import preflight
from dearkd.model import teachers
from dearkd.plan import experiments, stage
from dearkd.schema import override

pytestmark = pytest.mark.slow


def changed(changes, **models):
    """The smoke scale's plan of Table 1 after changes."""
    scale = dataclasses.replace(override(experiments.load_scale("smoke"), changes, "own"), only=("table1",))
    cnn = dataclasses.replace(scale.teachers["main"], **models.get("teacher", {}))
    students = {name: dataclasses.replace(s, **models.get("student", {})) for name, s in scale.students.items()}
    return experiments.load(dataclasses.replace(scale, teachers={"main": cnn}, students=students))


def test_a_plan_that_can_be_built_passes():
    preflight(changed({}))


@pytest.mark.parametrize(
    "changes, models, message",
    [
        ({"distillation.pairs": [[2, 7]]}, {}, r"\[2, 7\] names teacher stage 7, but convnet_micro has stages 0 to 2"),
        ({}, {"teacher": {"model": "convnet_mikro"}}, "unknown model 'convnet_mikro'; did you mean 'convnet_micro'"),
        ({}, {"teacher": {"args": (("widths", (8, 8)),)}}, "run teacher-main: model convnet_micro: "),
        ({}, {"teacher": {"model": "inception_v3", "args": ()}}, "images of 12 pixels and needs 75 or more"),
        ({}, {"teacher": {"args": (("width", 8),)}}, "run teacher-main: model convnet_micro: .*width"),
        (
            {},
            {"student": {"args": (("depth", 3), ("embed_dim", 36), ("embd", 1), ("patch_size", 3))}},
            "run dearkd-Ti.*embd",
        ),
    ],
)
def test_what_timm_refuses_is_refused_before_training(changes, models, message):
    with pytest.raises(InputError, match=message):
        preflight(changed(changes, **models))


@pytest.mark.parametrize("model, smallest", [("inception_v3", 75), ("vgg11_bn", 32), ("dla46_c", 31)])
def test_a_cnn_that_needs_larger_images_says_which(model, smallest):
    teacher = stage.Model(name=model, args=(("in_chans", 1), ("num_classes", 3)), init="timm")
    with pytest.raises(InputError, match=f"{model}: .* images of 12 pixels and needs {smallest} or more"):
        teachers.probe(teacher, 12, 1)
    assert len(teachers.probe(teacher, smallest, 1)) >= 4


def test_a_probe_gives_the_shapes_that_real_images_have():
    torch.manual_seed(0)
    real = teachers.TeacherNetwork(timm.create_model("resnet10t")).feature_shapes(torch.zeros(1, 3, 64, 64))
    found = teachers.probe(stage.Model(name="resnet10t", init="timm"), 64, 3)
    assert found == [(shape.channels, *shape.size) for shape in real]
