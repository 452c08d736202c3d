"""One rank of a training run in float64, for test_distributed.py: torchrun … ranks.py CONFIG OUT TRAINER [FLAGS].

OUT may have a {rank}, as machines without a common disk have their own.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from munit_fast.utils.env import set_process_defaults

set_process_defaults()

import torch  # noqa: E402
import yaml  # noqa: E402
from rich.console import Console  # noqa: E402

from munit_fast import make_config  # noqa: E402
from munit_fast.train import TrainOptions, train  # noqa: E402


def main() -> None:
    config, out, trainer = Path(sys.argv[1]), Path(sys.argv[2].format(rank=os.environ["RANK"])), sys.argv[3]
    torch.set_num_threads(1)
    flags = {"resume": "--resume" in sys.argv, "checkpointing": "--checkpointing" in sys.argv}
    options = TrainOptions("small", out, trainer, double=True, amp="off", **flags)
    text = config.read_text()
    train(make_config(yaml.safe_load(text)), options, config_text=text, console=Console(quiet=True))


main()
