"""Where things live: few entries, and imports that point down only."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# From the bottom up: a package imports from those below it, and from itself.
LAYERS = (
    ("utils", "kernels"),
    ("io",),
    ("config", "reference"),
    ("ops",),
    ("amp", "data", "functional"),
    ("nn",),
    ("models", "accelerate", "doctor"),
    ("export", "pages", "tiles"),
    ("evaluate",),
    ("train",),
    ("translate",),
    ("benchmarks",),
    ("app", "demo"),
    ("cli",),
)
LAYER = {name: i for i, names in enumerate(LAYERS) for name in names}
FACADES = {"__init__", "__main__"}  # what users import from: everything, lazily
MOST_ENTRIES = 24


def sources() -> Iterator[tuple[str, Path]]:
    """Every module of the package with the dotted name that it is imported under."""
    for top, name in (
        ("munit_fast", "munit_fast"),
        ("kernels", "munit_fast.kernels"),
        ("benchmarks", "munit_fast.benchmarks"),
    ):
        for path in sorted((ROOT / top).rglob("*.py")):
            parts = path.relative_to(ROOT / top).with_suffix("").parts
            if parts[0] in ("scripts", "results"):  # stand-alone
                continue
            yield ".".join([name, *(part for part in parts if part != "__init__")]), path


MODULES = dict(sources())


def imports(name: str, path: Path, *, running: bool) -> Iterator[str]:
    """The modules of munit_fast that a module imports; running: only those that it imports when it is imported."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    package = name if path.stem == "__init__" else name.rpartition(".")[0]
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
        or (running and isinstance(node, (ast.FunctionDef, ast.Lambda)))
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.partition(".")[0] == "munit_fast")
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join(
                    [*package.split(".")[: len(package.split(".")) - node.level + 1], *base.split(".")]
                ).strip(".")
            if base.partition(".")[0] == "munit_fast":
                for alias in node.names:
                    whole = f"{base}.{alias.name}"
                    yield whole if whole in MODULES else base


def box(module: str) -> str:
    """The entry of munit_fast/ that a module belongs to."""
    return module.split(".")[1] if "." in module else "__init__"


def test_the_package_is_small_enough_to_look_at() -> None:
    tracked = subprocess.run(["git", "ls-files", "munit_fast"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("not a checkout")
    entries = {line.split("/")[1] for line in tracked.stdout.splitlines()}
    assert len(entries) <= MOST_ENTRIES, sorted(entries)
    assert {Path(entry).stem for entry in entries} - FACADES - {"py"} <= set(LAYER)


@pytest.mark.parametrize("name", [name for name in MODULES if box(name) not in FACADES])
def test_imports_point_down(name: str) -> None:
    up = {
        other
        for other in imports(name, MODULES[name], running=False)
        if box(other) != box(name) and (box(other) in FACADES or LAYER[box(other)] >= LAYER[box(name)])
    }
    assert not up


def test_no_module_imports_itself_by_a_detour() -> None:
    graph = {
        name: {other for other in imports(name, path, running=True) if other in MODULES and other != name}
        for name, path in MODULES.items()
        if name != "munit_fast"
    }
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, " -> ".join([*above[above.index(name) :], name])
        if name in done or name not in graph:
            return
        for other in sorted(graph[name]):
            visit(other, (*above, name))
        done.add(name)

    for name in graph:
        visit(name, ())
