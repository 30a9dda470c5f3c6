"""Strict reading of a YAML file: UTF-8, no key twice, no alias to itself, a limit on expanded aliases."""

import re
from pathlib import Path
from typing import Any

import yaml

from dearkd.errors import InputError

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""libyaml's loader if there is one: each job reads the matrix, in 20 ms instead of 200 with Python's own parser."""
LARGEST_FILE, LARGEST_TREE, DEEPEST = 10_000_000, 1_000_000, 50
"""Limits of a file: bytes, values with all aliases expanded, depth. Our files have a thousandth of that."""
TAB = re.compile(r" *\t")
MISREAD = (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError)
"""Errors of yaml that are not YAMLError: for `!!int x`, `!!bool x`, a number of 5,000 digits, a thousand brackets."""


def read(path: Path) -> dict[Any, Any]:
    """The mapping in a YAML file.

    Raises InputError naming the file, and where it can the line, when it is missing, no UTF-8, no YAML, or no mapping;
    when it has a key twice, contains itself, or exceeds the limits above.
    """
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise InputError(f"{path}: {path.stat().st_size:,} bytes are too many for a file of settings")
        loader = LOADER(path.read_bytes().decode("utf-8-sig"))
        node = loader.get_single_node()
        if node is not None:
            _measure(node, path, {}, ())
        values = None if node is None else loader.construct_document(node)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise InputError(f"{path}: line {line} is not UTF-8; save it as UTF-8") from None
    except yaml.YAMLError as error:
        if tabs := [i for i, line in enumerate(path.read_text("utf-8-sig").splitlines(), 1) if TAB.match(line)]:
            raise InputError(f"{path}: line {tabs[0]} is indented by a tab; indent by spaces") from None
        raise InputError(f"{path}: not valid YAML: {' '.join(str(error).split())[:300]}") from None
    except MISREAD as error:
        raise InputError(f"{path}: not valid YAML: {' '.join(str(error).split())[:300]}") from None
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected a mapping of keys")
    return values


def _measure(node: yaml.Node, path: Path, known: dict[int, int], above: tuple[int, ...]) -> int:
    """Number of values of a node with its aliases expanded. Raises InputError if it must not be read."""
    if id(node) in known:
        return known[id(node)]
    line = f"{path}: line {node.start_mark.line + 1}"
    if id(node) in above:
        raise InputError(f"{line}: this value contains itself through an alias; write it out")
    if len(above) > DEEPEST:
        raise InputError(f"{line}: values are nested more than {DEEPEST} deep")
    children: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        seen: set[tuple[str, str]] = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if (key.tag, key.value) in seen:
                    raise InputError(
                        f"{path}: line {key.start_mark.line + 1}: the key {key.value!r} is there twice; keep one"
                    )
                seen.add((key.tag, key.value))
            children += (key, value)
    elif isinstance(node, yaml.SequenceNode):
        children = node.value
    size = 1 + sum(_measure(child, path, known, (*above, id(node))) for child in children)
    if size > LARGEST_TREE:
        raise InputError(f"{line}: more than {LARGEST_TREE:,} values when its aliases are written out")
    known[id(node)] = size
    return size
