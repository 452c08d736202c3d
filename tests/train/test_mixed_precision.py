"""Training in bfloat16 stays with training in float32, on real drawings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from munit_fast import amp as precision
from munit_fast import make_config
from munit_fast.data import ImageSet, UnpairedBatches, list_images, prepare_openmoji
from munit_fast.train import trainer as trainers
from munit_fast.train.noise import iteration_seed

ITERATIONS, WINDOW = 300, 100


def run(root: Path, amp: str) -> dict[str, torch.Tensor]:
    """Every loss of every iteration, from the same weights, images and styles."""
    cfg = make_config(
        {
            "gen": {"dim": 16, "mlp_dim": 64, "n_res": 2},
            "dis": {"dim": 16, "n_layer": 3, "num_scales": 2},
            "crop_image_height": 64,
            "crop_image_width": 64,
            "recon_x_cyc_w": 10,
            "num_workers": 0,
        }
    )
    hp = cfg.hyperparameters()
    torch.manual_seed(0)
    trainer = trainers.MUNIT_Trainer(hp, amp=amp)
    sets = [ImageSet(list_images(root / name), 3, 64) for name in ("trainA", "trainB")]
    batches = iter(UnpairedBatches(*sets, (64, 64), (64, 64), 1, seed=0, num_workers=0, start_iteration=0))
    found: dict[str, list[float]] = {}
    for i in range(ITERATIONS):
        torch.manual_seed(iteration_seed(0, i))
        for name, value in trainer.update(*next(batches), hp).items():
            found.setdefault(name, []).append(float(value))
    assert trainer.skipped_steps == 0
    return {name: torch.tensor(values) for name, values in found.items() if any(values)}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(
    not precision.bf16_hardware(torch.device("cpu")),
    reason="bfloat16 convolutions are emulated here: hours, not minutes",
)
@pytest.mark.parametrize("amp", ["bf16"])
def test_moving_averages_of_all_losses_stay_within_a_tenth(amp: str, tmp_path: Path) -> None:
    prepare_openmoji(tmp_path, size=64, limit=800)
    torch.set_num_threads(2)
    try:
        full, half = run(tmp_path, "off"), run(tmp_path, amp)
    finally:
        torch.set_num_threads(1)
    assert "loss_gen_recon_c_a" in full and len(full) >= 12
    worst: dict[str, Any] = {}
    for name, values in full.items():
        a, b = (v.unfold(0, WINDOW, 1).mean(1) for v in (values, half[name]))
        worst[name] = float(((b - a) / a).abs().max())
    print(worst)
    assert max(worst.values()) < 0.1, worst
