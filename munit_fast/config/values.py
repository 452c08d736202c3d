"""The kinds of values that configuration keys take."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from munit_fast.utils.text import printable

Activation = Literal["relu", "lrelu", "prelu", "selu", "tanh", "none"]
Padding = Literal["reflect", "replicate", "zero"]
Transformation = Literal["color", "translation", "cutout"]
Count = Annotated[int, Field(ge=1)]
Flip = Literal["none", "horizontal", "vertical", "both"]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Channels = Annotated[int, Field(ge=1, le=1024)]
Bands = Annotated[list[Annotated[str, Field(min_length=1, max_length=64)]], Field(min_length=1, max_length=1024)]
ShownChannels = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=3, max_length=3)]

# "W400 L40", "C40 W400", "WL: 40 WW: 400": width and level (centre) in either order.
_WINDOW = re.compile(r"(?P<name>WW|WL|WC|W|L|C)\s*[:=]?\s*(?P<value>[-+]?[\d.]+(?:e[-+]?\d+)?)", re.IGNORECASE)
_WIDTHS, _LEVELS = ("w", "ww", "width", "window"), ("l", "c", "wl", "wc", "level", "center", "centre")


def _window(value: Any) -> Any:
    """(level, width) of a window, whatever it calls them; None where it is none."""
    if isinstance(value, str):
        parts = _WINDOW.findall(value)
        if _WINDOW.sub("", value).strip(" ,;/") or len(parts) != 2:
            return None
        value = dict(parts)
    if not isinstance(value, dict) or len(value) != 2:
        return None
    named = {str(name).lower(): number for name, number in value.items()}
    width = next((named[name] for name in _WIDTHS if name in named), None)
    level = next((named[name] for name in _LEVELS if name in named), None)
    return None if width is None or level is None else (level, width)


def _value_range(value: Any) -> str | list[float]:
    """ "dtype", "auto" or [low, high]; from a window too, as users of CT write it."""
    if value in ("dtype", "auto"):
        return str(value)
    given = value
    try:
        if (window := _window(value)) is not None:
            level, width = map(float, window)
            value = [level - width / 2, level + width / 2]
        low, high = (float(number) for number in value) if isinstance(value, (list, tuple)) else (0.0, 0.0)
    except (TypeError, ValueError, OverflowError):
        low, high = 0.0, 0.0
    if not (low < high and math.isfinite(low) and math.isfinite(high)):
        raise ValueError(
            "use dtype, auto, [low, high] with low < high, or a window: {level: 40, width: 400}, or W400 L40; got "
            f"{shown(given)}"
        )
    return [low, high]


def _size(value: Any) -> int | str:
    """The length of a side, or "none"."""
    if isinstance(value, str) and value.lower() == "none":
        return "none"
    try:
        size = int(value) if float(value) == int(value) else 0
    except (TypeError, ValueError, OverflowError):
        size = 0
    if size < 1:
        raise ValueError(f"use a number of pixels, at least 1, or none for no rescaling; got {shown(value)}")
    return size


METRICS = (
    *("kid", "l1", "ssim", "line_f1", "diversity", "best_distance", "mean_distance", "coverage", "missed_distance"),
    *("distinct_hues", "fill"),
)


def _metric(value: Any) -> str:
    """A metric of both directions, "kid", or of one, "kid_a2b"."""
    name = str(value)
    if name.removesuffix("_a2b").removesuffix("_b2a") not in METRICS or name.endswith(("_a2b_b2a", "_b2a_a2b")):
        raise ValueError(f"use {', '.join(METRICS)}, or one of them with a direction, as kid_a2b; got {shown(value)}")
    return name


def _class_names(value: Any) -> list[str]:
    """Names of classes, of one alone or of a list; labels may be numbers."""
    given = value if isinstance(value, list) else [value]
    if any(isinstance(name, bool) for name in given):
        raise ValueError(f'quote the name, as "no": YAML reads yes, no, on and off as truth values; got {shown(value)}')
    names = [str(name) for name in given if isinstance(name, (str, int))]
    if not names or len(names) != len(given) or not all(names):
        raise ValueError(f"use the name of a class, or a list of names; got {shown(value)}")
    return names


def _transformations(value: Any) -> Any:
    """A list of transformations, where it is given as one, or none."""
    if isinstance(value, str):
        names = f"[{value}]" if value in get_args(Transformation) else "[color, translation, cutout] or some of them"
        raise ValueError(f"use a list: {names}; got {shown(value)}")
    return [] if value is None else value


def _different(names: list[Transformation]) -> list[Transformation]:
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{', '.join(twice)} is in the list more than once; name each transformation once")
    return names


Transformations = Annotated[
    list[Transformation], Field(max_length=100), BeforeValidator(_transformations), AfterValidator(_different)
]
Size = Annotated[int | str, BeforeValidator(_size)]
ClassNames = Annotated[list[str], BeforeValidator(_class_names)]
MetricName = Annotated[str, BeforeValidator(_metric)]
Share = Annotated[float, Field(gt=0, le=1)]
ValueRange = Annotated[str | list[float], BeforeValidator(_value_range)]


class Section(BaseModel):
    """Keys that are checked when they are set; one that is unknown is refused."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True)

    @model_validator(mode="before")
    @classmethod
    def _no_booleans(cls, values: Any) -> Any:
        # YAML reads yes, no, on and off as booleans, which would pass for 1 and 0.
        if isinstance(values, dict):
            named = ("data_class_a", "data_class_b")  # `_class_names` says what to do
            return {k: str(v).lower() if isinstance(v, bool) and k not in named else v for k, v in values.items()}
        return values


def shown(found: Any) -> str:
    """A value for an error message: one short line, whatever it is."""
    try:
        return shortened(repr(found))
    except ValueError:  # a whole number of more digits than Python prints
        return "a very large number"


def printed(text: str) -> str:
    """A name from a file for an error message."""
    return shortened(printable(text))


def shortened(text: str) -> str:
    """At most the first 200 characters."""
    return text if len(text) <= 200 else f"{text[:200]}…"
