"""Presets: sets of values for keys that a configuration does not give."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

Preset = Literal["published", "improved", "small_data"]

# By whole keys ("dis.norm" for `norm` inside `dis:`). What is left out is as published, which the defaults are.
PRESETS: dict[Preset, dict[str, Any]] = {
    "published": {},
    # Of the successor of MUNIT in imaginaire, what changes the training and not the task.
    "improved": {
        "init": "orthogonal",
        "lr_policy": "constant",
        "lr_gen": 0.0001,
        "lr_dis": 0.0004,
        "gen.weight_norm": "spectral",
        "dis.weight_norm": "spectral",
        "dis.arch": "residual",
        "dis.gan_type": "hinge",
    },
    # Hundreds of images: networks that learn fast, and augmentation against learning them by heart.
    "small_data": {
        "lr": 0.0004,
        "gen.n_downsample": 1,
        "dis.num_scales": 1,
        "diffaugment": ["color", "translation", "cutout"],
        "shift_a": 0.1,
        "shift_b": 0.1,
        "scale_a": 0.1,
        "scale_b": 0.1,
    },
}

# The rates of a part of the networks, which replace `lr`.
RATES = ("lr_gen", "lr_dis")


def filled(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """A mapping of keys with those that its preset gives and it does not.

    What is filled is named under "preset_keys". A mapping that has this key was filled before, and stays as it is: a
    complete configuration means the same when presets have changed. Where `lr` is given, it is the rate of both: the
    preset fills neither `lr_gen` nor `lr_dis`, which would replace it.

    Args:
        values: The keys and plain values of a configuration. An unknown preset is left to the check of the values.

    Returns:
        A mapping with the preset's values, those of `gen` and `dis` inside; `values` itself without a preset.
    """
    preset: Any = values.get("preset")
    if not isinstance(preset, str) or preset not in PRESETS or values.get("preset_keys") is not None:
        return values
    made, keys = dict(values), []
    for key, value in PRESETS[preset].items():
        section, _, name = key.rpartition(".")
        inside = made if not section else made.get(section, {})
        if not isinstance(inside, Mapping) or name in inside or (key in RATES and "lr" in values):
            continue
        keys.append(key)
        if section:
            made[section] = {**inside, name: value}
        else:
            made[name] = value
    return made | {"preset_keys": keys}
