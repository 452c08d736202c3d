"""The training loop."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from rich.console import Console
from rich.text import Text
from torch import Tensor

from munit_fast.config import Config
from munit_fast.data import ImageSet, UnpairedBatches, display_images
from munit_fast.data.configured import Sources, augmentation, open_sources
from munit_fast.pages.training import TrainingStatus, find_grids, write_training_page
from munit_fast.train.changes import RunConfig, configure, follow
from munit_fast.train.distributed import Ranks, process_group, restarted
from munit_fast.train.evaluation import Evaluations
from munit_fast.train.events import EventLog
from munit_fast.train.loggers import RunLog, import_wandb, peak_memory_mb, shown_samples, write_grids
from munit_fast.train.losses import Losses
from munit_fast.train.measured import Measured, open_measured
from munit_fast.train.noise import iteration_noise, iteration_seed
from munit_fast.train.optim import logged_rates
from munit_fast.train.options import TrainOptions, TrainResult
from munit_fast.train.progress import TrainingProgress
from munit_fast.train.run_dir import RunDirectory, RunDirectoryError, RunStatus
from munit_fast.train.run_state import save_published, save_state
from munit_fast.train.setup import TRAINERS, RunSetup
from munit_fast.train.signals import StopRequest
from munit_fast.train.summary import BEGIN, END, write_summary
from munit_fast.utils.cudnn import tuned_convolutions

_PAGE_SECONDS = 60  # the page is written that often, and reloads itself


def train(
    cfg: Config,
    options: TrainOptions,
    *,
    config_text: str,
    console: Console | None = None,
) -> TrainResult:
    """Train MUNIT or UNIT until max_iter, a time limit, Ctrl-C or SIGTERM; each of them saves first.

    Under torchrun it is one rank of many; the first one writes the files.

    Args:
        cfg: the configuration.
        options: what a run needs beyond it.
        config_text: the configuration as it was written; config_as_given.yaml keeps it beside the results.
        console: where messages and progress go; None: standard error.

    Returns:
        How the run ended.

    Raises:
        ConfigError, ImageError, LoaderError, CheckpointError, RunDirectoryError, FileWriteError, LogError: a file or a
            value is wrong; one clear message each.
        NotFiniteError: too many iterations in a row without a step.
        PeerError, LostPeerError: another rank failed or is gone.
    """
    with process_group(options.device, options.peer_timeout) as ranks, ExitStack() as held:
        folder = RunDirectory(options.output_path, options.name)
        console = console or Console(stderr=True)
        elsewhere = RunStatus(ranks.max(folder.status))
        with ranks.main_first():  # what is wrong for all of them is reported once
            if options.wandb is not None and ranks.main:
                import_wandb()  # reported before anything is made
            if ranks.main:
                if elsewhere > folder.status:
                    raise RunDirectoryError(
                        f"{folder.root}: another process of the job sees a run under this name, and this one, which "
                        "writes the files, does not: it would begin anew. Give an --output_path on storage that every "
                        "machine sees, or remove what is left of that run there"
                    )
                resume = options.resume or ((options.auto_resume or restarted()) and folder.has_run)
                options = replace(options, resume=resume)
                decided = configure(cfg, options.trainer, options.overrides, folder, resume)
        decision = ranks.broadcast(decided.as_bytes() if ranks.main else None)
        if not ranks.main:
            decided = follow(cfg, options.overrides, decision)
        measured = None
        with ranks.main_first():
            if ranks.main:  # what is refused before leaves no folders
                asked = (options.impl, options.amp, ranks.size)
                TRAINERS[decided.algorithm].check(decided.config.hyperparameters(), *asked)
                sources = open_sources(decided.config, options.allow_outside)
                measured = open_measured(sources.config, options, sources, decided.algorithm)
                held.enter_context(folder.open(options.resume))
        ranges = ranks.broadcast(_ranges(sources.config) if ranks.main else b"")
        decided.config = decided.config.model_copy(update=json.loads(ranges))
        with ranks.main_first():
            if not ranks.main:
                sources = open_sources(decided.config, options.allow_outside)
        held.enter_context(tuned_convolutions(ranks.device))
        run = _Run(decided, replace(options, device=ranks.device), folder, sources, measured, console, ranks)
        held.callback(run.trainer.release_graphs)
        run.setup.keep_configuration(config_text)
        return run.train()


def _numbers(losses: Losses) -> dict[str, float]:
    """The losses of an update as numbers, sorted by name. Waits for a GPU."""
    return {name: float(value) for name, value in sorted(losses.items())}


def _ranges(cfg: Config) -> bytes:
    """The ranges of both domains: the main rank measures them for all."""
    return json.dumps({key: getattr(cfg, key) for key in ("range_a", "range_b")}).encode()


def _passed(deadline: float | None) -> bool:
    return deadline is not None and time.monotonic() >= deadline


def _may_lack_gradients(ranks: Ranks) -> bool:
    """Whether the weights after a failure may hold a step without the other ranks' gradients.

    NCCL exchanges them behind the CPU's back: when a rank is lost, steps that count as done here may have had none.
    """
    return ranks.size > 1 and ranks.device.type == "cuda"


class _Run:
    """The iterations of one session of a run, and what is logged, shown and saved between them."""

    def __init__(
        self,
        decided: RunConfig,
        options: TrainOptions,
        folder: RunDirectory,
        sources: Sources,
        measured: Measured | None,
        console: Console,
        ranks: Ranks,
    ) -> None:
        self.cfg = cfg = decided.config
        self.folder, self.console, self.ranks = folder, console, ranks
        if ranks.main:
            for note in sources.notes:
                console.print(Text(note), soft_wrap=True)
        self.events = EventLog(folder, console, ranks, options.patience)
        self.setup = setup = RunSetup(decided, options, folder, sources, console, ranks, self.events)
        self.options, self.trainer, self.start = setup.options, setup.trainer, setup.start
        self.dtype = torch.float64 if options.double else torch.float32
        crop = (cfg.crop_image_height, cfg.crop_image_width)
        self.batches = UnpairedBatches(
            sources.train_a,
            sources.train_b,
            crop,
            crop,
            setup.batch_size,
            seed=options.seed,
            num_workers=cfg.num_workers,
            start_iteration=self.start,
            rank=ranks.rank,
            world_size=ranks.size,
            report=self.events.log_data,
            augmentation_a=augmentation(cfg, "a"),
            augmentation_b=augmentation(cfg, "b"),
        )
        if ranks.main:
            folder.truncate_histories(self.start)
        settings = (self.events, console, self.options.amp, self.options.patience_evals)
        self.evaluation = Evaluations(cfg, measured, self.trainer, folder, ranks, *settings)
        if not ranks.main:
            return
        self.history, self.run_history = folder.read_losses(), folder.read_run()
        self._next_page = time.monotonic()
        self.display = {"train": self._display(sources.train_a, sources.train_b)}
        if sources.test_a is not None and sources.test_b is not None:
            self.display["test"] = self._display(sources.test_a, sources.test_b)
        else:
            console.print("no test images: grids show training images only")
        self.log = RunLog(folder, self.start, cfg.hyperparameters(), options.wandb)  # last: what fails leaves no logs

    def _save(self, done: int, published: bool = True) -> None:
        """Write the state, and the published files unless they are not due."""
        if not self.ranks.main:
            return
        self.folder.sync_histories()
        save_state(self.trainer, self.folder.checkpoints, done, self.setup.notes(published), self.options.keep)
        if published:
            save_published(self.trainer, self.folder.checkpoints, done)
        self.saved = time.monotonic()

    def _display(self, set_a: ImageSet, set_b: ImageSet) -> tuple[Tensor, Tensor]:
        crop = (self.cfg.crop_image_height, self.cfg.crop_image_width)
        count = min(self.cfg.display_size, len(set_a), len(set_b))
        a, b = (display_images(images, crop, count, skip_unreadable=True) for images in (set_a, set_b))
        count = min(len(a), len(b))
        return a[:count].to(self.options.device), b[:count].to(self.options.device)

    def train(self) -> TrainResult:
        begin = time.monotonic()
        done = saved = self.start
        whole = True  # False in the middle of an iteration
        if self.ranks.main:
            batch = self.setup.data_notes["global_batch"]
            self.folder.append_event({"kind": BEGIN, "iteration": done, "global_batch": batch})
            self._write_summary(done)  # of a run that is killed now this is what there will be
        main, failed = self.ranks.main, True
        limit = self.options.time_limit
        deadline = None if limit is None else begin + limit
        self.saved = begin
        quiet = self.console if main else Console(quiet=True)
        self.bar = TrainingProgress(quiet, self.start, self.cfg.max_iter, deadline)
        with StopRequest() as stop:  # a signal during the last save is too late to ask for anything
            self.evaluation.stop_wanted = lambda: stop.requested
            try:
                with self.bar:
                    self._log_evaluation(done, self.evaluation.begin(done))
                    batches = iter(self.batches)
                    while self._goes_on(done) and not self.ranks.should_stop(stop.requested or _passed(deadline)):
                        x_a, x_b = next(batches)
                        whole = False
                        self._iterate(x_a, x_b, done + 1)
                        done, whole = done + 1, True
                        self.bar.advance(done)
                        if self._after_iteration(done):
                            saved = done
                failed = False
            finally:
                # Whatever ended the run (a vanished file, a full disk for the logs), the iterations done are kept; not
                # after a second Ctrl-C in the middle of one, where the discriminator may be a step ahead.
                try:
                    if saved != done and whole and not (failed and _may_lack_gradients(self.ranks)):
                        self._save(done)
                except BaseException:
                    failed = True
                    raise
                finally:
                    if main:
                        self.log.close(failed)
            finished, seconds = done >= self.cfg.max_iter, time.monotonic() - begin
            early = self.evaluation.exhausted and not finished
            if main:
                self._write_page(done, refresh=False)
                how = "finished" if finished else "finished early" if early else "stopped"
                self.folder.append_event({"kind": END, "iteration": done, "seconds": round(seconds, 1), "message": how})
                self._write_summary(done)
        return TrainResult(self.folder, done, seconds, finished, self.trainer.skipped_steps, main, early)

    def _goes_on(self, done: int) -> bool:
        return done < self.cfg.max_iter and not self.evaluation.exhausted

    def _write_summary(self, done: int) -> None:
        write_summary(self.folder, done, self.setup.about | self.evaluation.summary())

    def _iterate(self, x_a: Tensor, x_b: Tensor, iteration: int) -> None:
        seed = self.options.seed
        torch.manual_seed(iteration_seed(seed, iteration))
        x_a, x_b = x_a.to(self.dtype), x_b.to(self.dtype)
        first = self.ranks.rank * self.setup.batch_size
        noise = iteration_noise(self.trainer, x_a, x_b, seed, iteration, first)
        self.losses = self.trainer.update(x_a, x_b, self.setup.hyperparameters, noise)
        self.last = (x_a, x_b, noise)

    def _after_iteration(self, done: int) -> bool:
        """Log, show and save as the configuration says; whether the run was saved with the published files."""
        self.events.check_steps(self.trainer, self.batches, done, self.last, done % self.cfg.log_iter == 0)
        losses = self.ranks.mean(_numbers(self.losses)) if done % self.cfg.log_iter == 0 else {}
        if self.ranks.main and losses:
            self._log(done, losses)
        row = self.evaluation.after(done)
        if not self.ranks.main:
            return False
        self._log_evaluation(done, row)
        cfg, better = self.cfg, row is not None and row is self.evaluation.history.best
        if done % cfg.image_save_iter == 0:
            for split in self.display:
                self._write_grids(split, f"{split}_{done:08d}", done)
        if done % cfg.image_display_iter == 0:
            self._write_grids("train", "train_current")
        if done % cfg.image_save_iter == 0 or done % cfg.image_display_iter == 0:
            self._write_page(done, refresh=True)
        due = done % cfg.snapshot_save_iter == 0
        if due or better or time.monotonic() - self.saved >= 60 * self.options.save_minutes:
            self._save(done, published=due)
        if better:  # after its state: a run never goes on from before the best that it has kept
            self.evaluation.keep_best()
        return due

    def _log(self, done: int, losses: Mapping[str, float]) -> None:
        run = self._measure()
        self.bar.losses(losses)
        self.log.numbers(done, losses, run)
        for history, values in ((self.history, losses), (self.run_history, run)):
            for name, value in values.items():
                history.setdefault(name, []).append((done, value))
        if time.monotonic() >= self._next_page:
            self._write_page(done, refresh=True)

    def _log_evaluation(self, done: int, row: Mapping[str, Any] | None) -> None:
        if row is not None:
            self.bar.speedometer.leave_out(row["seconds"], self.cfg.eval_iter)
            self.log.evaluation(done, row["values"])
            self._write_page(done, refresh=True)

    def _measure(self) -> dict[str, float]:
        """What the run is doing, besides its losses."""
        speed, memory = self.bar.speedometer.speed, peak_memory_mb(self.options.device)
        measured = {
            **logged_rates(self.trainer),
            "iterations_per_second": speed,
            "images_per_second": speed * 2 * self.setup.batch_size * self.ranks.size,  # of both domains
            "skipped_steps": float(self.trainer.skipped_steps),
        }
        return measured if memory is None else measured | {"memory_mb": memory}

    def _write_grids(self, split: str, postfix: str, iteration: int | None = None) -> None:
        """Write the grids to the run's images; those of an `iteration` to be kept go to the logs too."""
        state = torch.get_rng_state()
        images = shown_samples(self.trainer.sample(*self.display[split]), self.cfg)
        write_grids(images, self.folder.images, postfix)
        if iteration is not None:
            self.log.grids(iteration, split, images)
        torch.set_rng_state(state)

    def _write_page(self, done: int, refresh: bool) -> None:
        begin, meter, root = time.monotonic(), self.bar.speedometer, self.folder.root
        left = meter.seconds_left(done, self.cfg.max_iter)
        write_training_page(
            root,
            title=self.folder.name,
            images=find_grids(root),
            losses=self.history,
            status=TrainingStatus(
                done,
                self.cfg.max_iter,
                meter.speed or None,
                left if refresh else None,
                stopped=not refresh,
                early=self.evaluation.exhausted,
            ),
            current=[f"images/{path.name}" for path in sorted(self.folder.images.glob("gen_*_current.jpg"))],
            refresh_seconds=_PAGE_SECONDS if refresh else None,
            run=self.run_history,
            metrics=self.evaluation.history.curves(),
            metric_errors=self.evaluation.history.curves("stderr"),
            best=self.evaluation.summary().get("best"),
        )
        # A page of 100,000 logged iterations takes 0.8 s on a busy core: never more than a hundredth of the time.
        self._next_page = time.monotonic() + max(_PAGE_SECONDS, 100 * (time.monotonic() - begin))
