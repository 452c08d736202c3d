"""MUNIT (multimodal unsupervised image-to-image translation) on today's PyTorch.

import munit_fast as mf
model = mf.MUNIT(mf.load_config("config.yaml")).load("gen_00010000.pt")
y = model.translate(x, direction="a2b", num_styles=4)   # [N, C, H, W] -> [N, 4, C, H, W], all in [-1, 1]
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from munit_fast.utils.version import __version__

if TYPE_CHECKING:
    from munit_fast.accelerate import accelerate
    from munit_fast.config import Config, ConfigError, load_config, make_config
    from munit_fast.io.checkpoints import CheckpointError
    from munit_fast.models.munit import MUNIT, UNIT
    from munit_fast.ops.native import native_error
    from munit_fast.train.trainer import MUNIT_Trainer, UNIT_Trainer

# Names are imported when they are first used: the commands set up the environment of OpenMP before torch is
# imported, and `munit-fast --help` answers at once.
_HOMES = {
    "CheckpointError": "io.checkpoints",
    "Config": "config",
    "ConfigError": "config",
    "MUNIT": "models.munit",
    "MUNIT_Trainer": "train.trainer",
    "UNIT": "models.munit",
    "UNIT_Trainer": "train.trainer",
    "accelerate": "accelerate",
    "load_config": "config",
    "make_config": "config",
    "native_error": "ops.native",
}

__all__ = [
    "MUNIT",
    "UNIT",
    "CheckpointError",
    "Config",
    "ConfigError",
    "MUNIT_Trainer",
    "UNIT_Trainer",
    "__version__",
    "accelerate",
    "load_config",
    "make_config",
    "native_error",
]


_MODULES = {"functional": "functional", "networks": "models.networks", "nn": "nn", "reference": "reference"}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"munit_fast.{_MODULES[name]}")
    if name not in _HOMES:
        raise AttributeError(f"module 'munit_fast' has no attribute {name!r}")
    value = getattr(import_module(f"munit_fast.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES, *_MODULES])
