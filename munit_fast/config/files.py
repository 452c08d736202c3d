"""Configurations from files, texts and mappings; every problem of one in one message."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from munit_fast.config.errors import ConfigError
from munit_fast.config.keys import Config
from munit_fast.config.networks import DiscriminatorConfig, GeneratorConfig
from munit_fast.config.presets import filled
from munit_fast.config.values import printed, shortened, shown
from munit_fast.utils.text import read_bounded

# A published file has 60 lines, 2 kB and 60 values.
MAX_BYTES, MAX_VALUES, MAX_PROBLEMS = 2**16, 2000, 20


def load_config(path: str | Path, preset: str | None = None) -> Config:
    """Read and check a configuration file.

    Args:
        path: A YAML file with the published keys; what is left out has its default.
        preset: Instead of the one that the file names; a complete configuration takes no other one.

    Returns:
        The configuration.

    Raises:
        ConfigError: The file is missing or no YAML, has an unknown key or an impossible value; one line per problem.
    """
    return parse_config(read_config(path), source=str(path), preset=preset)


def read_config(path: str | Path) -> str:
    """The text of a configuration file. Raises ConfigError."""
    path = Path(path)
    try:
        return read_bounded(path, MAX_BYTES).decode("utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such configuration file") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read as a text file: {error}") from None


def parse_config(text: str, source: str = "configuration", preset: str | None = None) -> Config:
    """Check the text of a YAML configuration.

    Only plain values are read, and few of them: a text of some lines could ask for objects, for millions of values
    through aliases of aliases, or for more brackets than the parser survives.

    Args:
        text: The YAML text.
        source: Where it is from, for error messages.
        preset: Instead of the one that the text names; a complete configuration takes no other one.

    Raises:
        ConfigError: As `load_config`.
    """
    if len(text) > MAX_BYTES:
        raise ConfigError(f"{source}: more than {MAX_BYTES} characters; a configuration has some dozens of lines")
    try:
        _check_size(yaml.compose(text, Loader=yaml.SafeLoader))
        values = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError, OverflowError, TypeError, AttributeError) as error:
        # The last three come from values that look like dates and numbers but are none.
        raise ConfigError(f"{source}: not valid YAML: {shortened(' '.join(str(error).split()))}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{source}: a configuration is a list of `key: value` lines; found {type(values).__name__}")
    if preset is not None:
        before = values.get("preset")
        if values.get("preset_keys") is not None and before != preset:
            found = "without a preset" if before is None else f"with preset {shown(before)}"
            raise ConfigError(
                f"{source}: this file is the complete configuration of a run {found}, which preset {preset} cannot "
                "fill; give --override for single keys, or the run's config_as_given.yaml"
            )
        values = {**values, "preset": preset}
    return make_config(values, source=source)


def _check_size(root: yaml.Node | None) -> None:
    """Count the values as they would be with every alias written out. Raises ValueError when there are too many."""
    sizes: dict[int, int] = {}
    parts: dict[int, list[yaml.Node]] = {}
    stack = [] if root is None else [(root, False)]
    while stack:
        node, seen = stack.pop()
        key = id(node)
        if seen:
            sizes[key] = 1 + sum(sizes[id(part)] for part in parts[key])
            if sizes[key] > MAX_VALUES:
                raise ValueError(f"more than {MAX_VALUES} values, aliases included")
        elif key in parts and key not in sizes:
            raise ValueError("an alias that contains itself")
        elif key not in sizes:
            pairs = node.value if isinstance(node, yaml.CollectionNode) else []
            parts[key] = [part for pair in pairs for part in (pair if isinstance(pair, tuple) else (pair,))]
            stack.append((node, True))
            stack += [(part, False) for part in parts[key]]


def make_config(values: dict[str, Any], source: str = "configuration") -> Config:
    """Check a mapping of the published keys.

    Args:
        values: The keys and plain values; what is left out has the value of the preset, or else its default.
        source: Where they are from, for error messages.

    Returns:
        The configuration.

    Raises:
        ConfigError: A key is unknown or a value impossible; one line per problem, each with the key, the value and what
            would work.
    """
    try:
        values = dict(filled(values))
        return Config.model_validate(values)
    except ValidationError as error:
        problems = error.errors()
        lines = [f"{source}: {_explain(problem)}{_by_preset(problem, values)}" for problem in problems[:MAX_PROBLEMS]]
        if len(problems) > MAX_PROBLEMS:
            lines.append(f"{source}: and {len(problems) - MAX_PROBLEMS} more problems")
        raise ConfigError("\n".join(lines)) from None


def _explain(problem: Any) -> str:
    location = [printed(str(part)) for part in problem["loc"]]
    key = ".".join(location)
    if problem["type"] == "extra_forbidden":
        return f"{key}: unknown key{_nearest(location)}"
    if problem["type"] == "value_error":
        reason = str(problem["ctx"]["error"])
        return f"{key}: {reason}" if key else reason  # without a key: from _sizes, which names the keys itself
    message = problem["msg"][0].lower() + problem["msg"][1:]
    return f"{key}: {message}; got {shown(problem['input'])}"


def _by_preset(problem: Any, values: dict[str, Any]) -> str:
    """Which of the keys that a problem names are the preset's, so that they are not looked for in the file."""
    preset, keys = values.get("preset"), values.get("preset_keys")
    if problem["type"] != "value_error" or not isinstance(preset, str) or not isinstance(keys, list):
        return ""
    section = "".join(f"{part}." for part in problem["loc"][:1])
    reason = str(problem["ctx"]["error"]).partition("; use ")[0]
    named = [
        key
        for key in keys
        if isinstance(key, str)
        and key.startswith(section)
        and re.search(rf"(?<![\w.]){re.escape(key.removeprefix(section))}\b", reason)
    ]
    return f" (preset {printed(preset)} gives {', '.join(named)})" if named else ""


def _nearest(location: list[str]) -> str:
    sections: dict[str, type[BaseModel]] = {"gen": GeneratorConfig, "dis": DiscriminatorConfig}
    names = list(sections[location[0]].model_fields if len(location) > 1 else Config.model_fields)
    everywhere = {field: name for name, section in sections.items() for field in section.model_fields}
    if len(location) == 1 and location[0] in everywhere:
        return f"; it belongs inside {everywhere[location[0]]}:"
    close = difflib.get_close_matches(location[-1], names, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {'.'.join([*location[:-1], close[0]])}?"
    return f"; known keys: {', '.join(names)}"
