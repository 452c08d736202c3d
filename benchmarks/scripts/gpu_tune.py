"""Measure the Triton kernels' tiles at the shapes of MUNIT's networks, and keep the best for each.

    make gpu-tune                          # on a machine with a GPU; writes kernels/tuned.json, or tuned.json in OUT
    python benchmarks/scripts/gpu_tune.py --smoke --output FILE  # tiny shapes, in Triton's interpreter

One kernel is varied at a time, the others keep what the tables or an earlier round chose. Every candidate is compared
with the tables' tile before it is timed; one that is wrong or does not compile is dropped and said. A candidate
replaces the tables' tile only if it is faster by more than the spread of both at batch 8, and not slower at batch 1.
The file is written after every problem, and a second call goes on where the first one stopped.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bare_checkout import prepare

if "--smoke" in sys.argv:  # decided before triton is imported
    os.environ["TRITON_INTERPRET"] = "1"
prepare()

import torch
from torch import Tensor

from munit_fast.benchmarks.timing import interleaved
from munit_fast.io.atomic import atomic_write_bytes
from munit_fast.kernels import configs
from munit_fast.ops.backends import triton
from munit_fast.ops.epilogue import empty_gradients, empty_result, empty_stats
from munit_fast.ops.spec import EpilogueGradients, EpilogueInputs, EpilogueSpec

# (channels, side, flags) of the epilogues of MUNIT's networks at 256².
SHAPES: list[tuple[int, int, dict[str, Any]]] = [
    (256, 64, {"norm": "instance", "act": "relu", "pad": 1}),
    (128, 128, {"norm": "instance", "act": "relu", "pad": 1}),
    (64, 256, {"norm": "instance", "act": "relu", "pad": 1}),
    (512, 64, {"norm": "layer", "act": "relu", "pad": 1, "block": 2}),
    (256, 128, {"norm": "layer", "act": "relu", "pad": 3, "block": 2}),
    (64, 128, {"norm": "none", "act": "lrelu", "pad": 1}),
    (128, 64, {"norm": "none", "act": "lrelu", "pad": 1}),
]
SMOKE_SHAPES = [(8, 4, SHAPES[0][2]), (8, 4, {"norm": "none", "act": "lrelu", "pad": 1})]
PLAIN = {"eps": 1e-5, "slope": 0.2, "block": 1, "pad_mode": "reflect"}


def candidates(tile: configs.TileConfig, smoke: bool) -> list[configs.TileConfig]:
    """Tiles around the one of the tables: the same number of channels or half or twice, and what a program repeats."""
    sizes = (1024, 2048, 4096) if not smoke else (tile.pixels * tile.channels,)
    channels = {tile.channels} if tile.channels == 1 else {max(tile.channels // 2, 4), tile.channels, tile.channels * 2}
    if smoke:
        channels = {tile.channels}
    found = [
        configs.TileConfig(max(size // c, 1), c, warps, tiles)
        for size in sizes
        for c in sorted(channels)
        for warps in ((2, 4, 8) if not smoke else (4,))
        for tiles in ((1, 2, 4, 8) if not smoke else (1, 2))
    ]
    return [t for t in found if t != tile]


@contextmanager
def using(key: tuple[str, int, int, int], tile: configs.TileConfig | None, device: torch.device) -> Iterator[None]:
    """Let the kernels on `device` take `tile` for the problem `key`."""
    tuned = configs.tuned(device)
    before = tuned.get(key)
    if tile is not None:
        tuned[key] = tile
    try:
        yield
    finally:
        tuned.pop(key, None)
        if before is not None:
            tuned[key] = before


@contextmanager
def keys_of(step: Any) -> Iterator[list[tuple[str, int, int, int]]]:
    """The problems that a step asks tiles for."""
    asked: list[tuple[str, int, int, int]] = []
    lookup = configs.tile

    def record(*key: Any) -> configs.TileConfig:
        asked.append(key[:4])  # without the device
        return lookup(*key)

    configs.tile = record  # type: ignore[assignment]
    try:
        step()
        yield list(dict.fromkeys(asked))
    finally:
        configs.tile = lookup


def steps(n: int, c: int, side: int, flags: dict[str, Any], dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """The forward and the backward of an epilogue, channels_last."""
    spec = EpilogueSpec(**(PLAIN | flags))
    random = torch.Generator(device).manual_seed(0)
    last = torch.channels_last

    def draw(*size: int) -> Tensor:
        return torch.randn(size, generator=random, device=device).to(dtype).contiguous(memory_format=last)

    x = draw(n, c, side, side)
    size = spec.output_size(x)
    weight = torch.randn(size[1], generator=random, device=device) if spec.norm == "layer" else None
    inputs, grad = EpilogueInputs(x, weight, None, None, None), draw(*size)

    def forward() -> tuple[Tensor, Tensor]:
        y, stats = empty_result(x, spec), empty_stats(x, spec)
        triton.epilogue_forward(spec, inputs, y, stats, has_stats=False)
        return y, stats

    _, stats = forward()

    def backward() -> tuple[Tensor, Tensor]:
        grad_x, _, sums = empty_gradients(x, spec, (True, False, True))
        triton.epilogue_backward(spec, inputs, grad, stats, EpilogueGradients(grad_x, None, sums))
        return grad_x, sums

    return {"forward": forward, "backward": backward}


def close(a: Any, b: Any) -> bool:
    pairs = [(s, t) for s, t in zip(a, b) if isinstance(s, Tensor) and s.numel()]
    return all(float((s.float() - t.float()).norm() / t.float().norm().clamp_min(1e-20)) < 2e-2 for s, t in pairs)


def tune(
    at_8: Any, at_1: Any, key: tuple[str, int, int, int], device: torch.device, smoke: bool
) -> tuple[Any, float] | None:
    """The best tile for a problem and how much faster it makes the step; None where the tables' stays."""
    standing = configs.tile(*key, device)
    expected = [t.clone() if isinstance(t, Tensor) else t for t in at_8()]

    def under(tile: configs.TileConfig, step: Any) -> Any:
        def run() -> Any:
            with using(key, tile, device):
                return step()

        return run

    trials: dict[str, Any] = {}
    tiles: dict[str, configs.TileConfig] = {}
    for tile in [standing, *candidates(standing, smoke)]:
        name, run = str(tuple(tile)), under(tile, at_8)
        try:
            right = close(run(), expected)
        except Exception as error:  # too large for shared memory or registers
            print(f"    {name}: {type(error).__name__}", flush=True)
            continue
        if not right:
            print(f"    {name}: wrong result", flush=True)
            continue
        trials[name], tiles[name] = run, tile
    first, cold = str(tuple(standing)), device.type == "cuda"
    spreads = interleaved(trials, device, 2 if smoke else 5, 0 if smoke else 0.001, cold=cold)
    best = sorted(spreads, key=lambda name: spreads[name].p50)[:4]
    finalists = {name: trials[name] for name in dict.fromkeys([first, *best])}
    rounds, least = (2, 0.0) if smoke else (15, 0.003)
    spreads = interleaved(finalists, device, rounds, least, cold=cold)
    winner = min(spreads, key=lambda name: spreads[name].p50)
    if winner == first or spreads[winner].p80 >= spreads[first].p20:
        return None
    pair = {"standing": under(standing, at_1), "winner": under(tiles[winner], at_1)}
    single = interleaved(pair, device, rounds, least, cold=cold)
    if single["winner"].p50 > 1.02 * single["standing"].p50:
        return None
    return tiles[winner], spreads[first].p50 / spreads[winner].p50


