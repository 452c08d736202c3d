"""Images turned as the orientation of EXIF and TIFF says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from munit_fast.data.picture import Array, Picture

ORIENTATION = 274  # the tag of both
_TURNS: dict[int, Callable[[Array], Array]] = {
    2: np.fliplr,
    3: lambda x: np.rot90(x, 2),
    4: np.flipud,
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: np.rot90(x, 2).swapaxes(0, 1),
    8: np.rot90,
}


def upright(picture: Picture, orientation: object) -> Picture:
    """A picture as it is to be seen.

    Args:
        picture: As the file stores it.
        orientation: 1 to 8; anything else means 1, which is upright already.
    """
    turn = _TURNS.get(orientation) if isinstance(orientation, int) else None
    if turn is None:
        return picture
    alpha = None if picture.alpha is None else np.ascontiguousarray(turn(picture.alpha))
    return replace(picture, pixels=np.ascontiguousarray(turn(picture.pixels)), alpha=alpha)
