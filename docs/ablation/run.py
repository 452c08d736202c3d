"""Train one option after the other on OpenMoji's lines and colours, and measure each run on held-out pairs.

    munit-fast prepare openmoji datasets/openmoji-64-val --size 64 --validation 0.1
    python docs/ablation/run.py datasets/openmoji-64-val --iterations 2000 --seeds 0 --jobs 2
    python docs/ablation/run.py datasets/openmoji-64-val --minutes 20 --seeds 0 1 2 --only base chosen

Every run is appended to results.jsonl, and one that is there already is left out: an interrupted call goes on. A run
has one thread, so that two at a time do not take each other's. The pairs are the validation's, not the test's.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import yaml

from munit_fast.config import make_config
from munit_fast.evaluate import EvaluateOptions, evaluate_model, open_test_set
from munit_fast.evaluate.metrics.evaluation import TO_COLOUR, TO_LINES
from munit_fast.models.munit import MUNIT
from munit_fast.train import TrainOptions, train
from munit_fast.utils.version import __version__

HERE = Path(__file__).parent
# Small networks that a core trains in minutes; the learning rate falls half way.
BASE: dict[str, Any] = {
    "batch_size": 2,
    "lr": 0.0007,
    "lr_policy": "step",
    "gamma": 0.5,
    "recon_x_cyc_w": 0,
    "ema_half_life": 1000,
    "gen": {"dim": 16, "mlp_dim": 64, "style_dim": 8, "n_downsample": 1, "n_res": 4},
    "dis": {"dim": 64, "n_layer": 3, "num_scales": 1},
    "new_size": 64,
    "crop_image_height": 64,
    "crop_image_width": 64,
    "num_workers": 0,
    "display_size": 4,
    "log_iter": 20,
}
# Each option alone, with the values of its paper where there are some. The keys are those of the configuration.
OPTIONS: dict[str, dict[str, Any]] = {
    "base": {},
    "DiffAugment": {"diffaugment": ["color", "translation", "cutout"]},
    "DiffAugment, translation and cutout": {"diffaugment": ["translation", "cutout"]},
    "shift and scale": {"shift_a": 0.1, "shift_b": 0.1, "scale_a": 0.1, "scale_b": 0.1},
    "mode seeking": {"mode_seeking_w": 0.1},
    "hinge": {"dis.gan_type": "hinge"},
    "two rates": {"lr_gen": 0.0004, "lr_dis": 0.0014},
    "spectral norm, discriminators": {"dis.weight_norm": "spectral"},
    "spectral norm, both": {"dis.weight_norm": "spectral", "gen.weight_norm": "spectral"},
    "R1": {"r1_w": 1.0},
    "diversity": {"diversity_w": 0.5},
    "feature matching": {"feature_matching_w": 1.0},
    "residual discriminator": {"dis.arch": "residual", "dis.n_layer": 4},
    "adaptive augmentation": {"ada_target": 0.6, "ada_images": 10000},
    "no flips": {"flip_a": "none", "flip_b": "none"},
    "colour jitter": {"color_jitter_b": 0.2},
    "base, rate 0.0004": {"lr": 0.0004},
    "base, rate 0.001": {"lr": 0.001},
    "shift and scale, rate 0.001": {"lr": 0.001, "shift_a": 0.1, "shift_b": 0.1, "scale_a": 0.1, "scale_b": 0.1},
}
SPLITS = (("train", "train"), ("test", "val"))  # of the configuration -> of the data set


def configuration(option: Mapping[str, Any], data: Path, iterations: int) -> dict[str, Any]:
    """The keys of one run: the base with an option's, whose keys are whole ("dis.arch")."""
    made: dict[str, Any] = {**BASE, "gen": dict(BASE["gen"]), "dis": dict(BASE["dis"])}
    for key, value in option.items():
        section, _, name = key.rpartition(".")
        (made[section] if section else made)[name] = value
    never = 10 * iterations
    folders = {f"data_folder_{kind}_{d}": str(data / f"{folder}{d.upper()}") for d in "ab" for kind, folder in SPLITS}
    return (
        made
        | folders
        | {
            "max_iter": iterations,
            "step_size": max(1, iterations // 2),
            "image_save_iter": never,
            "image_display_iter": never,
            "snapshot_save_iter": never,
        }
    )


def run(name: str, option: Mapping[str, Any], data: Path, seed: int, iterations: int, minutes: float) -> dict[str, Any]:
    """Train and measure; the row of results.jsonl."""
    torch.set_num_threads(1)
    keys = configuration(option, data, iterations)
    cfg = make_config(keys, source=name)
    with tempfile.TemporaryDirectory() as folder:
        limit = 60 * minutes if minutes else None
        options = TrainOptions("run", Path(folder), seed=seed, time_limit=limit, threads=1, amp="off")
        result = train(cfg, options, config_text=yaml.safe_dump(keys))
        newest = max(result.folder.checkpoints.glob("gen_*.pt"))
        model = MUNIT(cfg).load(newest).eval()
    named = {"b2a": TO_LINES, "a2b": TO_COLOUR}
    found = evaluate_model(model, open_test_set(cfg), EvaluateOptions(num_style=6, also=(), named=named))
    rows = {entry.key: entry for entry in found.entries}
    return {
        "option": name,
        "keys": dict(option),
        "seed": seed,
        "iterations": result.iterations,
        "minutes": minutes or None,
        "seconds": round(result.seconds, 1),
        "version": __version__,
        "torch": torch.__version__,
        "metrics": {key: row.value for key, row in rows.items()},
        "errors": {key: row.stderr for key, row in rows.items() if row.stderr is not None},
        "ceilings": {key: row.ceiling for key, row in rows.items() if row.ceiling is not None},
    }


def commit() -> str:
    """The commit that is run, "" outside of a repository."""
    asked = ["git", "-C", str(HERE), "rev-parse", "--short", "HEAD"]
    return subprocess.run(asked, stdout=subprocess.PIPE, text=True, check=False).stdout.strip()


def done(results: Path) -> set[tuple[str, int, int | None, float | None]]:
    """What there are rows of: option, seed, and the iterations or the minutes that were asked for."""
    rows = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    return {(row["option"], row["seed"], row["asked"], row["minutes"]) for row in rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--iterations", type=int, default=2000, help="of a run; with --minutes the most")
    parser.add_argument("--minutes", type=float, default=0, help="train for a time")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", nargs="+", choices=list(OPTIONS), default=list(OPTIONS))
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, a thread each")
    parser.add_argument("--results", type=Path, default=HERE / "results.jsonl")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)  # prints the row of the only run
    given = parser.parse_args()
    if given.one:
        row = run(given.only[0], OPTIONS[given.only[0]], given.data, given.seeds[0], given.iterations, given.minutes)
        print(json.dumps(row))
        return
    asked = (None, given.minutes) if given.minutes else (given.iterations, None)
    wanted = [(name, seed) for seed in given.seeds for name in given.only]
    wanted = [pair for pair in wanted if (*pair, *asked) not in done(given.results)]

    def start(pair: tuple[str, int]) -> None:
        name, seed = pair
        length = ["--iterations", str(given.iterations), "--minutes", str(given.minutes)]
        command = [sys.executable, __file__, str(given.data), *length, "--only", name, "--seeds", str(seed), "--one"]
        output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        row = json.loads(output.splitlines()[-1]) | {"asked": asked[0], "commit": commit()}
        with given.results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(name, seed, row["iterations"], f"KID {row['metrics']['lines_to_colour.kid_e3']:.1f}", flush=True)

    with ThreadPoolExecutor(given.jobs) as jobs:
        list(jobs.map(start, wanted))


if __name__ == "__main__":
    main()
