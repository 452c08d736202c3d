"""Contenders at the level of folders: `munit-fast translate` from files to files, against its network alone."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from munit_fast.benchmarks.cases import Case
from munit_fast.benchmarks.contenders import NETWORK_ALONE, OURS, Contender, Work, autocast
from munit_fast.data import decode_image, to_model_range
from munit_fast.models.munit import MUNIT
from munit_fast.translate import TranslateOptions, random_styles, translate_files

BATCH = 8  # of `munit-fast translate`
PRETRAINED = "openmoji-lines2color"  # it is what is timed


def folder_contenders(case: Case, device: torch.device) -> list[Contender]:
    """The network on tensors in memory first: it cannot be beaten, only approached."""
    return [
        Contender(NETWORK_ALONE, "channels_last", lambda: _network(case, device)),
        Contender(OURS, "channels_last", lambda: _files(case, device)),
    ]


def _network(case: Case, device: torch.device) -> Work:
    model = _model(case, device)
    files = sorted(_pictures(case).iterdir())
    images = [to_model_range(decode_image(path, model.config.input_dim_a)) for path in files]
    codes = torch.stack([random_styles(0, 1, model.config.gen.style_dim, i) for i in range(len(files))])

    def batches() -> list[Tensor]:
        found = []
        with autocast(case.dtype, device):
            for i in range(0, len(images), BATCH):
                x = torch.stack(images[i : i + BATCH]).to(device)
                found.append(model.translate(x, "a2b", style=codes[i : i + BATCH]).cpu())
        return found

    def step() -> Sequence[Tensor]:
        batches()
        return []

    return Work(step, numbers=lambda: [_means(torch.cat(batches()).flatten(0, 1))])


def _files(case: Case, device: torch.device) -> Work:
    model, source = _model(case, device), _pictures(case)
    target = source.with_name(f"{source.name} translated")
    options = TranslateOptions(
        num_style=1,
        seed=0,
        batch_size=BATCH,
        output_only=True,
        amp="off" if case.dtype == "fp32" else case.dtype,
    )

    def step() -> Sequence[Tensor]:
        shutil.rmtree(target, ignore_errors=True)  # or everything would be done already
        translate_files(model, source, target, options)
        return []

    def numbers() -> Sequence[Tensor]:
        step()
        written = [to_model_range(decode_image(path)) for path in sorted(target.glob("*.png"))]
        return [_means(torch.stack(written))]

    return Work(step, numbers=numbers)


def _means(images: Tensor) -> Tensor:
    """[N, C, H, W] → [N, C, 1, 1], from black to white: of files and of tensors."""
    return (images.float() + 1).mean((-2, -1), keepdim=True)


@cache
def _model(case: Case, device: torch.device) -> MUNIT:
    whole = MUNIT.from_pretrained(PRETRAINED)
    if case.channels == whole.config.gen.dim:
        whole.config = whole.config.model_copy(update={"new_size": case.side})
        return whole.to(device)
    torch.manual_seed(0)  # smaller, with weights that draw noise
    gen = whole.config.gen.model_copy(update={"dim": case.channels})
    return MUNIT(whole.config.model_copy(update={"gen": gen, "new_size": case.side})).eval().to(device)


@cache
def _folder() -> TemporaryDirectory[str]:
    return TemporaryDirectory(prefix="munit-fast-bench-")


@cache
def _pictures(case: Case) -> Path:
    """`case.batch` smooth colour pictures of `case.side`², which compress as drawings and photographs do."""
    folder = Path(_folder().name, f"{case.batch} of {case.side}")
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    for i in range(case.batch):
        coarse = Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))
        coarse.resize((case.side, case.side), Image.Resampling.BICUBIC).save(folder / f"{i:05d}.png")
    return folder
