"""Fine-tune the bundled model on 50 pictures of each domain: ten minutes on two cores.

    python examples/finetune.py [--output finetune] [--minutes 10]

The bundled model colours line drawings on white paper. Here it learns a dark theme: the coloured pictures have their
lightness inverted, while hues stay. The drawings are OpenMoji's, which `munit-fast prepare openmoji` renders.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from munit_fast import MUNIT
from munit_fast.config import Config, make_config
from munit_fast.data import prepare_openmoji
from munit_fast.train import TrainOptions, TrainResult, train

MODEL = "openmoji-lines2color"
PICTURES = 50  # of each domain to train with


def dark(path: Path) -> Image.Image:
    """A picture with its lightness inverted, as HSL has it: white becomes black, and hues stay."""
    levels = np.asarray(Image.open(path).convert("RGB"), dtype=np.int16)
    turned = 255 - levels.max(2, keepdims=True) - levels.min(2, keepdims=True) + levels
    return Image.fromarray(turned.astype(np.uint8))


def prepare(folder: Path, size: int, limit: int | None = None) -> Path:
    """Make trainA and trainB with 50 pictures each, and all test pairs, below folder/data; the folder of them."""
    source, data = folder / f"openmoji-{size}", folder / "data"
    prepare_openmoji(source, size=size, limit=limit)
    for split in ("trainA", "trainB", "testA", "testB"):
        (data / split).mkdir(parents=True, exist_ok=True)
        paths = sorted((source / split).glob("*.png"))
        if split.startswith("train"):
            paths = paths[:: max(1, len(paths) // PICTURES)][:PICTURES]  # evenly spaced, not chosen by their looks
        for path in paths:
            picture = dark(path) if split.endswith("B") else Image.open(path)
            picture.save(data / split / path.name)
    return data


def config(data: Path, iterations: int) -> Config:
    """The networks of the bundled model, and a short training of them."""
    of_unit = {"recon_kl_w", "recon_kl_cyc_w"}
    networks = MUNIT.from_pretrained(MODEL).config.model_dump(exclude_none=True, exclude=of_unit)
    return make_config(
        networks
        | {
            "data_root": str(data),
            "max_iter": iterations,
            "lr": 0.0002,
            "step_size": 1000,
            "image_display_iter": 250,
            "image_save_iter": 1000,
            "snapshot_save_iter": 1000,
        }
    )


def fine_tune(cfg: Config, output: Path, name: str, minutes: float | None, init_from: str | None) -> TrainResult:
    """Train, from the model or from random weights."""
    seconds = None if minutes is None else 60 * minutes
    options = TrainOptions(name, output, init_from=init_from, time_limit=seconds, threads=0, auto_resume=True)
    return train(cfg, options, config_text=yaml.safe_dump(cfg.model_dump(exclude_none=True)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("finetune"), help="where data and run go")
    parser.add_argument("--minutes", type=float, default=10, help="train for so long at most")
    parser.add_argument("--iterations", type=int, default=2000)
    parser.add_argument("--limit", type=int, help="look at so many drawings only, for a trial")
    options = parser.parse_args()
    size = MUNIT.from_pretrained(MODEL).config.crop_image_height
    data = prepare(options.output, size, options.limit)
    cfg = config(data, options.iterations)
    result = fine_tune(cfg, options.output, "dark", options.minutes, MODEL)
    print(f"{result.iterations} iterations in {result.seconds / 60:.1f} minutes: {result.folder.root}/index.html")


if __name__ == "__main__":
    main()
