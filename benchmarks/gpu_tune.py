"""Measure the Triton kernels' tiles at the shapes of MUNIT's networks, and keep the best for each.

    make gpu-tune                          # on a machine with a GPU; writes kernels/tuned.json
    python benchmarks/gpu_tune.py --smoke  # two tiny shapes, three tiles, in Triton's interpreter: proves that it runs

One kernel is varied at a time, the others keep what the tables or an earlier round chose. Every candidate is compared
with the tables' tile before it is timed; one that is wrong or does not compile is dropped and said. A candidate
replaces the tables' tile only if it is faster by more than the spread of both.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

if "--smoke" in sys.argv:  # decided before triton is imported
    os.environ["TRITON_INTERPRET"] = "1"

import torch
from torch import Tensor

from munit_fast.bench.measure import interleaved
from munit_fast.files import atomic_write_bytes
from munit_fast.kernels import configs
from munit_fast.kernels.epilogue import epilogue_backward, epilogue_forward

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
PLAIN = {"eps": 1e-5, "block": 1, "pad_mode": "reflect"}


def candidates(tile: configs.Tile, smoke: bool) -> list[configs.Tile]:
    """Tiles around the one of the tables: the same number of channels or half or twice, and what a program repeats."""
    sizes = (1024, 2048, 4096) if not smoke else (tile.pixels * tile.channels,)
    channels = {tile.channels} if tile.channels == 1 else {max(tile.channels // 2, 4), tile.channels, tile.channels * 2}
    if smoke:
        channels = {tile.channels}
    found = [
        configs.Tile(max(size // c, 1), c, warps, tiles)
        for size in sizes
        for c in sorted(channels)
        for warps in ((2, 4, 8) if not smoke else (4,))
        for tiles in ((1, 2, 4, 8) if not smoke else (1, 2))
    ]
    return [t for t in found if t != tile]


@contextmanager
def using(key: tuple[str, int, int, int], tile: configs.Tile | None) -> Iterator[None]:
    """Let the kernels take `tile` for the problem `key`."""
    before = configs.TUNED.get(key)
    if tile is not None:
        configs.TUNED[key] = tile
    try:
        yield
    finally:
        configs.TUNED.pop(key, None)
        if before is not None:
            configs.TUNED[key] = before


@contextmanager
def keys_of(step: Any) -> Iterator[list[tuple[str, int, int, int]]]:
    """The problems that a step asks tiles for."""
    asked: list[tuple[str, int, int, int]] = []
    lookup = configs.tile

    def record(*key: Any) -> configs.Tile:
        asked.append(key)  # type: ignore[arg-type]
        return lookup(*key)

    configs.tile = record  # type: ignore[assignment]
    try:
        step()
        yield list(dict.fromkeys(asked))
    finally:
        configs.tile = lookup


def steps(n: int, c: int, side: int, flags: dict[str, Any], dtype: torch.dtype, device: str) -> dict[str, Any]:
    """The forward and the backward of an epilogue, channels_last."""
    options = PLAIN | flags
    random = torch.Generator(device).manual_seed(0)
    last = torch.channels_last

    def draw(*size: int) -> Tensor:
        return torch.randn(size, generator=random, device=device).to(dtype).contiguous(memory_format=last)

    x = draw(n, c, side, side)
    p, block, pad = c // options["block"] ** 2, options["block"], options["pad"]
    weight = torch.randn(p, generator=random, device=device) if options["norm"] == "layer" else None
    grad = draw(n, p, block * side + 2 * pad, block * side + 2 * pad)
    slope = 0.2
    _, stats = epilogue_forward(x, weight, None, None, slope, **options)
    needs = {"need_x": True, "need_residual": False, "need_sums": True}
    return {
        "forward": lambda: epilogue_forward(x, weight, None, None, slope, **options),
        "backward": lambda: epilogue_backward(grad, x, stats, weight, None, slope, **options, **needs),
    }


def close(a: Any, b: Any) -> bool:
    pairs = [(s, t) for s, t in zip(a, b) if isinstance(s, Tensor) and s.numel()]
    return all(float((s.float() - t.float()).norm() / t.float().norm().clamp_min(1e-20)) < 2e-2 for s, t in pairs)


def tune(
    step: Any, key: tuple[str, int, int, int], device: torch.device, smoke: bool
) -> tuple[configs.Tile, float] | None:
    """The best tile for a problem and how much faster it makes the step; None where the tables' stays."""
    standing = configs.tile(*key)
    expected = [t.clone() if isinstance(t, Tensor) else t for t in step()]
    trials: dict[str, Any] = {}
    tiles: dict[str, configs.Tile] = {}
    for tile in [standing, *candidates(standing, smoke)]:
        name = str(tuple(tile))

        def run(tile: configs.Tile = tile) -> None:
            with using(key, tile):
                step()

        try:
            with using(key, tile):
                right = close(step(), expected)
        except Exception as error:  # too large for shared memory or registers
            print(f"    {name}: {type(error).__name__}", flush=True)
            continue
        if not right:
            print(f"    {name}: wrong result", flush=True)
            continue
        trials[name], tiles[name] = run, tile
    first, rest = str(tuple(standing)), 4
    spreads = interleaved(trials, device, 2 if smoke else 5, 0 if smoke else 0.001, cold=device.type == "cuda")
    best = sorted(spreads, key=lambda name: spreads[name].p50)[:rest]
    finalists = {name: trials[name] for name in dict.fromkeys([first, *best])}
    spreads = interleaved(finalists, device, 2 if smoke else 15, 0 if smoke else 0.003, cold=device.type == "cuda")
    winner = min(spreads, key=lambda name: spreads[name].p50)
    if winner == first or spreads[winner].p80 >= spreads[first].p20:
        return None
    return tiles[winner], spreads[first].p50 / spreads[winner].p50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--smoke", action="store_true", help="run on the CPU, in the interpreter")
    parser.add_argument("--output", type=Path, default=configs.TUNED_FILE, help="the file of tuned tiles")
    parser.add_argument("--batch", type=int, action="append", help="default 1 and 8")
    args = parser.parse_args()
    if not args.smoke and not torch.cuda.is_available():
        sys.exit("gpu_tune needs a GPU; --smoke runs without one, and proves nothing about speed")
    device = "cpu" if args.smoke else "cuda"
    dtypes = (torch.float32,) if args.smoke else (torch.bfloat16, torch.float32)
    gains: dict[tuple[str, int, int, int], float] = {}
    for c, side, flags in SMOKE_SHAPES if args.smoke else SHAPES:
        for dtype in dtypes:
            for n in (1,) if args.smoke else args.batch or (1, 8):
                made = steps(n, c, side, flags, dtype, device)
                for mode, step in made.items():
                    with keys_of(step) as keys:
                        pass
                    for key in keys:
                        if key in gains:  # tuned at another batch: that one stays
                            continue
                        found = tune(step, key, torch.device(device), args.smoke)
                        print(f"{n}×{c}×{side}² {dtype} {mode}, {key[0]}: {found or 'the tables stay'}", flush=True)
                        if found is not None:
                            configs.TUNED[key], gains[key] = found
    tiles = [
        {
            "table": table,
            "itemsize": item,
            "channels": channels,
            "area": area,
            "tile": configs.TUNED[table, item, channels, area]._asdict(),
            "gain": round(gain, 3),
        }
        for (table, item, channels, area), gain in gains.items()
    ]
    where = "Triton's interpreter: times mean nothing" if args.smoke else torch.cuda.get_device_name()
    content = {"measured_on": where, "date": datetime.date.today().isoformat(), "tiles": tiles}
    args.output.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_bytes(args.output, (json.dumps(content, indent=1) + "\n").encode())
    print(f"{len(tiles)} tiles in {args.output}")


if __name__ == "__main__":
    main()
