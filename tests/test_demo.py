"""The demonstration, at its smallest."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from rich.console import Console

from munit_fast import demo
from munit_fast.data import prepare_openmoji
from munit_fast.evaluate import Evaluation, EvaluationRow
from munit_fast.pages.demo import Showcase
from munit_fast.train import cuda_graph
from munit_fast.train import speed as speed_module


@pytest.mark.slow
def test_demonstration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "prepare_openmoji", lambda out, size: prepare_openmoji(out, size=size, limit=200))
    options = demo.DemoOptions(folder=tmp_path, minutes=0.05, size=32, dim=4)
    console = Console(record=True, width=100, quiet=True)
    page = demo.run_demo(options, console)
    text = page.read_text()
    assert page == tmp_path / "index.html"
    assert text.count("data:image/") > demo.SHOWN_DRAWINGS * (demo.STYLES + 2)  # of two models
    assert 0 < text.index("Pretrained: openmoji-lines2color") < text.index("Trained here")
    assert Image.open(tmp_path / "openmoji-lines2color.png").size[0] == (demo.STYLES + 2) * 66 + 2
    assert "http://" not in text.replace("http://www.w3.org", "")  # self-contained
    assert "OpenMoji" in text
    entries = {row["key"]: row for row in json.loads((tmp_path / "metrics.json").read_text())["entries"]}
    assert {"colour_to_lines.l1", "lines_to_colour.kid_e3", "lines_to_colour.diversity"} <= set(entries)
    assert entries["colour_to_lines.l1"]["ceiling"] > 0
    assert Image.open(tmp_path / "grid.png").size[0] == (demo.STYLES + 2) * 34 + 2

    # A second run keeps the first; what it evaluates and shows of the pretrained model was seen already.
    evaluation = Evaluation(tuple(EvaluationRow(**row) for row in entries.values()), 1, 1, 1)
    monkeypatch.setattr(demo, "_evaluate", lambda *_: evaluation)
    monkeypatch.setattr(demo, "_show_pretrained", lambda *_: Showcase())
    again = demo.run_demo(replace(options, iterations=12), console)
    assert again == page
    assert (tmp_path / "outputs" / "openmoji-2" / "checkpoints" / "gen_00000012.pt").exists()
    assert sorted(p.name for p in (tmp_path / "outputs").iterdir()) == ["openmoji-1", "openmoji-2"]


@pytest.mark.slow
def test_only_the_pretrained_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "prepare_openmoji", lambda out, size: prepare_openmoji(out, size=size, limit=200))
    page = demo.run_demo(demo.DemoOptions(folder=tmp_path, minutes=0), Console(quiet=True))
    text = page.read_text()
    assert "Pretrained: openmoji-lines2color" in text
    assert "Trained here" not in text and "How it was made" not in text
    assert sorted(p.name for p in tmp_path.iterdir()) == ["openmoji-64", "openmoji-lines2color.png", "pretrained.html"]


def test_the_speed_is_that_of_the_graph_that_will_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Iterations that warm up and capture, and eager updates, take 50 times as long here as a replay."""
    now = [0.0]

    class Trainer:
        iterations = 0

        def __init__(self, *_: object, **__: object) -> None:
            pass

        def to(self, device: torch.device) -> Trainer:
            return self

        def update(self, *_: object) -> None:
            self.iterations += 1
            now[0] += 0.5 if self.iterations <= cuda_graph.WARM_UP + 1 else 0.01

        def dis_update(self, *_: object) -> None:
            now[0] += 0.25

        gen_update = dis_update

    monkeypatch.setattr(demo, "MUNIT_Trainer", Trainer)
    monkeypatch.setattr(speed_module.time, "monotonic", lambda: now[0])
    options = demo.DemoOptions(folder=tmp_path)
    speed = demo._speed(demo.demo_config(options, tmp_path, 1), options, Console(quiet=True))
    assert speed == pytest.approx(100, rel=0.01)
