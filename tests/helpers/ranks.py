"""One rank of a training run in float64, for test_distributed.py: torchrun … ranks.py CONFIG OUT TRAINER [FLAGS].

OUT may have a {rank}, as machines without a common disk have their own. --graph: in a CUDA graph that the CPU plays.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[1])  # the tests; a module beside this one is called html

from munit_fast.utils.env import set_process_defaults  # noqa: E402

set_process_defaults()

import pytest  # noqa: E402
import torch  # noqa: E402
import yaml  # noqa: E402
from rich.console import Console  # noqa: E402

from helpers import fake_cuda  # noqa: E402
from munit_fast import make_config  # noqa: E402
from munit_fast.train import TrainOptions, train  # noqa: E402


def main() -> None:
    config, out, trainer = Path(sys.argv[1]), Path(sys.argv[2].format(rank=os.environ["RANK"])), sys.argv[3]
    torch.set_num_threads(1)
    flags: dict[str, Any] = {"resume": "--resume" in sys.argv, "checkpointing": "--checkpointing" in sys.argv}
    overrides = [flag.removeprefix("--override=") for flag in sys.argv if flag.startswith("--override=")]
    sources = [flag.removeprefix("--init_from=") for flag in sys.argv if flag.startswith("--init_from=")]
    flags["init_from"] = sources[0] if sources else None
    options = TrainOptions("small", out, trainer, double=True, amp="off", overrides=overrides, **flags)
    text = config.read_text()
    with pytest.MonkeyPatch.context() as patched:
        if cuda := fake_cuda.install(patched) if "--graph" in sys.argv else None:
            patched.setattr(torch.distributed, "get_backend", lambda: "nccl")
            destroy, held = torch.distributed.destroy_process_group, []
            # NCCL would wait for them.
            patched.setattr(
                torch.distributed, "destroy_process_group", lambda: held.append(len(cuda.graphs)) or destroy()
            )
        train(make_config(yaml.safe_load(text)), options, config_text=text, console=Console(quiet=True))
    if cuda is not None:
        (out / f"replays-{os.environ['RANK']}").write_text(f"{cuda.replays} replays, {held} held")


main()
