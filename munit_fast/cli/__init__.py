"""The commands of `munit-fast`. Each parses its options and makes one call; an error becomes one line."""

from munit_fast.utils.env import set_process_defaults

set_process_defaults()  # nothing here imports torch: the commands do, when they run

from munit_fast.cli import training, translation, app as _app, data, machine  # noqa: E402, F401, I001 - in the order of the help
from munit_fast.cli.base import app, main  # noqa: E402

__all__ = ["app", "main"]
