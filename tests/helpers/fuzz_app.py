"""Uploads and style files of the page for the fuzzer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st

from helpers.fuzz_inputs import GENERATOR, STEP, VALUES, Target, check_message, mutate, mutated
from munit_fast.app.translation import STYLE_FORMAT, Limits, Translator, UserError, style_json
from munit_fast.config import make_config
from munit_fast.models.munit import MUNIT


def style_inputs() -> st.SearchStrategy[bytes]:
    """Style files of the page: whole ones with some bytes changed, and ones with other values."""
    good = {"format": STYLE_FORMAT, "model": "m", "direction": "a2b", "seed": 1, "code": [0.5, -1.25]}
    numbers = st.floats() | st.integers() | VALUES
    odd = st.dictionaries(
        st.sampled_from([*good, "x"]), VALUES.filter(_is_json) | st.lists(numbers.filter(_is_json), max_size=3)
    )
    structured = odd.map(lambda changes: json.dumps(good | changes).encode("utf-8", "surrogatepass"))
    return mutated([json.dumps(good).encode()]) | structured | st.builds(mutate, structured, st.lists(STEP, max_size=3))


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True


def upload_target(folder: Path) -> Target:
    size = {"new_size": 64, "crop_image_height": 64, "crop_image_width": 64}
    translator = Translator(MUNIT(make_config({"gen": GENERATOR} | size)), limits=Limits(translated_pixels=8192))

    def run(data: bytes) -> None:
        path = folder / ("image.npy" if data[:6] == b"\x93NUMPY" else "image.png")
        path.write_bytes(data)
        for native in (False, True):
            try:
                image = translator.read(path, "a", native=native)
            except UserError as error:
                check_message(error, never=str(folder))
            else:
                assert image.shape[0] == 3 and 0 < image.shape[1] * image.shape[2] <= 8192
                assert bool((image.abs() <= 1).all())

    return run


def style_target(folder: Path) -> Target:
    path = folder / "style.json"
    translator = Translator(MUNIT(make_config({"gen": GENERATOR})))

    def run(data: bytes) -> None:
        path.write_bytes(data)
        try:
            file = translator.load_style(path)
        except UserError as error:
            check_message(error, never=str(folder))
        else:
            assert file.style.code.shape == (2,) and bool(torch.isfinite(file.style.code).all())
            path.write_text(style_json(file.style, file.direction, "m"), encoding="utf-8")
            assert torch.equal(translator.load_style(path).style.code, file.style.code)

    return run
