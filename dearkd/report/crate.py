"""One RO-Crate 1.1 of all records: what was made, by which command, when, and on which machine."""

import json
import mimetypes
from pathlib import Path
from typing import Any

from dearkd import disk, record, strict_yaml
from dearkd.errors import InputError

FILE = "ro-crate-metadata.json"
CONTEXT = "https://w3id.org/ro/crate/1.1/context"
VERSION = "https://w3id.org/ro/crate/1.1"
SHOWN = ("results/*/tables/*", "results/*/claims.*", "results/*/savings.md", "figures/*/*.*", "paper/*.csv")
"""Files beside the records that the crate describes."""
PYTHON = {"@id": "#python", "@type": "ComputerLanguage", "name": "Python", "url": "https://www.python.org"}
SNAKEMAKE = {
    "@id": "#snakemake",
    "@type": "ComputerLanguage",
    "name": "Snakemake",
    "url": "https://snakemake.github.io",
}
BESIDE = {"metrics": ("predictions.csv",), "diversity": ("latents.csv", "sample.png")}
Entity = dict[str, Any]


def write(out: Path) -> Path:
    """Write the crate of the working folder, a clone or an unpacked archive; the same bytes from the same files.

    Raises InputError for a record that is not whole, a file that is not the one of its record, and where there is none.
    """
    disk.write(out, json.dumps(crate(), indent=1, ensure_ascii=False) + "\n")
    return out


def crate() -> Entity:
    """The crate as JSON-LD: flat, each entity once, in a fixed order."""
    paths = sorted(Path("results").glob("*/**/*.json"))
    if not paths or not Path("CITATION.cff").is_file():
        raise InputError("crate: run it in a clone or an unpacked archive; here are no results and no CITATION.cff")
    records = {path: record.read(path) for path in paths}
    shown = [p for pattern in SHOWN for p in sorted(Path().glob(pattern)) if p.is_file()]
    beside = [made for p, values in records.items() for made in _made(p, values)]
    files = dict.fromkeys([Path("CITATION.cff"), Path("README.md"), *shown, *paths, *beside])
    actions = [_action(path, values) for path, values in records.items()]
    written = max(action["endTime"] for action in actions)
    about = {
        "@id": FILE,
        "@type": "CreativeWork",
        "conformsTo": {"@id": VERSION},
        "about": {"@id": "./"},
    }
    workflow = {
        "@id": "Snakefile",
        "@type": ["File", "SoftwareSourceCode", "ComputationalWorkflow"],
        "name": "the workflow: every table and figure from the data",
        "programmingLanguage": {"@id": SNAKEMAKE["@id"]},
    }
    program = {
        "@id": "dearkd/",
        "@type": ["Dataset", "SoftwareApplication"],
        "name": "the package dearkd: every job of the workflow",
        "programmingLanguage": {"@id": PYTHON["@id"]},
    }
    root, cited = _root(written)
    root["hasPart"] = [{"@id": e} for e in ("Snakefile", "dearkd/", *(path.as_posix() for path in files))]
    root["mentions"] = [{"@id": action["@id"]} for action in actions]
    entities = [about, root, workflow, program, PYTHON, SNAKEMAKE, *cited, *map(_file, files), *actions]
    return {"@context": CONTEXT, "@graph": entities}


def _root(written: str) -> tuple[Entity, list[Entity]]:
    """The data set as a whole, from CITATION.cff, and the entities it refers to: the paper and people."""
    citation = strict_yaml.read(Path("CITATION.cff"))
    paper = citation["preferred-citation"]
    people = [
        {"@id": f"#{i}-{kind}", "@type": "Person" if "family-names" in who else "Organization", "name": _name(who)}
        for kind, listed in (("artifact", citation["authors"]), ("paper", paper["authors"]))
        for i, who in enumerate(listed, 1)
    ]
    ours = [{"@id": person["@id"]} for person in people if person["@id"].endswith("-artifact")]
    theirs = [{"@id": person["@id"]} for person in people if person["@id"].endswith("-paper")]
    article = {
        "@id": f"https://doi.org/{paper['doi']}",
        "@type": "ScholarlyArticle",
        "name": paper["title"],
        "author": theirs,
        "datePublished": str(paper["year"]),
    }
    licence = {"@id": "https://spdx.org/licenses/Apache-2.0", "@type": "CreativeWork", "name": citation["license"]}
    root = {
        "@id": "./",
        "@type": "Dataset",
        "name": citation["title"],
        "description": citation["abstract"],
        "version": str(citation["version"]),
        "datePublished": written,
        "license": {"@id": licence["@id"]},
        "author": ours,
        "citation": {"@id": article["@id"]},
        "mainEntity": {"@id": "Snakefile"},
    }
    return root, [article, licence, *people]


def _name(who: dict[str, str]) -> str:
    return who.get("name") or f"{who['given-names']} {who['family-names']}"


def _file(path: Path) -> Entity:
    kind = {".md": "text/markdown", ".cff": "application/yaml"}.get(path.suffix) or mimetypes.guess_type(path.name)[0]
    return {
        "@id": path.as_posix(),
        "@type": "File",
        "name": path.name,
        "encodingFormat": kind or "application/octet-stream",
        "contentSize": str(path.stat().st_size),
        "sha256": disk.sha256(path),
    }


def _made(path: Path, values: dict[str, Any]) -> list[Path]:
    """The files beside a record that were made with it; the first records do not name them."""
    names = values.get("files") or [*BESIDE.get(path.stem, ()), *(p.name for p in path.parent.glob(f"{path.stem}.*"))]
    return sorted(file for file in {path.with_name(name) for name in names} - {path} if file.is_file())


def _action(path: Path, values: dict[str, Any]) -> Entity:
    """The job that made a record and the files beside it."""
    with record.whole(path):
        machine = values["hardware"]
        facts = {"device": machine["device"], "processor": machine["cpu"], "commit": values["git"]["sha"]}
        facts |= {name: version for name, version in values["versions"].items() if version}
        facts |= {key: value for key, value in values.get("metrics", {}).items() if isinstance(value, int | float)}
        return {
            "@id": f"#{path.as_posix()}",
            "@type": "CreateAction",
            "name": values["command"],
            "description": ", ".join(f"{key} {value}" for key, value in facts.items()),
            "endTime": values["written"],
            "instrument": {"@id": "dearkd/"},
            "result": [{"@id": p.as_posix()} for p in (path, *_made(path, values))],
        }
