"""The training loop."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from munit_fast.checkpoint import resume_run, save_run
from munit_fast.config import Config
from munit_fast.data import ImageSet, UnpairedBatches, display_images
from munit_fast.precision import amp_dtype
from munit_fast.trainers import MUNIT_Trainer, UNIT_Trainer
from munit_fast.training.folder import RunFolder
from munit_fast.training.grids import write_grids
from munit_fast.training.progress import TrainingProgress
from munit_fast.training.signals import StopRequest
from munit_fast.training.sources import Sources, open_sources
from munit_fast.web import TrainingStatus, find_grids, write_training_page

TRAINERS: dict[str, type[MUNIT_Trainer] | type[UNIT_Trainer]] = {"MUNIT": MUNIT_Trainer, "UNIT": UNIT_Trainer}


@dataclass
class TrainOptions:
    """What a run needs beyond its configuration."""

    name: str
    output_path: Path = Path(".")
    trainer: str = "MUNIT"
    resume: bool = False
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    seed: int = 0
    time_limit: float | None = None  # seconds of training
    amp: str = "auto"  # see munit_fast.precision
    impl: str = "auto"  # who computes; "reference": the plain networks and updates


@dataclass
class TrainResult:
    """How a run ended."""

    folder: RunFolder
    iterations: int
    seconds: float
    finished: bool
    skipped_steps: int


def train(
    cfg: Config,
    options: TrainOptions,
    *,
    config_text: str,
    console: Console | None = None,
) -> TrainResult:
    """Train MUNIT or UNIT until max_iter, a time limit, Ctrl-C or SIGTERM; each of them saves first.

    `config_text` is kept beside the results.
    Raises ConfigError, ImageError, CheckpointError, RunFolderError or FileWriteError, each with one clear message.
    """
    folder = RunFolder(options.output_path, options.name)
    sources = open_sources(cfg)
    with folder.opened(options.resume):
        run = _Run(cfg, options, folder, sources, console or Console(stderr=True))
        folder.write_config(config_text)
        return run.train()


def collect_losses(trainer: Any) -> dict[str, float]:
    """Every loss_* attribute of a trainer, under its published name."""
    found = {name: value for name, value in sorted(vars(trainer).items()) if name.startswith("loss_")}
    return {name: float(v.detach() if isinstance(v, Tensor) else v) for name, v in found.items()}


def iteration_seed(seed: int, iteration: int) -> int:
    """The seed of an iteration's style noise: it does not depend on what ran before, so a resumed run repeats it."""
    return int(np.random.SeedSequence([seed, iteration]).generate_state(1, np.uint64)[0] >> 1)


def _passed(deadline: float | None) -> bool:
    return deadline is not None and time.monotonic() >= deadline


