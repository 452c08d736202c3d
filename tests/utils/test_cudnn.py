"""cuDNN's switch: what trains sets what the benchmark sets, what translates files the opposite; all put it back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

import munit_fast as mf
from helpers import runs
from helpers.bench import QUICK, quiet
from munit_fast import demo
from munit_fast.benchmarks import SETS, runner
from munit_fast.benchmarks.contenders import Contender, Work
from munit_fast.train import loop as training
from munit_fast.train import trainer
from munit_fast.translate import TranslateOptions, translate_files
from munit_fast.translate import files as translation
from munit_fast.utils.cudnn import tuned_convolutions
from munit_fast.utils.repeatable import repeatable

CPU, GPU = torch.device("cpu"), torch.device("cuda")
USERS = (demo, runner, training)


def test_the_switch_is_put_back() -> None:
    def failing(on: bool) -> None:
        with tuned_convolutions(GPU, on):
            assert torch.backends.cudnn.benchmark is on
            raise KeyError

    for before in (False, True):
        with tuned_convolutions(GPU, before):
            for on in (False, True):
                with pytest.raises(KeyError):
                    failing(on)
                assert torch.backends.cudnn.benchmark is before
                with tuned_convolutions(CPU, on):
                    assert torch.backends.cudnn.benchmark is before


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """The switch as each piece of work finds it, were its device a GPU."""
    found: list[bool] = []
    for module in USERS:
        monkeypatch.setattr(module, "tuned_convolutions", lambda device, on=True: tuned_convolutions(GPU, on))

    def watch(owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def watched(*args: Any, **kwargs: Any) -> Any:
            found.append(torch.backends.cudnn.benchmark)
            return real(*args, **kwargs)

        monkeypatch.setattr(owner, name, watched)

    watch(trainer.MUNIT_Trainer, "update")
    watch(mf.MUNIT, "translate")
    yield found  # type: ignore[misc]
    assert not torch.backends.cudnn.benchmark


def test_training(seen: list[bool], small_config: dict[str, Any], picture_folders: Path, tmp_path: Path) -> None:
    runs.run(small_config, picture_folders, tmp_path)
    assert seen == [True] * 4


def test_the_benchmark(seen: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    case = SETS["smoke"][0]

    def step() -> list[torch.Tensor]:
        seen.append(torch.backends.cudnn.benchmark)
        return [torch.ones(2)]

    monkeypatch.setattr(runner, "contenders", lambda *_: [Contender("published", "NCHW", lambda: Work(step))])
    monkeypatch.setattr(runner.contenders_ops, "expected", lambda case, device: [torch.ones(2)])
    _, failures = runner.run([case], QUICK, quiet())
    assert failures == [] and len(seen) > 2 and all(seen)


def test_the_demonstration(seen: list[bool], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def nothing(*_: Any) -> Any:
        seen.append(torch.backends.cudnn.benchmark)
        raise KeyError

    monkeypatch.setattr(demo, "_show_pretrained", nothing)
    with pytest.raises(KeyError):
        demo.run_demo(demo.DemoOptions(folder=tmp_path), Console(quiet=True))
    assert seen == [True]


def test_translation_of_files(
    seen: list[bool], small_config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is fastest would depend on the timing, and so would the bytes of the files."""
    deterministic = []
    monkeypatch.setattr(translation, "repeatable", lambda device: repeatable(GPU))
    translate = mf.MUNIT.translate

    def watched(*args: Any, **kwargs: Any) -> Any:
        deterministic.append(torch.backends.cudnn.deterministic)
        return translate(*args, **kwargs)

    monkeypatch.setattr(mf.MUNIT, "translate", watched)
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(tmp_path / "picture.png")
    model = mf.MUNIT(mf.make_config(small_config)).eval()
    torch.backends.cudnn.benchmark = True
    try:
        translate_files(model, tmp_path / "picture.png", tmp_path / "out", TranslateOptions(num_style=1))
        assert torch.backends.cudnn.benchmark and not torch.backends.cudnn.deterministic
    finally:
        torch.backends.cudnn.benchmark = False
    assert seen == [False] and deterministic == [True]
