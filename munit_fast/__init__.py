"""MUNIT (multimodal unsupervised image-to-image translation) on today's PyTorch.

import munit_fast as mf
model = mf.MUNIT(mf.load_config("config.yaml")).load("gen_00010000.pt")
y = model.translate(x, direction="a2b", num_styles=4)   # [N, C, H, W] -> [N, 4, C, H, W], all in [-1, 1]
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from munit_fast.utils.version import __version__

if TYPE_CHECKING:
    from munit_fast.accelerate import accelerate
    from munit_fast.config import Config, ConfigError, load_config, make_config
    from munit_fast.io.checkpoints import CheckpointError
    from munit_fast.models import MUNIT, UNIT
    from munit_fast.ops.native import native_error
    from munit_fast.train.trainer import MUNIT_Trainer, UNIT_Trainer

# The public names and where they are defined. Each is imported when it is first used: `import munit_fast` stays cheap,
# `munit-fast --help` answers at once, and the commands set environment variables before torch is imported.
_PUBLIC_NAMES = {
    "CheckpointError": "munit_fast.io.checkpoints",
    "Config": "munit_fast.config",
    "ConfigError": "munit_fast.config",
    "MUNIT": "munit_fast.models",
    "MUNIT_Trainer": "munit_fast.train.trainer",
    "UNIT": "munit_fast.models",
    "UNIT_Trainer": "munit_fast.train.trainer",
    "accelerate": "munit_fast.accelerate",
    "load_config": "munit_fast.config",
    "make_config": "munit_fast.config",
    "native_error": "munit_fast.ops.native",
}
_PUBLIC_MODULES = {
    "functional": "munit_fast.functional",
    "networks": "munit_fast.models.networks",
    "nn": "munit_fast.nn",
    "reference": "munit_fast.reference",
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


def _from_networks(name: str) -> Any:
    if name.startswith("__") and name != "__all__":  # `inspect` asks every module for its file
        raise AttributeError(f"module 'munit_fast.networks' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC_MODULES["networks"]), name)


# What `import munit_fast.networks` finds, in any program that knows the networks by this name.
_networks = ModuleType("munit_fast.networks", "`munit_fast.models.networks`, under the name that users import it by.")
vars(_networks)["__getattr__"] = _from_networks
sys.modules["munit_fast.networks"] = _networks


def __getattr__(name: str) -> Any:
    if name in _PUBLIC_MODULES:
        return import_module(_PUBLIC_MODULES[name])
    if name not in _PUBLIC_NAMES:
        raise AttributeError(f"module 'munit_fast' has no attribute {name!r}")
    value = getattr(import_module(_PUBLIC_NAMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC_NAMES, *_PUBLIC_MODULES])
