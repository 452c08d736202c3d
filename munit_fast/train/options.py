"""What a run is asked for beyond its configuration, and how it ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from munit_fast.train.run_dir import RunDirectory
from munit_fast.train.run_state import KEEP


@dataclass
class TrainOptions:
    """The options of `munit_fast.train.train`.

    Attributes:
        name: of the run; its files go to <output_path>/logs/<name> and <output_path>/outputs/<name>.
        output_path: where logs/ and outputs/ are made.
        trainer: "MUNIT", "UNIT", or "auto": what the configuration's keys say, MUNIT where they say nothing.
        resume: continue the run that is there.
        device: where to train.
        seed: of the weights, the data order, the crops and the noise.
        time_limit: seconds of training; None: until max_iter.
        amp: as in `munit_fast.amp`; "auto" continues with what a resumed run began with.
        threads: of torch on a CPU; None: as they are, 0: what trains fastest here, measured.
        impl: the backend; "reference": the reference networks and losses.
        auto_resume: resume where there is a run, else begin one.
        checkpointing: compute activations again in the backward instead of keeping them.
        save_minutes: between states; the published files follow the configuration.
        keep: states on the disk.
        patience: iterations in a row without a step, after which the run ends.
        patience_evals: evaluations in a row without a better one, after which the run ends early; None: it does not.
        peer_timeout: seconds after which a silent rank counts as lost.
        double: train in float64, to compare runs.
        allow_outside: list files may name images outside their folder.
        wandb: the Weights & Biases project to log to as well; None: none.
        overrides: values of the configuration to change, each "KEY=VALUE"; a resumed run takes no other change of what
            it computes.
    """

    name: str
    output_path: Path = Path(".")
    trainer: str = "auto"
    resume: bool = False
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    seed: int = 0
    time_limit: float | None = None
    amp: str = "auto"
    threads: int | None = None
    impl: str = "auto"
    auto_resume: bool = False
    checkpointing: bool = False
    save_minutes: float = 15.0
    keep: int = KEEP
    patience: int = 50
    patience_evals: int | None = None
    peer_timeout: float = 300.0
    double: bool = False
    allow_outside: bool = False
    wandb: str | None = None
    overrides: Sequence[str] = ()
    init_from: str | Path | None = None


@dataclass
class TrainResult:
    """How a run ended.

    Attributes:
        folder: where its files are.
        iterations: done in all sessions together.
        seconds: of this session.
        finished: whether max_iter was reached.
        early: whether the run ended since no evaluation got better (`patience_evals`).
        skipped_steps: steps whose gradient was not finite, in all sessions together.
        main: whether this process wrote the files.
    """

    folder: RunDirectory
    iterations: int
    seconds: float
    finished: bool
    skipped_steps: int
    main: bool = True
    early: bool = False
