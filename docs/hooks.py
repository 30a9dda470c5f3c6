"""mkdocs pages from outside docs/: README, CONTRIBUTING and CHANGELOG, a reference page for each module, and every file
of the repository that a page links to. So each link works on GitHub and on the site, and no text exists twice.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File

PAGES = {"index.md": "README.md", "contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}
LINK = re.compile(r"(\]\()([^)#\s]+)")
SPREAD = re.compile(r"(\d) ± (\d)")
SHOWN = {".py": "python", ".yaml": "yaml", ".cff": "yaml"}
"""Files that become a page with their text."""


def on_files(files, config):
    """Add the pages that are not in docs/ and, page by page, the files that they link to."""
    modules = [p.with_suffix("").parts[1:] for p in Path("dearkd").rglob("*.py") if p.stem != "__init__"]
    modules = sorted(".".join(parts) for parts in modules)
    index = "# Reference\n\nFrom the docstrings, a page for each module.\n\n"
    for name in modules:
        _add(files, config, f"reference/{name}.md", f"# dearkd.{name}\n\n::: dearkd.{name}\n")
        first = Path(f"dearkd/{name.replace('.', '/')}.py").read_text().split('"""')[1].strip().split("\n\n")[0]
        index += f"- [`dearkd.{name}`]({name}.md): {' '.join(first.split())}\n"
    _add(files, config, "reference/index.md", index)
    for page, source in PAGES.items():
        _add(files, config, page, Path(source).read_text())
    waiting = [page for page in files.documentation_pages() if not page.src_uri.startswith("reference/")]
    while waiting:
        page = waiting.pop()
        for _, target in LINK.findall(page.content_string):
            path = Path(posixpath.normpath(posixpath.join(_folder(page.src_uri), target)))
            uri = _uri(path)
            if path.exists() and uri not in files.src_uris:
                waiting += _add_linked(files, config, uri, path)
    return files


def on_page_markdown(markdown, page, config, files):
    """Lead links to files of the repository to where the site has them."""
    here = page.file.src_uri

    def moved(match):
        path = Path(posixpath.normpath(posixpath.join(_folder(here), match[2])))
        if match[2].startswith("http") or here.startswith("reference/") or not path.exists():
            return match[0]
        return match[1] + posixpath.relpath(_uri(path), posixpath.dirname(here) or ".")

    return LINK.sub(moved, markdown)


def on_page_content(html, page, config, files):
    """Keep a mean and its standard deviation in one line of a narrow column."""
    return SPREAD.sub("\\1\u00a0±\u00a0\\2", html)


def _folder(uri: str) -> str:
    """Folder of the repository against which the links of a page are written."""
    if uri in PAGES:
        return "."
    if uri.startswith("files/"):
        return posixpath.dirname(uri.removeprefix("files/"))
    return posixpath.dirname(f"docs/{uri}")


def _uri(path: Path) -> str:
    """Where the site has a file or folder of the repository."""
    for page, source in PAGES.items():
        if path.as_posix() == source:
            return page
    if path.parts[0] == "docs":
        return path.relative_to("docs").as_posix()
    if path.parts[0] == "dearkd" and path.suffix == ".py":
        return f"reference/{'.'.join(path.with_suffix('').parts[1:])}.md"
    if path.is_dir():
        return f"files/{path.as_posix()}/index.md"
    return f"files/{path.as_posix()}{'.md' if path.suffix in SHOWN else ''}"


def _add(files, config, uri, content):
    file = File.generated(config, uri, content=content)
    files.append(file)
    return file


def _add_linked(files, config, uri, path):
    """The pages among what was added: a listing of a folder, a text, or a Markdown file of the repository."""
    if path.is_dir():
        inside = sorted(p for p in path.iterdir() if p.is_file() and not p.name.startswith("."))
        lines = [f"# {path.as_posix()}\n", *(f"- [{p.name}]({p.name})" for p in inside)]
        return [_add(files, config, uri, "\n".join(lines))]
    if path.suffix in SHOWN:
        _add(files, config, uri, f"# {path.as_posix()}\n\n````{SHOWN[path.suffix]}\n{path.read_text()}````\n")
        return []
    if path.suffix == ".md":
        text = path.read_text()
        return [_add(files, config, uri, text if text.startswith("# ") else f"# {path.as_posix()}\n\n{text}")]
    files.append(File.generated(config, uri, abs_src_path=str(path.resolve())))
    return []
