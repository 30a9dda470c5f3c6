"""The job that lists the images of a data set's splits and fractions."""

import dataclasses

from timm.data import ImageNetInfo

from dearkd import record
from dearkd.data import datasets, folder, subsets
from dearkd.data.images import Images
from dearkd.errors import InputError
from dearkd.jobs import publish
from dearkd.jobs.preflight import preflight
from dearkd.plan import files
from dearkd.plan.plan import Plan
from dearkd.plan.stage import IN_FILES, Data, subset_name
from dearkd.schema import to_json


def class_names(data: Data, train: Images) -> dict[int, str]:
    """The name of each class of training images, by its label; none where classes have no names."""
    if data.kind == "folder":
        return folder.class_names(train)
    if data.kind == "photos":
        names = ImageNetInfo("imagenet-1k").label_descriptions()
        return {int(label): names[label].split(",")[0] for label in sorted(set(train.labels))}
    return dict(enumerate(publish.named(data)))


def _refuse_large_batches(plan: Plan, name: str, images: int) -> None:
    """Raise InputError naming a run whose batch is larger than the number of training images of data set `name`."""
    for run in plan.runs.values():
        for stage in run.stages:
            batch = stage.training.batch
            if stage.data_name == name and stage.training.subset_schedule == "iterations" and batch > images:
                raise InputError(
                    f"run {run.name}: its batch of {batch} is more than the {images} training images of data {name}; "
                    f"lower `batch` and `micro_batch` of its `training` to {images} or less"
                )


def list_subsets(plan: Plan, name: str) -> None:
    """List the files, test images, validation split and fractions of data set `name`, and write its record.

    Prints in one line which files of a folder are left out. Raises one InputError that lists every unusable file,
    and one that names a run whose batch is larger than the data set.
    """
    data, place = plan.scale.data[name], plan.paths.subsets(name)
    if name == "main":
        preflight(plan)  # this is the first job of every workflow
    sets = datasets.read(dataclasses.replace(data, label_noise=0.0))
    named = [s.fraction for run in plan.runs.values() for s in run.stages if s.data_name == name]
    fractions = (*(plan.scale.fractions if name == "main" else ()), *sorted(named), 100)
    draws = plan.scale.seeds if plan.scale.subset_draw == "seed" else ()
    train = sets["train"]
    classes = class_names(data, train)
    chosen = subsets.choose(train.labels, data, fractions, plan.scale.subset_seed, draws, classes)
    lists = {"test.txt": "".join(f"{name}\n" for name in sets["test"].names)}
    described = {"sha256": {k: v.sha256() for k, v in {**sets, "train": datasets.noisy(train, data)}.items()}}
    if data.kind in IN_FILES:
        lists[files.LIST], described = subsets.list_files(plan, name, sets)
        print(described["survey"])
    _refuse_large_batches(plan, name, len(chosen[subset_name(100)]))
    subsets.write(train, chosen, place, lists)
    record.write(
        place / "data.json",
        {
            "kind": "subset",
            "data": name,
            "spec": to_json(data),
            "subset_seed": plan.scale.subset_seed,
            "class_names": {str(label): name for label, name in classes.items()},
            "images": {**{k: len(v) for k, v in sets.items()}, **{k: len(v) for k, v in chosen.items()}},
            **described,
            **record.provenance(),
        },
    )
