"""MUNIT and UNIT as a library."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import munit_fast as mf


@pytest.fixture
def model(small_config: dict[str, Any]) -> mf.MUNIT:
    torch.manual_seed(0)
    return mf.MUNIT(mf.make_config(small_config | {"input_dim_b": 1})).eval()


def test_shapes_and_range(model: mf.MUNIT) -> None:
    x = torch.rand(2, 3, 32, 40) * 2 - 1
    y = model.translate(x, direction="a2b", num_styles=4)
    assert y.shape == (2, 4, 1, 32, 40)
    assert y.abs().max() <= 1
    assert not y.requires_grad
    assert model.translate(y[:, 0], "b2a").shape == (2, 1, 3, 32, 40)


@pytest.mark.parametrize("size", [(1, 1), (5, 3), (17, 16), (33, 46), (61, 20)])
def test_any_size(model: mf.MUNIT, size: tuple[int, int]) -> None:
    y = model.translate(torch.rand(1, 3, *size) * 2 - 1)
    assert y.shape == (1, 1, 1, *size)
    assert torch.isfinite(y).all()


def test_padding_is_by_reflection_and_cropped_back(model: mf.MUNIT) -> None:
    x = torch.rand(1, 3, 38, 45) * 2 - 1
    by_hand = torch.nn.functional.pad(x, (0, 3, 0, 2), mode="reflect")
    style = torch.randn(2, 3)
    expected = model.translate(by_hand, style=style)[..., :38, :45]
    torch.testing.assert_close(model.translate(x, style=style), expected, rtol=0, atol=0)


def test_a_size_that_fits_is_not_padded(model: mf.MUNIT) -> None:
    x, style = torch.rand(1, 3, 32, 40) * 2 - 1, torch.randn(1, 3)
    with torch.no_grad():
        expected = model.gen_b.decode(model.gen_a.encode(x)[0], style[:, :, None, None])
    torch.testing.assert_close(model.translate(x, style=style)[:, 0], expected, rtol=0, atol=0)


def test_styles_by_code_by_image_and_by_chance(model: mf.MUNIT) -> None:
    x = torch.rand(2, 3, 32, 32) * 2 - 1
    codes = torch.randn(4, 3)
    y = model.translate(x, style=codes)
    assert y.shape[1] == 4
    assert torch.equal(y, model.translate(x, style=codes[:, :, None, None]))
    assert torch.equal(y, model.translate(x, style=codes.expand(2, 4, 3)))
    assert not torch.allclose(y[:, 0], y[:, 1], atol=1e-3)

    examples = torch.rand(3, 1, 32, 48) * 2 - 1
    assert torch.equal(model.translate(x, style=examples), model.translate(x, style=model.encode_style(examples, "b")))

    draw = [model.translate(x, num_styles=2, generator=torch.Generator().manual_seed(7)) for _ in range(2)]
    assert torch.equal(*draw)


@pytest.mark.parametrize(
    ("x", "arguments", "word"),
    [
        (torch.rand(3, 32, 32), {}, r"^x .*\[3, 32, 32\]"),
        (torch.rand(1, 1, 32, 32), {}, r"^x .*\[N, 3, H, W\].*\[1, 1, 32, 32\]"),
        (torch.rand(1, 3, 0, 32), {}, r"^x .*\[1, 3, 0, 32\]"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), {}, r"^x .*torch\.uint8"),
        (torch.rand(1, 3, 32, 32), {"direction": "a"}, "direction .*'a2b' or 'b2a'.*'a'"),
        (torch.rand(1, 3, 32, 32), {"num_styles": 0}, "num_styles .*0"),
        (torch.rand(1, 3, 32, 32), {"style": torch.rand(2, 5)}, r"^style .*\[S, 3\].*\[2, 5\]"),
        (torch.rand(1, 3, 32, 32), {"style": torch.rand(4, 2, 3)}, r"^style .*\[4, 2, 3\]"),
        (torch.rand(1, 3, 32, 32), {"style": torch.rand(1, 3, 32, 32)}, r"^style .*\[1, 3, 32, 32\]"),
    ],
)
def test_bad_arguments_are_named(model: mf.MUNIT, x: torch.Tensor, arguments: dict[str, Any], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        model.translate(x, **arguments)


def test_unit(small_config: dict[str, Any]) -> None:
    model = mf.UNIT(small_config).eval()
    x = torch.rand(2, 3, 30, 41) * 2 - 1
    y = model.translate(x, "b2a")
    assert y.shape == (2, 1, 3, 30, 41)
    assert torch.equal(y, model.translate(x, "b2a"))  # from the mean of the code


def test_load_a_checkpoint_of_a_trainer(small_config: dict[str, Any], tmp_path: Path) -> None:
    cfg = mf.make_config(small_config)
    trainer = mf.MUNIT_Trainer(cfg.hyperparameters())
    trainer.save(tmp_path, 9)
    model = mf.MUNIT(cfg)
    model.load(tmp_path / "gen_00000010.pt")
    for mine, theirs in zip(model.gen_b.parameters(), trainer.gen_b.parameters()):
        assert torch.equal(mine, theirs)


def test_import_is_light() -> None:
    import subprocess
    import sys

    code = "import sys, munit_fast; assert 'torch' not in sys.modules; munit_fast.MUNIT; print(sorted(dir(munit_fast)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "MUNIT_Trainer" in done.stdout
    with pytest.raises(AttributeError, match="'nothing'"):
        mf.nothing  # noqa: B018
