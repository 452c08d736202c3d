"""What a run is configured as: the given file, what --override changes, and for a resumed run what it was before."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from munit_fast.config import Config, ConfigError
from munit_fast.config.presets import RATES
from munit_fast.models.algorithm import choose_algorithm, complete_values, flat, given, override, with_values
from munit_fast.train.run_dir import RunDirectory

# What may change between two sessions: how much is logged, saved and shown, where the run ends, and test images.
FREE = {
    *("max_iter", "log_iter", "image_save_iter", "image_display_iter", "snapshot_save_iter", "display_size"),
    *("eval_iter", "eval_images", "eval_styles", "eval_metric", "eval_share"),
    *("num_workers", "show_channels_a", "show_channels_b", "preset"),
    *(f"data_{kind}_test_{domain}" for kind in ("folder", "list") for domain in "ab"),
}
TRAINING_IMAGES = {"data_root", *(f"data_{k}_train_{domain}" for k in ("folder", "list") for domain in "ab")}
BATCH = {"batch_size", "accumulation"}
_OPTIMIZER = ("lr", "beta1", "beta2", "weight_decay")


@dataclass(frozen=True)
class Change:
    """A key of a resumed run that has another value than before."""

    key: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.key}: {_shown(self.old)} -> {_shown(self.new)}"

    def refusal(self, reason: str = "") -> str:
        """The line for a change that was not asked for."""
        assignment = shlex.quote(f"{self.key}={_shown(self.new)}")
        return f"{self}{reason}: give --override {assignment} to change it, or put the old value back"


@dataclass
class RunConfig:
    """The configuration that a run goes by.

    Attributes:
        config: as given, with what was overridden and with what a resumed run keeps.
        algorithm: "MUNIT" or "UNIT".
        overridden: the keys that --override named.
        changes: of a resumed run, accepted.
        pending: of a resumed run; whether they change its mathematics, its state will tell.
        kept: what a resumed run keeps although the file has another value, since the file had that before, too.
        complete: whether the run's config.yaml held every value; else its state knows more of the optimizers.
        notes: what there is to say, a line each.
    """

    config: Config
    algorithm: str
    overridden: set[str] = field(default_factory=set)
    changes: list[Change] = field(default_factory=list)
    pending: list[Change] = field(default_factory=list)
    kept: dict[str, Any] = field(default_factory=dict)
    complete: bool = True
    notes: list[str] = field(default_factory=list)

    def settle(self, before: Mapping[str, Any], now: Mapping[str, Any], optimizers: Mapping[str, Any]) -> None:
        """Accept the pending changes that change no number, by the state that a run continues.

        Training images that changed in their place are no refusal: they are a change of their own, so that it is said
        and recorded.

        Args:
            before: the state's notes: "global_batch", "images".
            now: the same of this session.
            optimizers: the state's.

        Raises:
            ConfigError: a change was not asked for; one line each.
        """
        refused = []
        others = _other_images(before.get("images"), now["images"])
        for change in self.pending:
            if change.key in BATCH:
                same = before.get("global_batch") == now["global_batch"] and self.config.dis.norm != "bn"
                reason = f" ({now['global_batch']} images of a domain in an iteration, all processes together)"
            else:
                same = others.keys().isdisjoint("ab" if change.key == "data_root" else change.key[-1])
                reason = " (training images of other names)"
            if same:
                self.changes.append(change)
            else:
                refused.append(change.refusal(reason))
        self.changes += [Change(f"training images of domain {d.upper()}", *how) for d, how in others.items()]
        if not self.complete:
            named = {change.key for change in self.changes}
            values = complete_values(self.config, self.algorithm)
            for key, old in _optimizer_values(optimizers).items():
                change = Change(key, old, values[key])
                if old == values[key] or key in named:
                    continue
                if key in self.overridden:
                    self.changes.append(change)
                else:
                    refused.append(change.refusal(" (the checkpoint's)"))
        if refused:
            raise ConfigError("\n".join(refused))

    def as_bytes(self) -> bytes:
        """What the other processes of a job need beside their own configuration."""
        return json.dumps([self.algorithm, self.kept]).encode()


def configure(config: Config, asked: str, overrides: Sequence[str], folder: RunDirectory, resume: bool) -> RunConfig:
    """What a run goes by; for a resumed one, what has changed since.

    A key counts as changed where the given file has neither the value that the run has, nor the one that the file had
    when the run got its own: so an override lasts without being repeated.

    Args:
        config: the given configuration.
        asked: --trainer.
        overrides: --override, as `override` takes them.
        folder: of the run.
        resume: whether it is continued.

    Raises:
        ConfigError: the configuration is for the other algorithm, or changes what the run does without being asked to.
    """
    config, overridden = override(config, overrides)
    old, problem = folder.read_config() if resume else (None, "")
    found = RunConfig(config, choose_algorithm(config, asked, (old and old.trainer) or "MUNIT"), overridden)
    if problem:
        found.notes.append(f"{problem}; what has changed since is not known")
    found.complete = old is not None and old.trainer is not None
    if old is not None:
        # --preset is no part of the file that was given; the same one now fills it again.
        _compare(found, old, folder.read_given(config.preset if config.preset == old.preset else None))
    return found


def follow(config: Config, overrides: Sequence[str], decided: bytes) -> RunConfig:
    """What another process of the job goes by: its own configuration, as the main one decided.

    Args:
        config: the given configuration.
        overrides: --override.
        decided: the main process's `RunConfig.as_bytes`.

    Raises:
        ConfigError: as `override`.
    """
    config, overridden = override(config, overrides)
    algorithm, kept = json.loads(decided)
    return RunConfig(with_values(config, kept) if kept else config, algorithm, overridden, kept=kept)


def _compare(found: RunConfig, old: Config, file_before: Config | None) -> None:
    algorithm, overridden, of_preset = found.algorithm, found.overridden, set(old.preset_keys or ())
    now, before = complete_values(found.config, algorithm), complete_values(old, old.trainer or algorithm)
    said_before = {} if file_before is None else flat(file_before.model_dump(mode="json"))
    if "lr" in overridden:  # as in `override`, where this session's configuration does not name the preset
        overridden |= {key for key in of_preset.intersection(RATES) if now[key] is None}
    # What the preset gave and the file now gives is edited, though the value be the default that it had without.
    edited = of_preset.intersection(given(found.config)).difference(found.config.preset_keys or ())
    refused = []
    for key, value in now.items():
        # A key of the other algorithm only is not there, and one that this version has not known has its default.
        was = before.get(key, value)
        if value == was or key == "preset_keys":  # which say where values are from, and change none
            continue
        change = Change(key, was, value)
        if key not in overridden | edited and key in said_before and said_before[key] == value:
            found.kept[key] = was
            told = "preset" in found.kept and key in of_preset
            if value != "auto" and not told:
                found.notes.append(f"{key}: {_shown(was)} is kept, as this run was told; the file has {_shown(value)}")
        elif _of_networks(key):
            refused.append(f"{change}: a run keeps its networks; put the old value back, or begin another run")
        elif key in FREE or key in overridden:
            found.changes.append(change)
        elif key in BATCH or key in TRAINING_IMAGES:
            found.pending.append(change)
        else:
            refused.append(change.refusal())
    if refused:
        raise ConfigError("\n".join(refused))
    if old.preset and old.preset_keys is not None and found.kept.get("preset", found.config.preset) == old.preset:
        found.kept["preset_keys"] = [key for key in old.preset_keys if key not in overridden]
    if found.kept:
        found.config = with_values(found.config, found.kept)


def _other_images(before: Any, now: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """The training images of a state's notes and of this session, for each domain, "a" or "b", where they differ."""
    old = before if isinstance(before, Mapping) else {}
    return {
        domain.lower(): (_told(old[domain]), _told(images))
        for domain, images in now.items()
        if old.get(domain, images) != images
    }


def _told(images: Any) -> str:
    found = images if isinstance(images, Mapping) else {}
    return f"{found.get('count')} (names {str(found.get('names'))[:8]})"


def _of_networks(key: str) -> bool:
    if key.startswith(("gen.", "dis.")):
        return key != "dis.gan_type"
    return key in ("trainer", "init", "input_dim_a", "input_dim_b")


def _optimizer_values(optimizers: Mapping[str, Any]) -> dict[str, Any]:
    """What a state's optimizers go by; {} where they do not say."""
    try:
        group = optimizers["gen"]["param_groups"][0]
        rate = group.get("initial_lr", group["lr"])
        return dict(zip(_OPTIMIZER, (rate, *group["betas"], group["weight_decay"]), strict=True))
    except (KeyError, TypeError, ValueError, IndexError, AttributeError):
        return {}


def _shown(value: Any) -> str:
    """A value as one types it behind --override KEY=."""
    if value is None:
        return "null"
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    if isinstance(value, (str, list)):
        text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**9)
        return text.removesuffix("...\n").strip()
    return json.dumps(value)
