"""Training: the trainers and their losses (`trainer`, `losses`), and a run around them (`loop`).

`train` is what `munit-fast train` calls. A run adds to a trainer's `update` what surrounds it: data, noise, precision,
progress, files, signals, processes.
"""

from munit_fast.train.distributed import PeerError
from munit_fast.train.loop import train
from munit_fast.train.options import TrainOptions, TrainResult

__all__ = ["PeerError", "TrainOptions", "TrainResult", "train"]
