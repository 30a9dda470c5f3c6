"""The runs of rows. Equal rows are one run, whatever their settings are called."""

import dataclasses
import hashlib
import inspect
import json
import operator
import typing
from collections.abc import Mapping
from typing import Any

from dearkd.errors import InputError
from dearkd.places import slug
from dearkd.plan import methods
from dearkd.plan.data import REAL
from dearkd.plan.matrix import DESCRIPTION, check_keys
from dearkd.plan.plan import Run
from dearkd.plan.scale import Peer, Scale
from dearkd.plan.stage import Source
from dearkd.schema import convert, freeze, override

LONGEST = 180
"""Characters of a run's name: a folder's name has at most 255 bytes."""


class Runs:
    """Collects, row by row, the runs, sets of images and pretrained peers of a scale."""

    def __init__(self, scale: Scale) -> None:
        self.scale = scale
        self.runs: dict[str, Run] = {}
        self.names: dict[methods.Stages, str] = {}
        self.sources: dict[str, Source] = {}
        self.competitors: dict[str, tuple[str, ...]] = {}
        self.pretrained: dict[str, Peer] = {}
        for name, teacher in scale.teachers.items():
            if teacher.training is not None:
                run = Run(
                    name=f"teacher-{name}",
                    method="teacher",
                    student=teacher.model,
                    fraction=100,
                    stages=methods.teacher(scale, name),
                    seeds=(0,),
                )
                self.runs[run.name] = run

    def fills(self, values: dict[str, Any], where: str) -> str:
        """Return what fills a cell: the name of a run, or the label of a pretrained peer."""
        if values["method"] == methods.peer.__name__:
            system = self.scale.peers[values["student"]]
            if system.training is None:
                self.pretrained[values["student"]] = system
                return values["student"]
        return self.run(values, where).name

    def run(self, values: dict[str, Any], where: str) -> Run:
        """Return the run of a row's settings. If another row has the same stages, it is that row's run."""
        method, student = values["method"], convert(str, values.get("student"), f"{where}: student")
        settings = {k: v for k, v in values.items() if k not in (*DESCRIPTION, "method", "student")}
        switches = switches_of(method)
        check_keys(
            {k: v for k, v in settings.items() if "." not in k}, (*DESCRIPTION, "method", "student", *switches), where
        )
        resolve = _Recipe(self.scale, method, student, where)
        settings = {k: convert(switches[k][0], v, f"{where}: {k}") if k in switches else v for k, v in settings.items()}
        self.take_images(settings.get("images", REAL), where)
        stages = resolve(settings)
        # A setting without effect is no part of the name, because equal rows are one run.
        deviating = dict(sorted(settings.items()))
        for key in list(deviating):
            others = {k: v for k, v in deviating.items() if k != key}
            if resolve.same(others, stages):
                deviating = others
        before = ""
        if stages[0].initial:
            pretraining = settings.get("pretraining", switches["pretraining"][1])
            handed = {k: v for k, v in settings.items() if "." in k or k == "long"}
            before = self.run({"method": pretraining, "student": student, **handed}, where).name
        run = Run(
            name=run_name(method, student, {k: resolve.value(deviating, k) for k in deviating}),
            method=method,
            student=student,
            fraction=settings.get("fraction", 100),
            stages=stages,
            seeds=self.scale.seeds,
            initial=before,
            settings=freeze(deviating),
        )
        return self._take(run, where)

    def _take(self, run: Run, where: str) -> Run:
        """Keep a run: one for equal stages, whatever their settings are called, and never two of one name."""
        name = self.names.setdefault(run.stages, run.name)
        if name in self.runs and self.runs[name].stages != run.stages:
            raise InputError(
                f"{where}: another row has a run named {name} with other stages; change a setting of this row"
            )
        return self.runs.setdefault(name, dataclasses.replace(run, name=name))

    def take_images(self, name: str, where: str) -> None:
        """Add a set of synthetic images and the runs of the students that compete in it."""
        if name == REAL or name in self.sources:
            return
        try:
            source = methods.source(self.scale, name)
        except InputError as error:
            raise InputError(f"{where}, at scale {self.scale.name}: {error}") from None
        self.sources[name] = source
        found = []
        for round in range(source.recipe.rounds) if source.student else ():
            self.take_images("deepinversion", where)
            # The first round's student is that of a row of Table 5.
            first = run_name("dearkd", source.recipe.student, {"images": "deepinversion"})
            run = Run(
                name=f"{name}-student-round{round}" if round else first,
                method="dearkd",
                student=source.recipe.student,
                fraction=100,
                stages=methods.competitor(self.scale, name, round),
                seeds=self.scale.seeds,
            )
            found.append(self._take(run, where).name)
        self.competitors[name] = tuple(found)


class _Recipe:
    """A method of a student at a scale, as a function of a row's settings."""

    def __init__(self, scale: Scale, method: str, student: str, where: str) -> None:
        self.scale, self.method, self.student, self.where = scale, methods.METHODS[method], student, where

    def __call__(self, settings: Mapping[str, Any]) -> methods.Stages:
        """Return its stages. Raises InputError with file and row if the settings contradict each other."""
        for key in settings:
            if key.startswith("synthesis."):
                raise InputError(
                    f"{self.where}: {key} cannot be set for a row, because rows share the scale's synthetic images; "
                    f"set it in the scale"
                )
        scale = self._scale(settings)
        try:
            stages = self.method(scale, self.student, **{k: v for k, v in settings.items() if "." not in k})
            # A row's own settings and its size's learning rate do not apply to the images that it learns from.
            return tuple(
                dataclasses.replace(stage, source=methods.source(self.scale, stage.source.name))
                if stage.source
                else stage
                for stage in stages
            )
        except InputError as error:
            raise InputError(f"{self.where}, at scale {self.scale.name}: {error}") from None

    def same(self, settings: Mapping[str, Any], stages: methods.Stages) -> bool:
        """Whether these settings give these stages. Settings that contradict each other give none."""
        try:
            return self(settings) == stages
        except InputError:
            return False

    def value(self, settings: Mapping[str, Any], key: str) -> Any:
        """Return the value of a setting, however it was written: 1e-3 and 0.001 are one value."""
        return operator.attrgetter(key)(self._scale(settings)) if "." in key else settings[key]

    def _scale(self, settings: Mapping[str, Any]) -> Scale:
        dotted = {k: v for k, v in settings.items() if "." in k}
        return override(self.scale, dotted, self.where) if dotted else self.scale


def run_name(method: str, student: str, deviating: Mapping[str, Any]) -> str:
    """Return a run's name, which is also its folder: only what differs from the method's defaults, in sorted order.

    Two names are equal only where method, student and values are.
    """
    parts = [method, slug(student.replace("/", "-"))]
    name = "-".join([*parts, *(f"{key}~{slug(_text(value))}" for key, value in sorted(deviating.items()))])
    return name if len(name) <= LONGEST else f"{name[:LONGEST]}~{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, str) else json.dumps(value, default=dataclasses.asdict, sort_keys=True)


def switches_of(method: str) -> dict[str, tuple[Any, Any]]:
    """A recipe's own keyword arguments: (type, default)."""
    recipe = methods.METHODS[method]
    hints = typing.get_type_hints(recipe)
    parameters = inspect.signature(recipe).parameters.values()
    return {p.name: (hints[p.name], p.default) for p in parameters if p.default is not inspect.Parameter.empty}
