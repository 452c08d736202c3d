"""Runs that only a process of its own survives: run by test_unattended.py, with `runs.run`'s arguments as JSON.

    python child_runs.py signalled|limited '{"config": …, "data": …, "out": …, "options": …}'

Not forked from the tests: threads that other libraries started there do not survive that. Prints the error that ended
the run.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the tests, when run as a script

from munit_fast.utils.env import set_process_defaults

set_process_defaults()

import torch

from helpers.runs import run
from munit_fast.train import loop as train_run


def signalled() -> None:
    """Every save is interrupted by a SIGTERM."""
    save = train_run.save_state

    def asked(*arguments: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        save(*arguments)

    train_run.save_state = asked  # type: ignore[assignment]


def limited() -> None:
    """No file grows beyond 60,000 bytes."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))


if __name__ == "__main__":
    torch.set_num_threads(1)
    given = json.loads(sys.argv[2])
    {"signalled": signalled, "limited": limited}[sys.argv[1]]()
    try:
        run(given["config"], Path(given["data"]), Path(given["out"]), **given["options"])
    except Exception as error:
        sys.exit(f"{type(error).__name__}: {error}")
