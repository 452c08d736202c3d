"""Configuration files: the published YAML keys, checked before anything starts.

`load_config` turns a file into a `Config`; whatever is wrong with it (a key that does not exist, a value of the wrong
type, a size that the networks cannot take) becomes one `ConfigError` that lists every problem, one per line, each
with the key and with what would work.
"""

from munit_fast.config.errors import ConfigError
from munit_fast.config.files import MAX_BYTES, load_config, make_config, parse_config, read_config
from munit_fast.config.keys import Config
from munit_fast.config.networks import (
    DiscriminatorConfig,
    GeneratorConfig,
    smallest_discriminator_size,
    smallest_generator_size,
)
from munit_fast.config.presets import PRESETS

__all__ = [
    "MAX_BYTES",
    "PRESETS",
    "Config",
    "ConfigError",
    "DiscriminatorConfig",
    "GeneratorConfig",
    "load_config",
    "make_config",
    "parse_config",
    "read_config",
    "smallest_discriminator_size",
    "smallest_generator_size",
]
