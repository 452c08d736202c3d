"""What translations depend on besides their input: where any of it differs, nothing of an earlier run is kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from munit_fast.data.sources import ImageSource
from munit_fast.translate.options import TranslateOptions, Translator
from munit_fast.utils.version import __version__

_NO_MATTER = ("grid", "workers", "style")  # options that the files do not depend on; styles are compared by content


def identity(
    model: Translator, source: ImageSource, options: TranslateOptions, examples: ImageSource | None
) -> dict[str, Any] | None:
    """What is translated and how, as JSON has it; None for a model that cannot be told from another one.

    Args:
        model: The model.
        source: The images to translate.
        options: How to translate them.
        examples: The images that styles are taken from.
    """
    weights = _weights(model)
    if weights is None:
        return None
    hyperparameters = json.dumps(model.config.hyperparameters(), sort_keys=True, default=str)
    return {
        "source": str(Path(source.label).resolve()) if Path(source.label).exists() else source.label,
        "weights": weights,
        "configuration": hashlib.sha256(hyperparameters.encode()).hexdigest(),
        "trainer": model.trainer,
        "device": model.device.type,
        "software": f"munit-fast {__version__}, torch {torch.__version__}",
        "style": None if examples is None else [[examples.where(i), examples.version(i)] for i in range(len(examples))],
        **{name: value for name, value in asdict(options).items() if name not in _NO_MATTER},
    }


def describe_changes(changed: Mapping[str, tuple[Any, Any]]) -> str:
    """One line on how an earlier translation of the same images differed."""
    short = [
        f"{name} was {before!r}, is {now!r}" if len(f"{before!r}{now!r}") <= 80 else f"other {name}"
        for name, (before, now) in changed.items()
        if name not in ("weights", "configuration", "style")
    ]
    short += [f"other {name}" for name in ("weights", "configuration", "style") if name in changed]
    return "; ".join(short)


def _weights(model: Translator) -> str | None:
    """A digest of what a model computes with."""
    if not isinstance(model, nn.Module):
        return getattr(model, "digest", None)
    digest = hashlib.sha256()
    backends = sorted({str(part.impl) for part in model.modules() if hasattr(part, "impl")})
    digest.update(json.dumps([type(model).__name__, backends]).encode())
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        values = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(np.ascontiguousarray(values.view(torch.uint8).numpy()))
    return digest.hexdigest()
