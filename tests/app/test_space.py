"""The folder examples/space as Hugging Face would take it."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import gradio
import pytest
import yaml

if sys.version_info >= (3, 11):
    import tomllib

from munit_fast.app import build
from munit_fast.models.munit import MUNIT

ROOT = Path(__file__).parents[2]
SPACE = ROOT / "examples/space"


def front_matter() -> dict[str, Any]:
    return yaml.safe_load((SPACE / "README.md").read_text(encoding="utf-8").split("---\n")[1])


@pytest.mark.parametrize(("space", "host"), [(None, "127.0.0.1"), ("owner/name", "0.0.0.0")])
def test_the_space_serves_its_model(monkeypatch: pytest.MonkeyPatch, space: str | None, host: str) -> None:
    spec = importlib.util.spec_from_file_location("space_app", SPACE / front_matter()["app_file"])
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    launched: list[tuple[Any, dict[str, Any]]] = []
    monkeypatch.setattr(module, "launch", lambda model, **options: launched.append((model, options)))
    monkeypatch.delenv("SPACE_ID", raising=False)
    if space:
        monkeypatch.setenv("SPACE_ID", space)
    module.main()
    [(model, options)] = launched
    assert isinstance(model, MUNIT) and options == {"host": host, "port": 7860}
    assert isinstance(build(model), gradio.Blocks)


def test_the_front_matter_names_what_is_tested_here() -> None:
    values = front_matter()
    assert values["sdk"] == "gradio" and values["sdk_version"] == gradio.__version__
    assert values["license"] == "cc-by-sa-4.0"  # of the bundled weights
    assert len(values["short_description"]) <= 60  # the Hub refuses more


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib")
def test_its_requirements_are_those_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = (SPACE / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line and not line.startswith("#")] == project["dependencies"]
