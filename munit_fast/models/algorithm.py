"""Which algorithm a configuration is for, which of its keys that algorithm reads, and how single keys are changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from munit_fast.config import MAX_BYTES, PRESETS, Config, ConfigError, make_config
from munit_fast.config.presets import RATES

ALGORITHMS = ("MUNIT", "UNIT")
# What only one of the two reads. A published file has all keys of its algorithm, and none of the other's.
ONLY = {
    "MUNIT": ("gen.style_dim", "gen.mlp_dim", "recon_s_w", "recon_c_w", "mode_seeking_w", "diversity_w"),
    "UNIT": ("recon_kl_w", "recon_kl_cyc_w"),
}
# Of these, and of the keys of the networks; what is not published changes nothing where it is left out.
NOT_PUBLISHED = {"mode_seeking_w", "diversity_w", "gen.weight_norm", "dis.weight_norm", "dis.arch"}
_READ_BY_NONE = "recon_h_w"  # published UNIT files have it, at 0
_SECTIONS = ("gen", "dis")
# The keys of published files that both algorithms need.
_PUBLISHED = {
    *("image_save_iter", "image_display_iter", "display_size", "snapshot_save_iter", "log_iter", "max_iter"),
    *("batch_size", "weight_decay", "beta1", "beta2", "init", "lr", "lr_policy", "step_size", "gamma"),
    *("gan_w", "recon_x_w", "recon_x_cyc_w", "vgg_w", "input_dim_a", "input_dim_b", "num_workers"),
    *("crop_image_height", "crop_image_width"),
}


def flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a configuration by their whole keys: "gen.dim" for `dim` inside `gen:`."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if key in _SECTIONS and isinstance(value, Mapping):
            found |= {f"{key}.{name}": inner for name, inner in value.items()}
        else:
            found[key] = value
    return found


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """The reverse of `flat`."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        section, _, name = key.partition(".")
        if name:
            found.setdefault(section, {})[name] = value
        else:
            found[key] = value
    return found


def given(config: Config) -> dict[str, Any]:
    """What the configuration was made of, by whole keys, without defaults."""
    return flat(config.model_dump(mode="json", exclude_unset=True))


def with_values(config: Config, values: Mapping[str, Any], source: str = "configuration") -> Config:
    """The configuration with other values. A key that is among them is no longer one of its preset.

    Args:
        config: The configuration.
        values: Values by whole keys ("gen.dim").
        source: Where they are from, for error messages.

    Raises:
        ConfigError: As `make_config`.
    """
    changed = given(config) | dict(values)
    if "preset_keys" not in values and config.preset_keys:
        changed["preset_keys"] = [key for key in config.preset_keys if key not in values]
    return make_config(nested(changed), source=source)


def stated_algorithm(config: Config) -> tuple[str, str] | None:
    """The algorithm that a configuration says it is for, and the keys that say so.

    `trainer` says it; without it `recon_kl_w` or `recon_kl_cyc_w` beside no `gen.style_dim` is UNIT's, and a key that
    only MUNIT reads beside none of UNIT's is MUNIT's.

    Returns:
        ("MUNIT" or "UNIT", the reason); None where the keys are those that both read, or of both.
    """
    if config.trainer is not None:
        return config.trainer, f"trainer: {config.trainer}"
    keys = given(config)
    of_munit, of_unit = ([key for key in ONLY[name] if key in keys] for name in ALGORITHMS)
    if of_unit and "gen.style_dim" not in keys:
        return "UNIT", f"it has {', '.join(of_unit)} and no gen.style_dim"
    if of_munit and not of_unit:
        return "MUNIT", f"it has {', '.join(of_munit)} and no recon_kl_w"
    return None


def choose_algorithm(config: Config, asked: str = "auto", otherwise: str = "MUNIT") -> str:
    """The algorithm to train a configuration with.

    Args:
        config: The configuration.
        asked: --trainer: "MUNIT", "UNIT" or "auto".
        otherwise: What "auto" is for a configuration that does not say.

    Returns:
        "MUNIT" or "UNIT".

    Raises:
        ConfigError: The configuration is one for the other algorithm than `asked`.
    """
    stated = stated_algorithm(config)
    if stated is None:
        return otherwise if asked == "auto" else asked
    name, reason = stated
    if asked in ("auto", name):
        return name
    if config.trainer is not None:
        change = f"or write trainer: {asked}"
    else:
        change = "or state " + ("gen.style_dim" if asked == "MUNIT" else "recon_kl_w (published: 0.01)")
    raise ConfigError(f"the configuration is one for {name}: {reason}; give --trainer {name}, {change}")


