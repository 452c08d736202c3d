"""Small training runs, and what they leave behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console

from munit_fast import make_config
from munit_fast.train import TrainOptions, TrainResult, train
from munit_fast.train.run_state import apply_state, find_state, save_published, save_state


def run(config: dict[str, Any], data: Path, out: Path, console: Console | None = None, **options: Any) -> TrainResult:
    values = config | {"data_root": str(data)}
    return train(
        make_config(values),
        TrainOptions("small", out, **{"amp": "off"} | options),
        config_text=yaml.safe_dump(values),
        console=console or Console(quiet=True),
    )


def save(trainer: Any, folder: Path, iterations: int, notes: dict[str, Any] | None = None) -> None:
    """What a run writes when the published files are due."""
    save_state(trainer, folder, iterations, notes)
    save_published(trainer, folder, iterations)


def resume(trainer: Any, folder: Path) -> tuple[int, dict[str, Any]]:
    """What a run with --resume loads."""
    loaded = find_state(folder)
    return apply_state(trainer, loaded.state, loaded.source)


def checkpoints(out: Path) -> Path:
    return out / "outputs" / "small" / "checkpoints"


def events(out: Path) -> list[dict[str, Any]]:
    path = out / "logs" / "small" / "events.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def tensors(value: Any) -> Any:
    if isinstance(value, dict):
        for item in value.values():
            yield from tensors(item)
    elif isinstance(value, torch.Tensor):
        yield value


def equal(a: Any, b: Any) -> bool:
    pairs = list(zip(tensors(a), tensors(b), strict=True))
    return len(pairs) > 20 and all(torch.equal(x, y) for x, y in pairs)
