"""What a run settles before its first iteration: networks, precision, threads, and the state that it continues."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import PurePosixPath
from typing import Any

import torch
from rich.console import Console
from rich.text import Text

from munit_fast.amp import Workload, amp_dtype, resolve
from munit_fast.data import ImageSet
from munit_fast.data.configured import Sources
from munit_fast.models.algorithm import filled_values, left_values, preset_values, stated_algorithm, unread_keys
from munit_fast.train import warm
from munit_fast.train.changes import RunConfig
from munit_fast.train.distributed import Ranks
from munit_fast.train.events import EventLog
from munit_fast.train.initial import Initial, begin_from
from munit_fast.train.optim import initial_rate, scheduled_rates
from munit_fast.train.options import TrainOptions
from munit_fast.train.run_dir import RunDirectory
from munit_fast.train.run_state import apply_state, find_state, save_published, state_from_bytes
from munit_fast.train.speed import choose_threads
from munit_fast.train.summary import CHANGED, INITIAL
from munit_fast.train.trainer import MUNIT_Trainer, UNIT_Trainer

TRAINERS: dict[str, type[MUNIT_Trainer] | type[UNIT_Trainer]] = {"MUNIT": MUNIT_Trainer, "UNIT": UNIT_Trainer}
_AMP_NAMES = {"bfloat16": "bf16", "float16": "fp16", "off": "off"}  # as states note it -> as it is asked for


class RunSetup:
    """A trainer that is ready for the iteration after `start`, on every rank alike.

    Attributes:
        options: with the precision that was chosen.
        about: of the algorithm, for the summary.
        hyperparameters: as the trainer takes them.
        trainer: on its device; with several ranks it averages gradients over them.
        batch_size: images of a domain in an iteration on this rank.
        start: the iterations that are done.
        initial: what the networks began as in this session; None: random weights, or the state of a session before.
    """

    def __init__(
        self,
        decided: RunConfig,
        options: TrainOptions,
        folder: RunDirectory,
        sources: Sources,
        console: Console,
        ranks: Ranks,
        events: EventLog,
    ) -> None:
        self.decided, self.cfg, self.folder = decided, decided.config, folder
        self.options, cfg = options, decided.config
        self.console, self.ranks, self.events = console, ranks, events
        torch.manual_seed(options.seed)
        self.hyperparameters: Mapping[str, Any] = cfg.hyperparameters() | {"vgg_model_path": str(options.output_path)}
        if not ranks.main:
            self.hyperparameters = {**self.hyperparameters, "ema_half_life": 0}  # one rank keeps the average
        self.about: dict[str, Any] = {"trainer": decided.algorithm, "filled": filled_values(cfg, decided.algorithm)}
        self.trainer = self._make_trainer()
        self.batch_size = cfg.batch_size * cfg.accumulation
        self.data_notes: dict[str, Any] = {
            "global_batch": self.batch_size * ranks.size,
            "images": {"A": _image_notes(sources.train_a), "B": _image_notes(sources.train_b)},
        }
        self.initial: Initial | None = None
        self.start = self._load_newest_state()
        if ranks.size > 1:
            self.trainer.distribute()
        self._compile_kernels()

    def _compile_kernels(self) -> None:
        """Compile the Triton kernels of an iteration; under torchrun one process of each machine does, for all."""
        options, device = self.options, self.options.device
        first = int(os.environ.get("LOCAL_RANK", 0)) == 0
        if first and not options.double and warm.unsupported_reason(device, options.amp, options.impl) is None:
            try:
                named = (self.decided.algorithm, options.amp, self.batch_size)
                warm.compile_kernels(self.hyperparameters, *named, device, self.console, options.checkpointing)
            except Exception as error:  # Triton compiles them when they are launched, or says then what is wrong
                reason = (str(error) or type(error).__name__).partition("\n")[0]
                self.events.log("kernels", f"the kernels were not compiled ahead: {reason}")
        self.ranks.max(0)  # the others find them in the cache

    def notes(self, published: bool) -> dict[str, Any]:
        """What a state says about the run besides the trainer's state, as plain values.

        published: whether the published files are written with it.
        """
        return {
            "seed": self.options.seed,
            "amp": self._amp_name(),
            "device": self.options.device.type,
            **self.threads,
            "published": published,
            **self.data_notes,
        }

    def _amp_name(self) -> str:
        return str(amp_dtype(self.options.amp, self.options.device) or "off").removeprefix("torch.")

    def _make_trainer(self) -> Any:
        options = self.options
        trainer = TRAINERS[self.decided.algorithm](
            self.hyperparameters, impl=options.impl, amp=options.amp, checkpointing=options.checkpointing
        )
        return trainer.to(options.device, torch.float64 if options.double else torch.float32)

    def _load_newest_state(self) -> int:
        """Load the newest good state, which the main rank reads for all; returns the iterations done."""
        data, ranks = b"", self.ranks
        with ranks.main_first():
            loaded = None
            if ranks.main and self.options.resume:
                loaded = find_state(self.folder.checkpoints)
                for reason in loaded.damaged.values():
                    self.events.log("checkpoint", f"{reason}; going on from {loaded.source.name} instead")
                loaded.move_damaged_aside()
            if ranks.main and self.options.init_from is not None and loaded is None:
                self.initial = begin_from(self.trainer, self.options.init_from)  # the others take it in `distribute`
            notes = loaded.state.get("notes") if loaded is not None else None
            if loaded is not None:
                optimizers = loaded.state.get("optimizers", {})
                self.decided.settle(notes if isinstance(notes, Mapping) else {}, self.data_notes, optimizers)
        self._choose_precision_and_threads(notes if isinstance(notes, Mapping) else {})
        with ranks.main_first():
            if loaded is not None:
                start, notes = apply_state(self.trainer, loaded.state, loaded.source, ranks.size)
                data = loaded.as_bytes() if ranks.size > 1 else b""
                self._report_changes(notes)
                if self.trainer.options.ada is not None and "ada" not in loaded.state:
                    self.console.print(f"{loaded.source.name} knows nothing of ada_target: its probability starts at 0")
                if notes.get("published"):  # a process killed after the state may not have come to these
                    save_published(self.trainer, self.folder.checkpoints, start)
                self.console.print(f"resuming after iteration {start}")
        data = ranks.broadcast(data)
        if data and not ranks.main:
            apply_state(self.trainer, state_from_bytes(data, "the main rank's state"), self.folder.checkpoints)
        set_optimizers(self.trainer)
        if ranks.main:
            self._report_configuration()
        return int(self.trainer.iterations)

    def _choose_precision_and_threads(self, notes: Mapping[str, Any]) -> None:
        """Choose the precision, the same on every rank, and the threads; `notes` are those of the state to continue.

        Both decide on the last bits of what is computed, so a resumed run takes what it began with.
        """
        self.options = replace(self.options, amp=self._choose_precision(notes))
        self.trainer.amp = self.options.amp
        every = torch.get_num_threads()
        if self.options.threads == 0 and self.ranks.size == 1:
            chosen, of = (notes.get(key) for key in ("threads", "threads_of"))
            if isinstance(chosen, int) and chosen > 0 and of == every:
                torch.set_num_threads(chosen)
            else:
                choose_threads(self._make_trainer, self.cfg, self.options.device, self.console)
        elif self.options.threads:
            torch.set_num_threads(self.options.threads)
        self.threads = {"threads": torch.get_num_threads(), "threads_of": every}

    def _choose_precision(self, notes: Mapping[str, Any]) -> str:
        options, amp = self.options, b""
        if self.ranks.main:
            kept = _AMP_NAMES.get(str(notes.get("amp")))
            if kept == "fp16" and options.impl == "reference":  # which has no loss scaling
                kept = None
            if options.amp == "auto" and kept and notes.get("device", options.device.type) == options.device.type:
                amp = kept.encode()
            else:
                load = Workload.of(self.cfg, self.batch_size, training=True)
                amp = resolve(options.amp, options.device, load).encode()
        return self.ranks.broadcast(amp).decode()

    def _report_changes(self, notes: Mapping[str, Any]) -> None:
        """Print where this run will not be what it began as."""
        amp = self._amp_name()
        if notes.get("amp", amp) != amp:
            self.console.print(f"this run began in {notes['amp']} (--amp); it goes on in {amp}")
        if notes.get("seed", self.options.seed) != self.options.seed:
            self.console.print(
                f"this run began with --seed {notes['seed']}; with --seed {self.options.seed} it goes on with other "
                "data order and styles"
            )
        for line in _data_changes(notes, self.data_notes):
            self.console.print(Text(line), soft_wrap=True)

    def _report_configuration(self) -> None:
        """Print what the configuration does not say of itself, and where a resumed run departs from what it was."""
        decided, resumed = self.decided, self.options.resume
        if resumed and self.options.init_from is not None:
            self.console.print(Text(self._unread_model()), soft_wrap=True)
        for line in self.initial.lines if self.initial is not None else ():
            self.console.print(Text(line), soft_wrap=True)
        lines = list(decided.notes) + [f"changed: {change}" for change in decided.changes]
        if {"lr", "lr_gen", "lr_dis", "lr_policy", "step_size", "gamma"} & {change.key for change in decided.changes}:
            lines.append(_rates_line(self.trainer))
        stated = stated_algorithm(decided.config)
        if stated and stated[0] == "UNIT" and self.options.trainer == "auto":
            lines.append(f"training UNIT, since the configuration is one for it: {stated[1]}")
        if unread := unread_keys(decided.config, decided.algorithm):
            lines.append(f"{decided.algorithm} does not read {', '.join(unread)}")
        if decided.config.preset and not resumed:
            lines.append(f"filled by preset {decided.config.preset}: {_listed(preset_values(decided.config))}")
            if left := left_values(decided.config):
                which = f"given by the file or --override, so not filled by {decided.config.preset}"
                lines.append(f"{which}: {_listed(left)}")
        if (filled := self.about["filled"]) and not resumed:
            lines.append(f"not in the configuration, so as by default: {_listed(filled)}")
        for line in lines:
            self.console.print(Text(line), soft_wrap=True)

    def _unread_model(self) -> str:
        """The line on the model that a resumed run was told to begin from."""
        named = str(self.options.init_from)
        began = [event.get("from") for event in self.folder.read_events() if event["kind"] == INITIAL]
        if began and began[-1] == named:
            return f"this run began from {named}, and goes on from its own state"
        return (
            f"--init_from {named} is not read: this run goes on from its own state; to begin from it, choose another "
            "--output_path"
        )

    def keep_configuration(self, text: str) -> None:
        """Write the run's configuration, and what has changed in it. text: as it was given."""
        if not self.ranks.main:
            return
        self.folder.write_config(self.decided.config, self.decided.algorithm, text)
        if self.initial is not None:
            self.folder.append_event({"kind": INITIAL, "iteration": self.start, **self.initial.notes()})
        for change in self.decided.changes:
            self.folder.append_event({"kind": CHANGED, "iteration": self.start, **asdict(change)})


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items()) or "nothing"


