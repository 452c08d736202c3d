"""A training run that is killed again and again: run by test_unattended.py in a process of its own.

    python crash.py FOLDER KILLS

Every attempt is a forked process, so that it costs a fraction of a second. Half of them are killed by the clock, the
others inside a save: before or after a file is flushed or renamed, or with half of its bytes written. Runs go on until
they end; then every file of theirs must be, to the bit, that of the run that nobody disturbed.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from munit_fast.utils.env import set_process_defaults

set_process_defaults()

import numpy as np
import torch
import torch._dynamo  # an optimizer imports it: 2 s that no attempt should spend
import yaml
from PIL import Image
from rich.console import Console

from munit_fast import make_config
from munit_fast.io.checkpoints import load_file
from munit_fast.train import TrainOptions, train
from munit_fast.train.run_dir import RunDirectory
from munit_fast.train.signals import StopRequest

ITERATIONS = 60


def config(root: Path) -> dict[str, Any]:
    return {
        "display_size": 1,
        "max_iter": ITERATIONS,
        "log_iter": 1,
        "image_save_iter": 20,
        "image_display_iter": 1000,
        "snapshot_save_iter": 4,
        "num_workers": 0,
        "lr_policy": "step",
        "step_size": 7,
        "ema_half_life": 10,
        "gen": {"dim": 2, "mlp_dim": 4, "style_dim": 2, "n_res": 1},
        "dis": {"dim": 2, "n_layer": 2, "num_scales": 1},
        "new_size": 32,
        "crop_image_height": 32,
        "crop_image_width": 32,
        "data_root": str(root / "data"),
    }


def pictures(root: Path) -> None:
    rng = np.random.default_rng(0)
    for split in ("trainA", "trainB"):
        folder = root / "data" / split
        folder.mkdir(parents=True)
        for i in range(5):
            Image.fromarray(rng.integers(0, 256, (34, 40, 3), dtype=np.uint8)).save(folder / f"{i}.png")


def run(root: Path, out: Path) -> None:
    values = config(root)
    options = TrainOptions("small", out, amp="off", auto_resume=True, save_minutes=0)  # a state after every iteration
    train(make_config(values), options, config_text=yaml.safe_dump(values), console=Console(quiet=True))


def forked(work: Callable[[], None]) -> int:
    """The process that does `work` and ends."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        work()
        code = 0
    finally:
        os._exit(code)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def dying(name: str, count: int, after: bool, real: Callable[..., Any]) -> Callable[..., Any]:
    """`real`, whose call number `count` is the process's last."""
    calls = 0

    def stand_in(*arguments: Any, **keywords: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == count and name == "save":  # with half of the bytes on the disk
            real(*arguments, **keywords)
            path = Path(arguments[1])
            os.truncate(path, path.stat().st_size // 2)
            die()
        if calls == count and not after:
            die()
        result = real(*arguments, **keywords)
        if calls == count:
            die()
        return result

    return stand_in


def dying_run(root: Path, out: Path, draw: random.Random) -> Callable[[], None]:
    """A run that dies inside a save."""
    holder, name = draw.choice([(os, "fsync"), (os, "replace"), (torch, "save")])
    count, after = draw.randint(1, 25), draw.random() < 0.5

    def work() -> None:
        setattr(holder, name, dying(name, count, after, getattr(holder, name)))
        run(root, out)

    return work


def telling_run(root: Path, out: Path, begun: Path) -> None:
    """A run that makes the file `begun` as soon as it can be asked to stop."""
    enter = StopRequest.__enter__

    def entering(self: StopRequest) -> StopRequest:
        entered = enter(self)
        begun.touch()
        return entered

    StopRequest.__enter__ = entering  # type: ignore[method-assign]
    run(root, out)


def same(a: Any, b: Any, where: str) -> None:
    assert type(a) is type(b), where
    if isinstance(a, dict):
        assert list(a) == list(b), where
        for key in a:
            same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and torch.equal(a, b), where
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for i, pair in enumerate(zip(a, b)):
            same(*pair, f"{where}[{i}]")
    else:
        assert a == b, where


def computed(state: dict[str, Any]) -> dict[str, Any]:
    """A file without what says that a run was asked to stop there: then the published files lie beside the state."""
    if "notes" in state:
        del state["notes"]["published"], state["checksum"]
    return state


def compare(whole: Path, parts: Path) -> None:
    """Every file of the two runs but their logs' times."""
    names = [
        sorted(str(p.relative_to(r / "outputs")) for p in (r / "outputs").rglob("*") if p.is_file())
        for r in (whole, parts)
    ]
    assert set(names[0]) <= set(names[1]), set(names[0]) - set(names[1])
    # A run that is asked to stop writes the published files; one killed between a state and the removal of the oldest
    # leaves that one.
    more = set(names[1]) - set(names[0])
    assert all(Path(name).name.startswith(("gen_0", "dis_0", "ema_0", "resume_0")) for name in more), more
    assert sum(name.endswith(".pt") for name in names[0]) == 3 * ITERATIONS // 4 + 1 + 3
    for name in names[0]:
        files = [r / "outputs" / name for r in (whole, parts)]
        if name.endswith(".pt"):
            same(*(computed(load_file(file)) for file in files), name)
        elif name.endswith(".jpg"):
            assert files[0].read_bytes() == files[1].read_bytes(), name
    folders = [RunDirectory(r, "small") for r in (whole, parts)]
    histories = [folder.read_losses() for folder in folders]
    assert histories[0] == histories[1] and len(histories[0]["loss_gen_total"]) == ITERATIONS
    assert all(folder.history.read_text().count("\n") == ITERATIONS for folder in folders)


def main() -> None:
    root, kills = Path(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(1)
    draw = random.Random(int(sys.argv[3]) if len(sys.argv) > 3 else 0)
    pictures(root)
    begin = time.monotonic()
    assert os.waitpid(forked(lambda: run(root, root / "whole")), 0)[1] == 0
    seconds = time.monotonic() - begin
    died = {"clock": 0, "save": 0, "term": 0}
    runs = 0
    while died["clock"] + died["save"] < kills:
        runs += 1
        out = root / f"parts{runs}"
        while True:
            kind = draw.choice(["clock", "clock", "clock", "save", "save", "save", "term"])
            begun = root / "begun"
            begun.unlink(missing_ok=True)
            if kind == "save":
                work = dying_run(root, out, draw)
            else:
                work = partial(telling_run, root, out, begun) if kind == "term" else partial(run, root, out)
            pid = forked(work)
            if kind != "save":
                time.sleep(draw.uniform(0, seconds / 10))
                os.kill(pid, signal.SIGKILL if kind == "clock" else signal.SIGTERM)
            status = os.waitpid(pid, 0)[1]
            last = out / "outputs/small/checkpoints" / f"gen_{ITERATIONS:08d}.pt"
            if kind == "term" and status != 0:  # before training, or after its very end
                assert not begun.exists() or last.exists(), f"asked to stop in training, it did not: {status}"
            if os.WIFSIGNALED(status):
                died["term" if os.WTERMSIG(status) == signal.SIGTERM else kind] += 1
            else:
                assert os.WEXITSTATUS(status) == 0, f"a run failed after {died}"
                died["term"] += kind == "term"
            if last.exists() and status == 0:
                break
        compare(root / "whole", out)
    print(
        f"{died['clock']} killed by the clock, {died['save']} inside a save, {died['term']} asked to stop; {runs} runs"
    )


if __name__ == "__main__":
    main()
