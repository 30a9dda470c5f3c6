"""Files of the workflow and the paper: those in the working folder (a clone, a study), else those of the package."""

from pathlib import Path

SHIPPED = Path(__file__).with_name("shipped")
"""Links to folders of the repository; an installed package has copies in their place."""


def shipped(name: str | Path) -> Path:
    """`name` below the working folder if it is there, else the file or folder that came with the package."""
    own = Path(name)
    return own if own.exists() or own.is_absolute() or not (SHIPPED / own).exists() else SHIPPED / own


def all_shipped(folder: Path, pattern: str) -> list[Path]:
    """The files of a shipped folder, sorted by name; one in the working folder replaces one of the same name."""
    found = {path.name: path for place in (SHIPPED / folder, folder) for path in place.glob(pattern)}
    return [found[name] for name in sorted(found)]
