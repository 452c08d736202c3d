"""Every example, and every Python block of the README and of the pages that promise runnable code, runs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).parents[1]
PAGES = [
    "README.md",
    *(f"docs/{name}.md" for name in ("quickstart", "library", "operators", "accelerate", "export", "hub")),
]
# What each example writes, with arguments that keep it small.
EXAMPLES = {
    "translate.py": (["--output", "out.png"], ["out.png"]),
    "train_folder.py": (
        ["data", "--iterations", "2", "--size", "64", "--dim", "4", "--output", "runs"],
        ["runs/outputs/example/index.html", "runs/outputs/example/checkpoints/gen_00000002.pt"],
    ),
    "finetune.py": (
        ["--output", "tuned", "--limit", "120", "--iterations", "2"],
        ["tuned/outputs/dark/index.html", "tuned/outputs/dark/checkpoints/gen_00000002.pt"],
    ),
    "own_loop.py": (["--steps", "2", "--dim", "4"], []),
    "fuse_cyclegan.py": (["--size", "32", "--channels", "4", "--blocks", "1"], []),
    "interpolate_styles.py": (["--styles", "2", "--steps", "2", "--output", "out.png"], ["out.png"]),
}


def test_every_example_is_listed() -> None:
    assert {path.name for path in (ROOT / "examples").glob("*.py")} == set(EXAMPLES)


@pytest.mark.slow
@pytest.mark.parametrize("name", EXAMPLES)
def test_example_runs(name: str, tmp_path: Path) -> None:
    arguments, written = EXAMPLES[name]
    for folder in ("trainA", "trainB", "testA", "testB"):
        (tmp_path / "data" / folder).mkdir(parents=True)
        noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
        for i in range(2):
            Image.fromarray(np.roll(noise, i, 0)).save(tmp_path / "data" / folder / f"{i}.png")
    _run([str(ROOT / "examples" / name), *arguments], tmp_path)
    assert all((tmp_path / file).stat().st_size > 0 for file in written)


def _blocks(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path) -> None:
    """As a script; the documentation shows its pictures."""
    notebook = json.loads((ROOT / "examples/quickstart.ipynb").read_text(encoding="utf-8"))
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert cells and not any(cell.get("outputs") for cell in notebook["cells"])
    _run(["-c", "\n".join(cells)], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_python_blocks_of_a_page_run(page: str, tmp_path: Path) -> None:
    """One after the other, as a reader would type them."""
    blocks = _blocks(page)
    assert blocks
    _run(["-c", "\n".join(blocks)], tmp_path)


def test_upstream_scripts_run_on_torch_alone(tmp_path: Path) -> None:
    scripts = sorted((ROOT / "docs/upstream").glob("*.py"))
    assert scripts
    for script in scripts:
        assert "munit_fast" not in script.read_text(encoding="utf-8")
        assert torch.__version__ in _run([str(script)], tmp_path)


def _run(command: list[str], folder: Path) -> str:
    result = subprocess.run([sys.executable, *command], cwd=folder, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, f"{command[0]}\n{result.stdout}\n{result.stderr}"
    return result.stdout
