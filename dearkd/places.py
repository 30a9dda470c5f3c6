"""Places of files: in the working folder (a clone, a study) or else in the package, and how names become paths."""

import hashlib
import re
import shlex
from pathlib import Path

SHIPPED = Path(__file__).with_name("shipped")
"""Links to folders of the repository; an installed package has copies in their place."""


def shipped(name: str | Path) -> Path:
    """`name` below the working folder if it is there, else the file or folder that came with the package."""
    own = Path(name)
    return own if own.exists() or own.is_absolute() or not (SHIPPED / own).exists() else SHIPPED / own


def snakemake() -> str:
    """`snakemake -c2`, with the package's Snakefile where the working folder, not a clone or a study, has none."""
    here = any(Path(place).is_file() for place in ("Snakefile", "workflow/Snakefile"))
    return "snakemake -c2" if here else f"snakemake -c2 -s {shlex.quote(str(SHIPPED / 'Snakefile'))}"


def all_shipped(folder: Path, pattern: str) -> list[Path]:
    """The files of a shipped folder, sorted by name; one in the working folder replaces one of the same name."""
    found = {path.name: path for place in (SHIPPED / folder, folder) for path in place.glob(pattern)}
    return [found[name] for name in sorted(found)]


def home(path: str) -> str:
    """`path` with ~ as the home folder; of a user who is not known it stays as it is."""
    try:
        return str(Path(path).expanduser()) if path.startswith("~") else path
    except RuntimeError:
        return path


def slug(text: str) -> str:
    """A text as part of a path: as it is where it can be, else folded, with a hash so that no two texts get one."""
    folded = re.sub(r"[^A-Za-z0-9._-]+", "_", text.strip())
    if folded == text and len(folded) <= 80 and not folded.startswith((".", "-")):
        return folded
    return f"{folded[:60].lstrip('.-')}~{hashlib.sha256(text.encode()).hexdigest()[:6]}"