class _Run:
    def __init__(
        self, cfg: Config, options: TrainOptions, folder: RunFolder, sources: Sources, console: Console
    ) -> None:
        self.cfg, self.options, self.folder, self.console = cfg, options, folder, console
        torch.manual_seed(options.seed)
        self.hyperparameters: Mapping[str, Any] = cfg.hyperparameters() | {"vgg_model_path": str(options.output_path)}
        trainer = TRAINERS[options.trainer](self.hyperparameters, impl=options.impl, amp=options.amp)
        self.trainer = trainer.to(options.device)
        self.start = 0
        if options.resume:
            self.start, notes = resume_run(self.trainer, folder.checkpoints)
            self._take_up(notes)
            console.print(f"resuming after iteration {self.start}")
        folder.cut_losses(self.start)
        self.history = folder.read_losses()
        crop = (cfg.crop_image_height, cfg.crop_image_width)
        self.batches = UnpairedBatches(
            sources.train_a,
            sources.train_b,
            crop,
            crop,
            cfg.batch_size,
            seed=options.seed,
            num_workers=cfg.num_workers,
            start_iteration=self.start,
        )
        self.display = {"train": self._display(sources.train_a, sources.train_b)}
        if sources.test_a is not None and sources.test_b is not None:
            self.display["test"] = self._display(sources.test_a, sources.test_b)
        else:
            console.print("no test images: grids show training images only")

    def _take_up(self, notes: Mapping[str, Any]) -> None:
        """Continue what an earlier process counted, and say where this run will not be what it began as."""
        self.trainer.skipped_steps = int(notes.get("skipped_steps", 0))
        self.trainer.load_scalers(notes.get("scalers", {}))
        amp = str(amp_dtype(self.options.amp, self.options.device) or "off").removeprefix("torch.")
        if notes.get("amp", amp) != amp:
            self.console.print(f"this run began with --amp {notes['amp']}; it goes on with {amp}")
        if notes.get("seed", self.options.seed) != self.options.seed:
            self.console.print(
                f"this run began with --seed {notes['seed']}; with --seed {self.options.seed} it goes on with other "
                "data order and styles"
            )
        rate = self.trainer.gen_opt.param_groups[0]["initial_lr"]
        if rate != self.cfg.lr:
            self.console.print(f"the checkpoint's learning rate {rate:g} is kept; lr: {self.cfg.lr:g} has no effect")

    def _save(self, done: int) -> None:
        amp = amp_dtype(self.options.amp, self.options.device)
        notes = {
            "seed": self.options.seed,
            "skipped_steps": self.trainer.skipped_steps,
            "amp": str(amp or "off").removeprefix("torch."),
            "scalers": self.trainer.scaler_states(),
        }
        save_run(self.trainer, self.folder.checkpoints, done, notes)

    def _display(self, set_a: ImageSet, set_b: ImageSet) -> tuple[Tensor, Tensor]:
        crop = (self.cfg.crop_image_height, self.cfg.crop_image_width)
        count = min(self.cfg.display_size, len(set_a), len(set_b))
        a, b = display_images(set_a, crop, count), display_images(set_b, crop, count)
        return a.to(self.options.device), b.to(self.options.device)

    def train(self) -> TrainResult:
        begin = time.monotonic()
        done = saved = self.start
        whole = True  # False in the middle of an iteration
        writer = SummaryWriter(str(self.folder.logs), purge_step=self.start + 1)
        limit = self.options.time_limit
        deadline = None if limit is None else begin + limit
        self.bar = TrainingProgress(self.console, self.start, self.cfg.max_iter, deadline)
        stop = StopRequest()
        try:
            with stop, self.bar:
                batches = iter(self.batches)
                while done < self.cfg.max_iter and not stop.requested and not _passed(deadline):
                    x_a, x_b = next(batches)
                    whole = False
                    self._iterate(x_a, x_b, done + 1)
                    done, whole = done + 1, True
                    self.bar.advance(done)
                    if self._after_iteration(done, writer):
                        saved = done
        finally:
            # Whatever ended the run (a vanished file, a full disk for the logs), the iterations done are kept; not
            # after a second Ctrl-C in the middle of one, where the discriminator may be a step ahead.
            if saved != done and whole:
                self._save(done)
            writer.close()
        self._write_page(done, refresh=False)
        finished = done >= self.cfg.max_iter
        return TrainResult(self.folder, done, time.monotonic() - begin, finished, self.trainer.skipped_steps)

    def _iterate(self, x_a: Tensor, x_b: Tensor, iteration: int) -> None:
        torch.manual_seed(iteration_seed(self.options.seed, iteration))
        self.trainer.update(x_a, x_b, self.hyperparameters)

    def _after_iteration(self, done: int, writer: SummaryWriter) -> bool:
        """Log, show and save as the configuration says; whether the run was saved."""
        cfg = self.cfg
        if done % cfg.log_iter == 0:
            self._log(done, writer)
        if done % cfg.image_save_iter == 0:
            for split in self.display:
                self._write_grids(split, f"{split}_{done:08d}")
        if done % cfg.image_display_iter == 0:
            self._write_grids("train", "train_current")
        if done % cfg.image_save_iter == 0 or done % cfg.image_display_iter == 0:
            self._write_page(done, refresh=True)
        if done % cfg.snapshot_save_iter == 0:
            self._save(done)
            return True
        return False

    def _log(self, done: int, writer: SummaryWriter) -> None:
        losses = collect_losses(self.trainer)
        self.bar.losses(losses)
        self.folder.append_losses(done, losses)
        for name, value in losses.items():
            writer.add_scalar(name, value, done)
            self.history.setdefault(name, []).append((done, value))
        writer.add_scalar("learning_rate", self.trainer.gen_opt.param_groups[0]["lr"], done)
        writer.add_scalar("iterations_per_second", self.bar.speedometer.speed, done)
        writer.add_scalar("skipped_steps", self.trainer.skipped_steps, done)

    def _write_grids(self, split: str, postfix: str) -> None:
        state = torch.get_rng_state()
        write_grids(self.trainer.sample(*self.display[split]), self.folder.images, postfix)
        torch.set_rng_state(state)

    def _write_page(self, done: int, refresh: bool) -> None:
        meter, root = self.bar.speedometer, self.folder.root
        left = meter.seconds_left(done, self.cfg.max_iter)
        write_training_page(
            root,
            title=self.folder.name,
            images=find_grids(root),
            losses=self.history,
            status=TrainingStatus(done, self.cfg.max_iter, meter.speed or None, left if refresh else None),
            current=[f"images/{path.name}" for path in sorted(self.folder.images.glob("gen_*_current.jpg"))],
            refresh_seconds=60 if refresh else None,
        )
