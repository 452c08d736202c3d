"""Make `import munit_fast` work from a checkout, on a machine where it is not installed and there is no network."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PLACE = ROOT / "build" / "checkout"  # the packages as an installation would lay them out, in links
BROUGHT = ROOT / "build" / "wheels"
WHEELS = ROOT / "wheels"

# By the name they are imported under. What `make gpu-wheels` brings, and what must come with the machine.
FROM_WHEELS = (
    "pydantic",
    "typer",
    "rich",
    "jinja2",
    "filelock",
    "pytest",
    "pytest_timeout",
    "hypothesis",
    "yaml",
    "PIL",
    "safetensors",
)
FROM_MACHINE = ("torch", "triton", "numpy", "ninja", "pybind11", "setuptools")


def prepare() -> list[str]:
    """Folders for the front of the path, of children too. Exits with what to do if something is missing."""
    _bring(_absent(FROM_WHEELS))
    if absent := _absent(FROM_WHEELS):
        sys.exit(
            f"missing here: {', '.join(absent)}; run `make gpu-wheels` where there is a network, for this Python "
            f"({sys.version_info[0]}.{sys.version_info[1]}), and bring the folder wheels/ along"
        )
    if absent := _absent(FROM_MACHINE):
        sys.exit(f"missing here: {', '.join(absent)}; use the Python that has them: make GPU_PYTHON=/path/to/python3 …")
    place()
    sys.path.insert(0, str(PLACE))
    return [str(PLACE), str(BROUGHT)]


def _absent(names: tuple[str, ...]) -> list[str]:
    importlib.invalidate_caches()
    return [name for name in names if importlib.util.find_spec(name) is None]


def _bring(absent: list[str]) -> None:
    """Unpack what of wheels/ is not installed here; what is stays as it is."""
    if not absent or not WHEELS.is_dir():
        return
    wheels = [path for path in sorted(WHEELS.glob("*.whl")) if not _installed(path.name.split("-")[0])]
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--upgrade"]
    done = subprocess.run([*pip, "--target", str(BROUGHT), *map(str, wheels)], check=False)
    if done.returncode:
        print(f"pip could not unpack {WHEELS}: are the wheels for another Python?", file=sys.stderr)
    sys.path.append(str(BROUGHT))


def _installed(distribution: str) -> bool:
    try:
        importlib.metadata.version(re.sub(r"[-_.]+", "-", distribution))
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def place() -> None:
    """Lay out `munit_fast` with its `kernels` and `benchmarks` in links, what was compiled in place included."""
    package = PLACE / "munit_fast"
    package.mkdir(parents=True, exist_ok=True)
    wanted = {path.name: path for path in (ROOT / "munit_fast").iterdir() if path.name != "__pycache__"}
    wanted |= {name: ROOT / name for name in ("benchmarks", "kernels")}
    for link in package.iterdir():
        if link.is_symlink():
            link.unlink()
    for name, source in wanted.items():
        if not (package / name).exists():
            (package / name).symlink_to(source)


if __name__ == "__main__":
    place()
