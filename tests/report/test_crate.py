"""The RO-Crate of the repository: flat JSON-LD 1.1 in which every reference leads somewhere."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from dearkd import disk, record
from dearkd.__main__ import main
from dearkd.errors import InputError
from dearkd.report import crate


@pytest.fixture(scope="module")
def made():
    return crate.crate()


def references(value):
    if isinstance(value, list):
        return [found for entry in value for found in references(entry)]
    if isinstance(value, dict):
        return [value["@id"]] if set(value) == {"@id"} else [f for entry in value.values() for f in references(entry)]
    return []


def test_it_is_the_metadata_file_of_ro_crate_1_1(made):
    """What the specification demands of the file, its descriptor and the root data entity."""
    assert made["@context"] == "https://w3id.org/ro/crate/1.1/context" and set(made) == {"@context", "@graph"}
    entities = {entity["@id"]: entity for entity in made["@graph"]}
    assert len(entities) == len(made["@graph"]) and all(entity["@type"] for entity in entities.values())
    descriptor, root = entities["ro-crate-metadata.json"], entities["./"]
    assert descriptor["conformsTo"] == {"@id": "https://w3id.org/ro/crate/1.1"} and descriptor["about"] == {"@id": "./"}
    assert root["@type"] == "Dataset" and all(root[key] for key in ("name", "description", "datePublished", "license"))
    outside = {i for i in references(made["@graph"]) if i not in entities}
    assert outside == {"https://w3id.org/ro/crate/1.1"}, "a reference that leads nowhere"


def test_its_files_are_those_of_the_repository_to_the_byte(made):
    found = [entity for entity in made["@graph"] if entity["@type"] == "File"]
    assert len(found) > 500
    for entity in found:
        path = Path(entity["@id"])
        assert (str(path.stat().st_size), disk.sha256(path)) == (entity["contentSize"], entity["sha256"])
    listed = {part["@id"] for part in next(e for e in made["@graph"] if e["@id"] == "./")["hasPart"]}
    assert listed >= {entity["@id"] for entity in found}


def test_every_record_is_the_result_of_an_action_with_its_command(made):
    actions = {a["result"][0]["@id"]: a for a in made["@graph"] if a["@type"] == "CreateAction"}
    paths = list(Path("results").glob("*/**/*.json"))
    assert actions.keys() == {path.as_posix() for path in paths}
    path = "results/digits/runs/dearkd-Ti/seed0/metrics.json"
    values = record.read(Path(path))
    assert (actions[path]["name"], actions[path]["endTime"]) == (values["command"], values["written"])
    assert f"top1 {values['metrics']['top1']}" in actions[path]["description"]
    assert {"@id": path.replace("metrics.json", "predictions.csv")} in actions[path]["result"]


def test_a_changed_record_is_refused_and_elsewhere_there_is_no_crate(tmp_path, monkeypatch, capsys):
    shutil.copy("CITATION.cff", tmp_path)
    shutil.copytree("results/digits/teachers", tmp_path / "results/digits/teachers")
    shutil.copy("README.md", tmp_path)
    monkeypatch.chdir(tmp_path)
    assert main(["crate"]) == 0 and json.loads(Path("ro-crate-metadata.json").read_text())["@graph"]
    path = Path("results/digits/teachers/main.json")
    record.write(path, record.read(path))  # the committed one is from before records held their own sha256
    path.write_text(path.read_text().replace('"top1"', '"top 1"'))
    assert main(["crate"]) == 2 and "teachers/main.json: changed" in capsys.readouterr().err
    Path("CITATION.cff").unlink()
    with pytest.raises(InputError, match="in a clone"):
        crate.crate()


@pytest.mark.slow
def test_make_archive_puts_it_into_the_archive():
    commands = subprocess.run(["make", "-n", "archive"], capture_output=True, text=True, check=True).stdout
    assert "dearkd crate" in commands and "--add-file=build/archive/ro-crate-metadata.json HEAD" in commands
