"""A page to try a model on: draw or upload, see many translations, change their style. `munit-fast app` serves it."""

from munit_fast.app.server import build, launch, serve
from munit_fast.app.translation import Limits

__all__ = ["Limits", "build", "launch", "serve"]
