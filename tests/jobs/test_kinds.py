"""Every record says what it is of, and those from before records said so are told by their fields."""

import re
from pathlib import Path

import pytest

from dearkd import record

PLACES = {
    r"runs/[^/]+/seed\d+/metrics\.json": "evaluation",
    r"runs/[^/]+/seed\d+/[^/]+\.json": "stage",
    r"images/[^/]+/seed\d+/diversity\.json": "diversity",
    r"images/[^/]+/seed\d+/shard-\d+\.json": "images",
    r"labels/.+\.json": "labels",
    r"teachers/[^/]+\.json": "teacher",
    r"subsets/[^/]+/data\.json": "subset",
    r"pretrained/[^/]+\.json": "pretrained",
    r"architectures\.json": "architectures",
}
"""The kind of each record, by its place below results/<scale>/; the first that fits."""
COMMITTED = sorted(p for p in Path("results").glob("*/**/*.json") if ".rehearsal" not in p.parts)


def kind_by_place(path):
    """'' where a file is no record of a job."""
    where = re.sub(r"^.*results/[^/]+/", "", path.as_posix())
    return next((kind for place, kind in PLACES.items() if re.fullmatch(place, where)), "")


@pytest.mark.parametrize("kind", sorted(set(PLACES.values())))
def test_committed_records_are_told_by_their_fields(kind):
    paths = [p for p in COMMITTED if kind_by_place(p) == kind]
    assert {record.kind(record.read(path)) for path in paths} <= {kind}


def test_every_record_of_a_run_says_its_kind(project):
    from dearkd.jobs.synthesis import synthesise_shard
    from dearkd.plan import experiments

    synthesise_shard(experiments.load("smoke"), "df_dearkd", 0, 0)
    found = {path: record.read(path) for path in Path("results/smoke").rglob("*.json")}
    assert {values["kind"] for values in found.values()} == {"subset", "teacher", "stage", "evaluation", "images"}
    for path, values in found.items():
        without = {key: value for key, value in values.items() if key != "kind"}
        assert values["kind"] == record.kind(without) == kind_by_place(path)
