"""The layout of the package: a library, a workbench on top of it, and imports that only go down."""

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src/shuffle_attention"
MOST_ENTRIES = 12
# From the ground up. A file imports only from its own floor and from lower ones; CONTRIBUTING shows the same table.
LIBRARY = [
    {"errors", "files"},
    {"kernels"},
    {"attention"},
    {"attach", "checkpoints", "models"},
    {"deploy", "explain"},
]
WORKBENCH = [
    {"charts", "console", "device", "environment", "recipes", "statistics", "timing"},
    {"data"},
    {"compare", "explain", "network", "profile", "report", "tasks", "training"},
    {"demo"},
    {"commands", "parser"},
    {"cli"},
]
FLOORS = {room: number for number, rooms in enumerate(LIBRARY) for room in rooms}
FLOORS["__init__"] = len(LIBRARY) - 1  # the public names are those of the library
FLOORS["sanet.__init__"] = len(LIBRARY)
FLOORS |= {f"sanet.{room}": number for number, rooms in enumerate(WORKBENCH, len(LIBRARY)) for room in rooms}


def room_of(parts: tuple[str, ...]) -> str:
    """Return the room of a module below the package: its first part, in the workbench its first two."""
    return ".".join(parts[: 2 if parts[0] == "sanet" else 1])


def imports(path: Path) -> Iterator[tuple[str, ...]]:
    """Yield the modules below the package that a file imports, as tuples of their parts."""
    here = (PACKAGE.name, *path.relative_to(PACKAGE).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules = [tuple(name.name.split(".")) for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) + 1 - node.level] if node.level else ()
            base += tuple(node.module.split(".")) if node.module else ()
            modules = [(*base, name.name) for name in node.names]
        else:
            continue
        yield from (module[1:] for module in modules if module[0] == PACKAGE.name and len(module) > 1)


FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__main__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_imports_only_from_its_own_floor_and_lower_ones(path):
    floor = FLOORS[room_of(path.relative_to(PACKAGE).with_suffix("").parts)]
    above = {".".join(module) for module in imports(path) if FLOORS.get(room_of(module), -1) > floor}
    assert not above, f"{path.relative_to(PACKAGE)} imports from a higher floor: {', '.join(sorted(above))}"


def test_the_top_folder_has_few_entries():
    entries = sorted(path.name for path in PACKAGE.iterdir() if path.name not in ("py.typed", "__pycache__"))
    assert len(entries) <= MOST_ENTRIES, entries


def test_the_changelog_names_each_change_once():
    """Merges of two branches leave entries twice, or the marks of a conflict."""
    text = (PACKAGE.parents[1] / "CHANGELOG.md").read_text()
    assert not re.findall(r"^(?:<{7}|={7}|>{7}).*", text, re.MULTILINE)
    entries = re.findall(r"^- .*(?:\n  .*)*", text.partition("\n## 0.")[0], re.MULTILINE)
    assert len(entries) > 10
    assert not [entry for entry, count in Counter(entries).items() if count > 1]
