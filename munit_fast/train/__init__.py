"""Training: the trainers and their losses (`trainer`, `losses`), and a run around them (`loop`).

`train` is what `munit-fast train` calls. A run adds to a trainer's `update` what surrounds it: data, noise, precision,
progress, files, signals, processes.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from munit_fast.train.distributed import PeerError
    from munit_fast.train.loop import train
    from munit_fast.train.options import TrainOptions, TrainResult

_HOMES = {"PeerError": "distributed", "TrainOptions": "options", "TrainResult": "options", "train": "loop"}
__all__ = ["PeerError", "TrainOptions", "TrainResult", "train"]


def __getattr__(name: str) -> Any:
    # When it is used: the trainers are imported from here too, and need nothing of what a run shows and writes.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
