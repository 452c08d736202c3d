"""Measure what fine-tuning on 50 pictures gives: the bundled model before and after, and the same from random weights.

    python docs/finetune/measure.py FOLDER --results docs/finetune

makes the pictures of examples/finetune.py in FOLDER, evaluates on the held-out pairs, trains twice, and writes
before.json, after.json and scratch.json as `munit-fast evaluate --json` does, runs.json (iterations, minutes, the
machine) and grid.png. KID compares with all coloured training pictures in the dark theme, not with the 50 only.
An interrupted training goes on when the command is given again.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from munit_fast import MUNIT
from munit_fast.config import Config, make_config
from munit_fast.data import make_grid, save_image
from munit_fast.evaluate import EvaluateOptions, evaluate_model, open_test_set, write_json
from munit_fast.evaluate.metrics.evaluation import TO_COLOUR, TO_LINES
from munit_fast.io.atomic import atomic_write_bytes

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))
from finetune import MODEL, config, dark, fine_tune, prepare

STYLES = 6
SHOWN = 8  # drawings of the grid


def all_colours(source: Path, folder: Path) -> Path:
    """Every coloured training picture in the dark theme."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted((source / "trainB").glob("*.png")):
        picture: Image.Image = dark(path)
        picture.save(folder / path.name)
    return folder


def evaluate(model: MUNIT, cfg: Config, path: Path) -> None:
    """Measure a model on the test pairs, and write the JSON file."""
    options = EvaluateOptions(num_style=STYLES, also=(), named={"a2b": TO_COLOUR, "b2a": TO_LINES})
    evaluation = evaluate_model(model.eval(), open_test_set(cfg), options)
    write_json(evaluation, path)
    for row in evaluation.entries:
        error = "" if row.stderr is None else f" ± {row.stderr:.3g}"
        print(f"{path.stem:8} {row.direction}: {row.name} {row.value:.4g}{error}", flush=True)


def write_grid(models: list[MUNIT], cfg: Config, path: Path) -> None:
    """A row for each of some drawings: it, two styles of every model, and the true picture."""
    pictures = open_test_set(cfg).pictures
    at = torch.linspace(0, len(pictures["a"]) - 1, SHOWN).long().tolist()
    styles = torch.randn(2, cfg.gen.style_dim, generator=torch.Generator().manual_seed(1))
    x = torch.stack([pictures["a"][i] for i in at])
    columns = [model.translate(x, "a2b", style=styles) for model in models]
    rows = [
        torch.stack([x[k].expand(3, -1, -1), *(image for of in columns for image in of[k]), pictures["b"][i]])
        for k, i in enumerate(at)
    ]
    save_image(make_grid(rows), path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="for data and runs")
    parser.add_argument("--results", type=Path, required=True, help="an existing folder for the numbers and the grid")
    parser.add_argument("--iterations", type=int, default=2000)
    parser.add_argument("--minutes", type=float, default=10.0, help="train for so long at most, each time")
    parser.add_argument("--limit", type=int, help="look at so many drawings only, for a trial")
    options = parser.parse_args()
    bundled = MUNIT.from_pretrained(MODEL)
    size = bundled.config.crop_image_height
    data = prepare(options.folder, size, options.limit)
    cfg = config(data, options.iterations)
    real = all_colours(options.folder / f"openmoji-{size}", options.folder / "realB")
    split = {f"data_folder_{kind}_{d}": str(data / f"{kind}{d.upper()}") for kind in ("train", "test") for d in "ab"}
    values = cfg.model_dump(exclude_none=True, exclude={"data_root"}) | split
    tests = make_config(values | {"data_folder_train_b": str(real)})
    models, runs = [bundled], dict[str, Any]()
    with torch.no_grad():
        evaluate(bundled, tests, options.results / "before.json")
    for name, source in (("after", MODEL), ("scratch", None)):
        result = fine_tune(cfg, options.folder, name, options.minutes, source)
        model = MUNIT(cfg).load(result.folder.checkpoints / f"gen_{result.iterations:08d}.pt")
        with torch.no_grad():
            evaluate(model, tests, options.results / f"{name}.json")
        models.append(model.eval())
        hours = json.loads((result.folder.root / "summary.json").read_text())["hours"]
        runs[name] = {"iterations": result.iterations, "minutes": round(60 * hours, 1), "torch": torch.__version__}
        runs[name] |= {"threads": torch.get_num_threads(), "loaded": model.loaded.name if model.loaded else None}
    with torch.no_grad():
        write_grid(models, tests, options.results / "grid.png")
    atomic_write_bytes(options.results / "runs.json", (json.dumps(runs, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
