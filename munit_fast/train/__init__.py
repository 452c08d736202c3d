"""A training run: its folder, its logs and pictures, and the loop that ties them to a trainer.

`train` is what `munit-fast train` calls. The algorithm itself is the trainer's (`dis_update`, `gen_update`); here is
what surrounds it: data, schedule, progress, files, signals.
"""

from munit_fast.train.distributed import PeerError
from munit_fast.train.loop import TrainOptions, TrainResult, train

__all__ = ["PeerError", "TrainOptions", "TrainResult", "train"]