def set_optimizers(trainer: Any) -> None:
    """Have both optimizers go by the trainer's hyperparameters; what a loaded state says is replaced.

    The rates are the schedule's for an `lr`, `lr_gen` and `lr_dis` that always were these.
    """
    hp = trainer.hyperparameters
    for update, rate in scheduled_rates(hp, trainer.iterations).items():
        for group in getattr(trainer, f"{update}_opt").param_groups:
            group.update(betas=(hp["beta1"], hp["beta2"]), weight_decay=float(hp["weight_decay"]))
            group.update(lr=rate, initial_lr=initial_rate(hp, update))


def _rates_line(trainer: Any) -> str:
    gen, dis = scheduled_rates(trainer.hyperparameters, trainer.iterations).values()
    if gen == dis:
        return f"the learning rate after iteration {trainer.iterations} is {gen:g}"
    return f"the learning rates after iteration {trainer.iterations} are {gen:g} (lr_gen) and {dis:g} (lr_dis)"


def _image_notes(image_set: ImageSet) -> dict[str, Any]:
    """What the data order is a function of besides the seed: the number of images and a digest of their names."""
    names = [image_set.source.name(i) for i in range(len(image_set))]
    folders = {PurePosixPath(name).parent for name in names}
    shared = PurePosixPath(os.path.commonpath(folders))
    names = [PurePosixPath(name).relative_to(shared).as_posix() for name in names]  # a data set may move
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
