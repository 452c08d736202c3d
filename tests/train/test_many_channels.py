"""A training on images of many channels: batches, grids, TensorBoard, checkpoints, resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from munit_fast import make_config
from munit_fast.data.images import to_bytes
from munit_fast.train.loggers import shown_samples
from tests.helpers.runs import checkpoints, equal, run

CHANNELS = {"a": 5, "b": 2}


def folders(root: Path) -> Path:
    rng = np.random.default_rng(0)
    for name in ("trainA", "trainB", "testA", "testB"):
        (root / name).mkdir(parents=True)
        for i in range(3):
            array = rng.integers(0, 16384, (40, 48, CHANNELS[name[-1].lower()])).astype(np.uint16)
            np.save(root / name / f"{i}.npy", array if i % 2 else array.transpose(2, 0, 1))
    return root


def config(small_config: dict[str, Any]) -> dict[str, Any]:
    ranges = {"range_a": [0, 16383], "range_b": [0, 16383], "show_channels_a": [4, 0, 2]}
    return small_config | ranges | {f"input_dim_{d}": c for d, c in CHANNELS.items()}


def test_a_run_and_its_resume(small_config: dict[str, Any], tmp_path: Path) -> None:
    data, values = folders(tmp_path / "data"), config(small_config)
    result = run(values, data, tmp_path / "whole")
    assert result.finished
    grid = Image.open(result.folder.images / "gen_a2b_train_00000004.jpg")
    assert grid.mode == "RGB" and grid.size == (2 * 34 + 2, 4 * 34 + 2)
    shown = EventAccumulator(str(tmp_path / "whole" / "logs" / "small")).Reload().Images("gen_b2a_test")
    assert [(image.step, image.width) for image in shown] == [(2, 70), (4, 70)]
    run(values | {"max_iter": 2}, data, tmp_path / "parts")
    run(values, data, tmp_path / "parts", resume=True)
    files = [checkpoints(tmp_path / part) / "gen_00000004.pt" for part in ("whole", "parts")]
    states = [torch.load(file, weights_only=True) for file in files]
    assert equal(*states)


def test_each_row_shows_the_channels_of_its_domain(small_config: dict[str, Any]) -> None:
    cfg = make_config(config(small_config))
    domains = ["a", "a", "b", "b", "b", "b", "a", "a"]  # of MUNIT; a sample of UNIT has one translation fewer each
    for rows in (domains, [d for i, d in enumerate(domains) if i % 4 != 3]):
        images = [torch.rand(2, CHANNELS[d], 4, 4) for d in rows]
        for domain, image, found in zip(rows, images, shown_samples(images, cfg)):
            assert torch.equal(found, image[:, [4, 0, 2]] if domain == "a" else image[:, :1])


def test_batches_hold_the_values_of_all_channels(small_config: dict[str, Any], tmp_path: Path) -> None:
    from munit_fast.data.configured import open_sources

    cfg = make_config(config(small_config) | {"data_root": str(folders(tmp_path)), "new_size": "none"})
    image = open_sources(cfg).train_a.image(1)
    stored = np.load(tmp_path / "trainA" / "1.npy")
    assert image.dtype == np.float32
    np.testing.assert_allclose(image, stored / 16383, atol=1e-7, rtol=1e-6)
    assert to_bytes(torch.from_numpy(image).permute(2, 0, 1) * 2 - 1).shape == (40, 48, 5)
