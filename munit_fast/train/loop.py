"""The training loop."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.text import Text
from torch import Tensor

from munit_fast.amp import Workload, amp_dtype, resolve
from munit_fast.config import Config
from munit_fast.data import ImageSet, UnpairedBatches, display_images
from munit_fast.data.sources import Sources, open_sources
from munit_fast.pages.training import TrainingStatus, find_grids, write_training_page
from munit_fast.train.distributed import Ranks, joined, restarted
from munit_fast.train.events import Faults
from munit_fast.train.grids import write_grids
from munit_fast.train.loggers import RunLog, import_wandb, peak_memory_mb
from munit_fast.train.losses import Losses
from munit_fast.train.progress import TrainingProgress
from munit_fast.train.run_dir import RunFolder, RunFolderError
from munit_fast.train.run_state import KEEP, apply_state, find_state, save_published, save_state, state_from_bytes
from munit_fast.train.signals import StopRequest
from munit_fast.train.speed import choose_threads
from munit_fast.train.summary import BEGIN, END, write_summary
from munit_fast.train.trainer import MUNIT_Trainer, TrainingNoise, UNIT_Trainer
from munit_fast.utils.cudnn import tuned_convolutions

_PAGE_SECONDS = 60  # the page is written that often, and reloads itself

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
    amp: str = "auto"  # see munit_fast.amp; "auto" goes on with what a resumed run began with
    threads: int | None = None  # of torch on a CPU; None: as they are, 0: what trains fastest here
    impl: str = "auto"  # who computes; "reference": the plain networks and updates
    auto_resume: bool = False  # resume where there is a run, else begin one
    checkpointing: bool = False  # compute activations again in the backward
    save_minutes: float = 15.0  # between states; the published files follow the configuration
    keep: int = KEEP  # states
    patience: int = 50  # iterations in a row without a step, after which the run ends
    peer_timeout: float = 300.0  # seconds after which a silent rank counts as lost
    double: bool = False  # float64, to compare runs
    allow_outside: bool = False  # list files may name images outside their folder
    wandb: str | None = None  # the Weights & Biases project to log to as well


@dataclass
class TrainResult:
    """How a run ended."""

    folder: RunFolder
    iterations: int
    seconds: float
    finished: bool
    skipped_steps: int
    main: bool = True  # whether this process wrote the files


def train(
    cfg: Config,
    options: TrainOptions,
    *,
    config_text: str,
    console: Console | None = None,
) -> TrainResult:
    """Train MUNIT or UNIT until max_iter, a time limit, Ctrl-C or SIGTERM; each of them saves first.

    `config_text` is kept beside the results.
    Under torchrun it is one rank of many; the first one writes the files.
    Raises ConfigError, ImageError, LoaderError, CheckpointError, RunFolderError, FileWriteError, NotFiniteError,
    PeerError or LostPeerError, each with one clear message.
    """
    with joined(options.device, options.peer_timeout) as ranks, ExitStack() as held:
        folder = RunFolder(options.output_path, options.name)
        console = console or Console(stderr=True)
        elsewhere = ranks.most(folder.traces)
        with ranks.main_first():  # what is wrong for all of them is said once
            if options.wandb is not None and ranks.main:
                import_wandb()  # said before anything is made
            sources = open_sources(cfg, options.allow_outside)
            if ranks.main:
                if elsewhere > folder.traces:
                    raise RunFolderError(
                        f"{folder.root}: another process of the job sees a run under this name, and this one, which "
                        "writes the files, does not: it would begin anew. Give an --output_path on storage that every "
                        "machine sees, or remove what is left of that run there"
                    )
                resume = options.resume or ((options.auto_resume or restarted()) and folder.has_run)
                held.enter_context(folder.opened(resume))
                options = replace(options, resume=resume)
        held.enter_context(tuned_convolutions(ranks.device))
        run = _Run(cfg, replace(options, device=ranks.device), folder, sources, console, ranks)
        if ranks.main:
            folder.write_config(config_text)
        return run.train()


def _numbers(losses: Losses) -> dict[str, float]:
    """The losses of an update as numbers, sorted by name. Waits for a GPU."""
    return {name: float(value) for name, value in sorted(losses.items())}


def iteration_seed(seed: int, iteration: int, place: int = 0) -> int:
    """The seed of the noise of the image at `place` in an iteration's global batch.

    It does not depend on what ran before, nor on how many processes and parts the batch is divided into.
    """
    return int(np.random.SeedSequence([seed, iteration, place]).generate_state(1, np.uint64)[0] >> 1)


def iteration_noise(trainer: Any, x_a: Tensor, x_b: Tensor, seed: int, iteration: int, first: int) -> TrainingNoise:
    """The noise of an iteration for the images from place `first` of the global batch on, on `trainer.noise_device`."""
    draws, generator = [], torch.Generator(trainer.noise_device)
    for i in range(x_a.shape[0]):
        generator.manual_seed(iteration_seed(seed, iteration, first + i))
        draws.append(trainer.draw_noise(x_a[i : i + 1], x_b[i : i + 1], generator))
    of_dis, of_gen = ([torch.cat(parts) for parts in zip(*(draw[kind] for draw in draws))] for kind in (0, 1))
    return of_dis, of_gen


def _about_images(image_set: ImageSet) -> dict[str, Any]:
    """What the data order hangs on besides the seed: how many images, and a digest of their names in their folder."""
    names = [os.path.relpath(os.path.abspath(image_set.path(i)), image_set.folder) for i in range(len(image_set))]
    digest = hashlib.sha256("\0".join(names).encode(errors="surrogateescape")).hexdigest()
    return {"count": len(names), "names": digest}


def _data_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """A line for each thing that gives a resumed run another data order than it would have had."""
    old_batch, batch = before.get("global_batch", now["global_batch"]), now["global_batch"]
    if old_batch != batch:
        yield f"this run began with {old_batch} images of a domain in an iteration; with {batch} the data order changes"
    for domain, images in now["images"].items():
        old = before.get("images", {}).get(domain, images)
        if old["count"] != images["count"]:
            yield (
                f"domain {domain} had {old['count']} training images and has {images['count']} now: the data order is "
                "another one"
            )
        elif old != images:
            yield f"domain {domain} has other training images, by their names, than before: the run sees other ones"


def _passed(deadline: float | None) -> bool:
    return deadline is not None and time.monotonic() >= deadline


def _may_lack_gradients(ranks: Ranks) -> bool:
    """Whether the weights after a failure may hold a step without the other ranks' gradients.

    NCCL exchanges them behind the CPU's back: when a rank is lost, steps that count as done here may have had none.
    """
    return ranks.size > 1 and ranks.device.type == "cuda"


class _Run:
    def __init__(
        self, cfg: Config, options: TrainOptions, folder: RunFolder, sources: Sources, console: Console, ranks: Ranks
    ) -> None:
        self.cfg, self.options, self.folder, self.console, self.ranks = cfg, options, folder, console, ranks
        self.faults = Faults(folder, console, ranks, options.patience)
        torch.manual_seed(options.seed)
        self.hyperparameters: Mapping[str, Any] = cfg.hyperparameters() | {"vgg_model_path": str(options.output_path)}
        if not ranks.main:
            self.hyperparameters = {**self.hyperparameters, "ema_half_life": 0}  # one rank keeps the average
        self.dtype = torch.float64 if options.double else torch.float32
        self.trainer = self._make_trainer()
        self.batch_size = cfg.batch_size * cfg.accumulation
        self.data_notes: dict[str, Any] = {
            "global_batch": self.batch_size * ranks.size,
            "images": {"A": _about_images(sources.train_a), "B": _about_images(sources.train_b)},
        }
        self.start = self._resume()
        if ranks.size > 1:
            self.trainer.distribute()
        crop = (cfg.crop_image_height, cfg.crop_image_width)
        self.batches = UnpairedBatches(
            sources.train_a,
            sources.train_b,
            crop,
            crop,
            self.batch_size,
            seed=options.seed,
            num_workers=cfg.num_workers,
            start_iteration=self.start,
            rank=ranks.rank,
            world_size=ranks.size,
            report=self.faults.data,
        )
        if not ranks.main:
            return
        folder.cut_losses(self.start)
        self.history, self.run_history = folder.read_losses(), folder.read_run()
        self._next_page = time.monotonic()
        self.display = {"train": self._display(sources.train_a, sources.train_b)}
        if sources.test_a is not None and sources.test_b is not None:
            self.display["test"] = self._display(sources.test_a, sources.test_b)
        else:
            console.print("no test images: grids show training images only")
        self.log = RunLog(folder, self.start, cfg.hyperparameters(), options.wandb)  # last: what fails leaves no logs

    def _make_trainer(self) -> Any:
        options = self.options
        trainer = TRAINERS[options.trainer](
            self.hyperparameters, impl=options.impl, amp=options.amp, checkpointing=options.checkpointing
        )
        return trainer.to(options.device, self.dtype)

    def _choose_precision_and_threads(self, notes: Mapping[str, Any]) -> None:
        """Settle the precision, the same on every rank, and the threads; `notes` are those of the state to go on from.

        Both decide on the last bits of what is computed, so a resumed run takes what it began with.
        """
        options, amp = self.options, b""
        if self.ranks.main:
            kept = {"bfloat16": "bf16", "float16": "fp16", "off": "off"}.get(str(notes.get("amp")))
            if kept == "fp16" and options.impl == "reference":  # which has no loss scaling
                kept = None
            if options.amp == "auto" and kept and notes.get("device", options.device.type) == options.device.type:
                amp = kept.encode()
            else:
                load = Workload.of(self.cfg, self.batch_size, training=True)
                amp = resolve(options.amp, options.device, load).encode()
        self.options = replace(options, amp=self.ranks.from_main(amp).decode())
        self.trainer.amp = self.options.amp
        every = torch.get_num_threads()
        if options.threads == 0 and self.ranks.size == 1:
            chosen, of = (notes.get(key) for key in ("threads", "threads_of"))
            if isinstance(chosen, int) and chosen > 0 and of == every:
                torch.set_num_threads(chosen)
            else:
                choose_threads(self._make_trainer, self.cfg, options.device, self.console)
        elif options.threads:
            torch.set_num_threads(options.threads)
        self.threads = {"threads": torch.get_num_threads(), "threads_of": every}

    def _resume(self) -> int:
        """Take up the newest good state, which the main rank reads for all; the iterations done."""
        data, ranks = b"", self.ranks
        with ranks.main_first():
            found = None
            if ranks.main and self.options.resume:
                found = find_state(self.folder.checkpoints)
                for reason in found.damaged.values():
                    self.faults.note("checkpoint", f"{reason}; going on from {found.source.name} instead")
                found.move_damaged_aside()
        notes = found.state.get("notes") if found is not None else None
        self._choose_precision_and_threads(notes if isinstance(notes, Mapping) else {})
        with ranks.main_first():
            if found is not None:
                start, notes = apply_state(self.trainer, found.state, found.source, ranks.size)
                data = found.as_bytes() if ranks.size > 1 else b""
                self._take_up(notes)
                if notes.get("published"):  # a process killed after the state may not have come to these
                    save_published(self.trainer, self.folder.checkpoints, start)
                self.console.print(f"resuming after iteration {start}")
        data = ranks.from_main(data)
        if data and not ranks.main:
            apply_state(self.trainer, state_from_bytes(data, "the main rank's state"), self.folder.checkpoints)
        return self.trainer.iterations

    def _take_up(self, notes: Mapping[str, Any]) -> None:
        """Continue what an earlier process counted, and say where this run will not be what it began as."""
        amp = str(amp_dtype(self.options.amp, self.options.device) or "off").removeprefix("torch.")
        if notes.get("amp", amp) != amp:
            self.console.print(f"this run began in {notes['amp']} (--amp); it goes on in {amp}")
        if notes.get("seed", self.options.seed) != self.options.seed:
            self.console.print(
                f"this run began with --seed {notes['seed']}; with --seed {self.options.seed} it goes on with other "
                "data order and styles"
            )
        for line in _data_changes(notes, self.data_notes):
            self.console.print(Text(line), soft_wrap=True)
        rate = self.trainer.gen_opt.param_groups[0]["initial_lr"]
        if rate != self.cfg.lr:
            self.console.print(f"the checkpoint's learning rate {rate:g} is kept; lr: {self.cfg.lr:g} has no effect")

    def _save(self, done: int, published: bool = True) -> None:
        """Write the state, and the published files unless they are not due."""
        if not self.ranks.main:
            return
        amp = amp_dtype(self.options.amp, self.options.device)
        notes = {
            "seed": self.options.seed,
            "amp": str(amp or "off").removeprefix("torch."),
            "device": self.options.device.type,
            **self.threads,
            "published": published,
            **self.data_notes,
        }
        self.folder.sync_losses()
        save_state(self.trainer, self.folder.checkpoints, done, notes, self.options.keep)
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
            batch = self.data_notes["global_batch"]
            self.folder.append_event({"kind": BEGIN, "iteration": done, "global_batch": batch})
            write_summary(self.folder, done)  # of a run that is killed now this is what there will be
        main, failed = self.ranks.main, True
        limit = self.options.time_limit
        deadline = None if limit is None else begin + limit
        self.saved = begin
        quiet = self.console if main else Console(quiet=True)
        self.bar = TrainingProgress(quiet, self.start, self.cfg.max_iter, deadline)
        with StopRequest() as stop:  # a signal during the last save is too late to ask for anything
            try:
                with self.bar:
                    batches = iter(self.batches)
                    while done < self.cfg.max_iter and not self.ranks.stop(stop.requested or _passed(deadline)):
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
            if main:
                self._write_page(done, refresh=False)
                how = "finished" if finished else "stopped"
                self.folder.append_event({"kind": END, "iteration": done, "seconds": round(seconds, 1), "message": how})
                write_summary(self.folder, done)
        return TrainResult(self.folder, done, seconds, finished, self.trainer.skipped_steps, main)

    def _iterate(self, x_a: Tensor, x_b: Tensor, iteration: int) -> None:
        seed = self.options.seed
        torch.manual_seed(iteration_seed(seed, iteration))
        x_a, x_b = x_a.to(self.dtype), x_b.to(self.dtype)
        first = self.ranks.rank * self.batch_size
        noise = iteration_noise(self.trainer, x_a, x_b, seed, iteration, first)
        self.losses = self.trainer.update(x_a, x_b, self.hyperparameters, noise)
        self.last = (x_a, x_b, noise)

    def _after_iteration(self, done: int) -> bool:
        """Log, show and save as the configuration says; whether the run was saved with the published files."""
        self.faults.check_steps(self.trainer, self.batches, done, self.last, done % self.cfg.log_iter == 0)
        losses = self.ranks.mean(_numbers(self.losses)) if done % self.cfg.log_iter == 0 else {}
        if not self.ranks.main:
            return False
        cfg = self.cfg
        if done % cfg.log_iter == 0:
            self._log(done, losses)
        if done % cfg.image_save_iter == 0:
            for split in self.display:
                self._write_grids(split, f"{split}_{done:08d}", done)
        if done % cfg.image_display_iter == 0:
            self._write_grids("train", "train_current")
        if done % cfg.image_save_iter == 0 or done % cfg.image_display_iter == 0:
            self._write_page(done, refresh=True)
        if done % cfg.snapshot_save_iter == 0:
            self._save(done)
            return True
        if time.monotonic() - self.saved >= 60 * self.options.save_minutes:
            self._save(done, published=False)
        return False

    def _log(self, done: int, losses: Mapping[str, float]) -> None:
        run = self._measure()
        self.bar.losses(losses)
        self.log.numbers(done, losses, run)
        for history, values in ((self.history, losses), (self.run_history, run)):
            for name, value in values.items():
                history.setdefault(name, []).append((done, value))
        if time.monotonic() >= self._next_page:
            self._write_page(done, refresh=True)

    def _measure(self) -> dict[str, float]:
        """What the run is doing, besides its losses."""
        speed, memory = self.bar.speedometer.speed, peak_memory_mb(self.options.device)
        measured = {
            "learning_rate": float(self.trainer.gen_opt.param_groups[0]["lr"]),
            "iterations_per_second": speed,
            "images_per_second": speed * 2 * self.batch_size * self.ranks.size,  # of both domains
            "skipped_steps": float(self.trainer.skipped_steps),
        }
        return measured if memory is None else measured | {"memory_mb": memory}

    def _write_grids(self, split: str, postfix: str, iteration: int | None = None) -> None:
        """Write the grids to the run's images; those of an `iteration` to be kept go to the logs too."""
        state = torch.get_rng_state()
        images = self.trainer.sample(*self.display[split])
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
                done, self.cfg.max_iter, meter.speed or None, left if refresh else None, stopped=not refresh
            ),
            current=[f"images/{path.name}" for path in sorted(self.folder.images.glob("gen_*_current.jpg"))],
            refresh_seconds=_PAGE_SECONDS if refresh else None,
            run=self.run_history,
        )
        # A page of 100,000 logged iterations takes 0.8 s on a busy core: never more than a hundredth of the time.
        self._next_page = time.monotonic() + max(_PAGE_SECONDS, 100 * (time.monotonic() - begin))