class Results:
    """The file: tiles that won, and the problems that were tried."""

    def __init__(self, path: Path, where: str) -> None:
        self.path, self.where = path, where
        self.tiles: list[dict[str, Any]] = []
        self.tried: list[list[Any]] = []
        if path.exists():
            content = json.loads(path.read_text())
            if content["measured_on"] != where:
                sys.exit(f"{path} was measured on {content['measured_on']}, this is {where}; give another --output")
            self.tiles, self.tried = content["tiles"], content["tried"]

    def add(self, key: tuple[str, int, int, int], found: tuple[configs.TileConfig, float] | None) -> None:
        self.tried.append(list(key))
        if found is not None:
            table, itemsize, channels, area = key
            entry = {"table": table, "itemsize": itemsize, "channels": channels, "area": area}
            self.tiles.append(entry | {"tile": found[0]._asdict(), "gain": round(found[1], 3)})
        content = {"measured_on": self.where, "date": datetime.date.today().isoformat()}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(content | {"tiles": self.tiles, "tried": self.tried}, indent=1)
        atomic_write_bytes(self.path, (text + "\n").encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--smoke", action="store_true", help="run on the CPU, in the interpreter; needs --output")
    out = Path(os.environ["OUT"], "tuned.json") if os.environ.get("OUT") else configs.TUNED_FILE
    parser.add_argument("--output", type=Path, help="the file of tuned tiles")
    parser.add_argument("--minutes", type=float, default=8.0, help="no problem is begun after this")
    args = parser.parse_args()
    if args.smoke and args.output is None:
        sys.exit("--smoke measures nothing that may be used: give --output")
    if not args.smoke and not torch.cuda.is_available():
        sys.exit("gpu_tune needs a GPU; --smoke runs without one, and proves nothing about speed")
    # With its index, as the tensors' device has it.
    device = torch.device("cpu") if args.smoke else torch.device("cuda", torch.cuda.current_device())
    where = "Triton's interpreter: times mean nothing" if args.smoke else torch.cuda.get_device_name(device)
    results = Results(args.output or out, where)
    begin = time.monotonic()
    for c, side, flags in SMOKE_SHAPES if args.smoke else SHAPES:
        for dtype in (torch.float32,) if args.smoke else (torch.bfloat16, torch.float32):
            made = [steps(n, c, side, flags, dtype, device) for n in ((1, 1) if args.smoke else (8, 1))]
            for mode in made[0]:
                at_8, at_1 = made[0][mode], made[1][mode]
                with keys_of(at_8) as keys:
                    pass
                for key in keys:
                    if list(key) in results.tried:
                        continue
                    if time.monotonic() - begin > 60 * args.minutes:
                        sys.exit(f"time is up: {len(results.tried)} problems tried; call again to go on")
                    found = tune(at_8, at_1, key, device, args.smoke)
                    print(f"{c}×{side}² {dtype} {mode}, {key[0]}: {found or 'the tables stay'}", flush=True)
                    if found is not None:
                        configs.tuned(device)[key] = found[0]
                    results.add(key, found)
    print(f"{len(results.tiles)} tiles of {len(results.tried)} problems in {results.path}")


if __name__ == "__main__":
    main()
