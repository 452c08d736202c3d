"""How long the reference takes: the plain eager baseline that faster code is compared with.

pytest-benchmark interleaves nothing and the machine is rarely quiet: read ratios within one run, not milliseconds.
"""

from __future__ import annotations

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from munit_fast import MUNIT, MUNIT_Trainer, make_config
from munit_fast.config import Config

SIZES = {"demo, 64 px, dim 16": (64, 16), "128 px, dim 32": (128, 32)}


def make(size: int, dim: int) -> Config:
    return make_config(
        {
            "gen": {"dim": dim, "mlp_dim": 64, "n_res": 2},
            "dis": {"dim": dim, "n_layer": 3, "num_scales": 2},
            "crop_image_height": size,
            "crop_image_width": size,
        }
    )


@pytest.mark.parametrize("name", SIZES)
def test_training_iteration(benchmark: BenchmarkFixture, name: str) -> None:
    size, dim = SIZES[name]
    hp = make(size, dim).hyperparameters()
    trainer = MUNIT_Trainer(hp)
    x_a, x_b = torch.rand(2, 1, 3, size, size) * 2 - 1

    def iterate() -> None:
        trainer.update_learning_rate()
        trainer.dis_update(x_a, x_b, hp)
        trainer.gen_update(x_a, x_b, hp)

    benchmark.pedantic(iterate, rounds=10, warmup_rounds=2)
    assert torch.isfinite(trainer.loss_gen_total)


@pytest.mark.parametrize("name", SIZES)
def test_translation(benchmark: BenchmarkFixture, name: str) -> None:
    size, dim = SIZES[name]
    model = MUNIT(make(size, dim)).eval()
    x = torch.rand(1, 3, size, size) * 2 - 1
    y = benchmark.pedantic(lambda: model.translate(x, num_styles=10), rounds=10, warmup_rounds=2)
    assert y.shape == (1, 10, 3, size, size)
