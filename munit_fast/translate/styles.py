"""The styles that images are translated in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from munit_fast.data.sources import ImageSource
from munit_fast.models.styles import random_styles
from munit_fast.translate.inputs import Reader
from munit_fast.translate.options import TranslateOptions, Translator


def style_path(codes: Tensor, steps: int) -> Tensor:
    """Interpolate linearly from each style code to the next.

    Args:
        codes: Style codes [..., S, style_dim] with S ≥ 2.
        steps: Steps from each code to the next, at least 1.

    Returns:
        Codes [..., (S - 1)·steps + 1, style_dim], the given ones among them.
    """
    count = codes.shape[-2]
    places = torch.arange((count - 1) * steps + 1)
    before = (places // steps).clamp(max=count - 2)
    share = (places - before * steps).to(codes) / steps
    return torch.lerp(codes[..., before, :], codes[..., before + 1, :], share[:, None])


class Styles:
    """Chooses each image's styles.

    Args:
        model: The model.
        options: How to translate.
        examples: The images of `options.style`.

    Raises:
        ValueError: An option does not fit the model.
    """

    def __init__(self, model: Translator, options: TranslateOptions, examples: ImageSource | None) -> None:
        self._model, self._options = model, options
        self._examples: Reader | None = None
        self._example_codes: Tensor | None = None
        if model.trainer == "UNIT":
            for flag in ("style", "interpolate"):
                if getattr(options, flag) is not None:
                    raise ValueError(f"--{flag} needs MUNIT: UNIT has no style codes")
            return
        if options.mean_style and examples is None:
            raise ValueError("--style mean needs --style_folder FOLDER, the images whose styles are averaged")
        if examples is not None:
            self._examples = Reader(examples, model.config, options.direction[-1], options.native_size)
        if options.interpolate is not None:
            if options.interpolate < 1:
                raise ValueError(f"--interpolate must be at least 1 step; got {options.interpolate}")
            if self._given < 2:
                raise ValueError(
                    "--interpolate goes from style to style: give --num_style 2 or more, or a folder of two or more "
                    "examples as --style"
                )

    @property
    def _given(self) -> int:
        if self._examples is None:
            return self._options.num_style
        return 1 if self._options.mean_style else len(self._examples.source)

    @property
    def count(self) -> int:
        """Translations of each image."""
        if self._model.trainer == "UNIT":
            return 1
        steps = self._options.interpolate
        return self._given if steps is None else (self._given - 1) * steps + 1

    def encode_examples(self) -> None:
        """Take the styles of the examples, if there are any; before `codes` and `translate`.

        One example after the other is read, so that memory does not grow with their number.

        Raises:
            ImageError: An example cannot be read.
        """
        if self._examples is None:
            return
        model: Any = self._model
        domain = self._options.direction[-1]
        found = []
        for i in range(len(self._examples.source)):
            pixels = self._examples(i).pixels[None].to(model.device)
            found.append(model.encode_style(pixels, domain).cpu())
        codes = torch.cat(found)
        if self._options.mean_style:
            codes = codes.double().mean(0, keepdim=True).to(codes)
        self._example_codes = codes

    def codes(self, places: Sequence[int]) -> Tensor | None:
        """The codes [N, S, style_dim] of the images at some places of the sorted folder; None for UNIT."""
        options = self._options
        if self._model.trainer == "UNIT":
            return None
        if self._example_codes is not None:
            codes = self._example_codes.expand(len(places), -1, -1)
        else:
            dim = self._model.config.gen.style_dim
            drawn = [
                random_styles(options.seed, options.num_style, dim, 0 if options.synchronized else place)
                for place in places
            ]
            codes = torch.stack(drawn)
        return codes if options.interpolate is None else style_path(codes, options.interpolate)

    def translate(self, images: Tensor, places: Sequence[int]) -> Tensor:
        """Translate images [N, C, H, W] of one size to [N, S, C', H, W] on the CPU, each in its styles."""
        images, codes = images.to(self._model.device), self.codes(places)
        if codes is None:
            return self._model.translate(images, self._options.direction).cpu()
        return self._model.translate(images, self._options.direction, style=codes).cpu()