def unread_keys(config: Config, algorithm: str) -> list[str]:
    """The keys that a configuration has and that the algorithm does not read; recon_h_w only where it is not 0.

    A residual discriminator has one scale, whatever `dis.num_scales` says; and `lr` is the rate of nothing where
    `lr_gen` and `lr_dis` are given.
    """
    keys = given(config)
    stated = {key for key in ("lr", *RATES) if keys.get(key) is not None and key not in (config.preset_keys or ())}
    found = [key for name, of_name in ONLY.items() if name != algorithm for key in of_name if key in keys]
    found += ["dis.num_scales"] if config.dis.arch == "residual" and "dis.num_scales" in keys else []
    found += ["lr"] if len(stated) == 3 else []
    return found + ([_READ_BY_NONE] if keys.get(_READ_BY_NONE) else [])


def filled_values(config: Config, algorithm: str) -> dict[str, Any]:
    """The published keys that the algorithm needs and the configuration lacks, with the defaults that they got."""
    keys = given(config)
    needed = {key for key in complete_values(config, algorithm) if "." in key} | _PUBLISHED | {*ONLY[algorithm]}
    needed -= NOT_PUBLISHED
    needed -= {"dis.num_scales"} if config.dis.arch == "residual" else set()
    needed -= {"lr"} if config.lr_gen is not None and config.lr_dis is not None else set()
    values = complete_values(config, algorithm).items()
    return {key: value for key, value in values if key in needed and key not in keys}


def preset_values(config: Config) -> dict[str, Any]:
    """The values that the preset gave, by whole keys."""
    values = flat(config.model_dump(mode="json"))
    return {key: values[key] for key in config.preset_keys or () if key in values}


def left_values(config: Config) -> dict[str, Any]:
    """The values, by whole keys, that the configuration has in place of others of its preset, since they were given.

    It is `lr` where that was given in place of `lr_gen` and `lr_dis`.
    """
    values = flat(config.model_dump(mode="json"))
    left: dict[str, Any] = {}
    for key, value in (PRESETS[config.preset] if config.preset else {}).items():
        if key not in (config.preset_keys or ()):
            key = "lr" if key in RATES and values[key] is None else key
            left |= {key: values[key]} if values[key] != value else {}
    return left


def complete_values(config: Config, algorithm: str) -> dict[str, Any]:
    """Every value that the algorithm reads, by whole keys and as plain values, with `trainer` first.

    It has `preset_keys` without a preset too: so it is known as complete, and no preset fills it.
    """
    unread = {key for name, of_name in ONLY.items() if name != algorithm for key in of_name} | {_READ_BY_NONE}
    values = flat(config.model_dump(mode="json")) | {"preset_keys": config.preset_keys or []}
    return {"trainer": algorithm} | {
        key: value for key, value in values.items() if key not in unread and key != "trainer"
    }


def complete_text(config: Config, algorithm: str) -> str:
    """`complete_values` as YAML text that `load_config` reads; keys without a value are left out."""
    values = {key: value for key, value in complete_values(config, algorithm).items() if value is not None}
    return yaml.safe_dump(nested(values), sort_keys=False, allow_unicode=True)


def override(config: Config, assignments: Sequence[str]) -> tuple[Config, set[str]]:
    """Change values of a configuration. `lr` changes both rates: it takes away an lr_gen and lr_dis of the preset.

    Args:
        config: The configuration.
        assignments: "KEY=VALUE", where KEY may be gen.KEY or dis.KEY, and VALUE is YAML.

    Returns:
        The configuration, and the keys that were named, with those that `lr` took away.

    Raises:
        ConfigError: There is no such key, or the value is impossible.
    """
    values: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        key = key.strip()
        if not equals or not key or len(text) > MAX_BYTES:
            raise ConfigError(f"--override {assignment[:100]}: write KEY=VALUE, as in --override lr=5e-5")
        if key in ("preset", "preset_keys"):
            raise ConfigError(
                f"--override {assignment[:100]}: give --preset NAME, which fills what the file leaves out"
            )
        if key in ("gen", "dis") or ("." in key and key.partition(".")[0] not in ("gen", "dis")):
            raise ConfigError(f"--override {assignment[:100]}: KEY is a key, gen.KEY or dis.KEY")
        try:
            values[key] = yaml.safe_load(text)
        except (yaml.YAMLError, RecursionError, ValueError, OverflowError, TypeError, AttributeError):
            raise ConfigError(f"--override {assignment[:100]}: the value is not valid YAML") from None
    if "lr" in values:
        values = dict.fromkeys(set(RATES).intersection(config.preset_keys or ())) | values
    return (with_values(config, values, "--override") if values else config), set(values)
