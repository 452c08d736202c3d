"""Test pictures: read from files when asked for, resized and cropped to one size, paired by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor

from munit_fast.config import Config
from munit_fast.data import FileSource, ImageError, ImageSet, ImageSource, PixelFormat, centre_crop
from munit_fast.data.configured import has_images, open_source_of, pixel_format
from munit_fast.data.grid import shown
from munit_fast.data.sources import open_source


class Files:
    """Images of a source as `munit_fast.evaluate.metrics.Pictures`: [C, H, W] float32 in [-1, 1], all of one size.

    Args:
        source: The images, or the paths of image files, whose first images are taken; read when asked for.
        pixel_format: Their channels, value range and background, or the number of channels alone.
        short_side: Length that the short side is resized to; None: not resized.
        crop: (height, width) that is cropped out of the middle.
        keep: Read them all at once and keep them in memory where they fit.

    Raises:
        ImageError: When asked for a picture that cannot be read or is smaller than the crop.
    """

    def __init__(
        self,
        source: ImageSource | Sequence[Path],
        pixel_format: PixelFormat | int,
        short_side: int | None,
        crop: tuple[int, int],
        keep: bool = False,
    ) -> None:
        self.source = source if isinstance(source, ImageSource) else FileSource(source, pages="first")
        self.crop = crop
        self._set = ImageSet(self.source, pixel_format, short_side, "auto" if keep else False, lenient=keep)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int, /) -> Tensor:
        return centre_crop(self._set, index, self.crop)

    def chosen(self, numbers: Iterable[int]) -> Files:
        """Some of them, in this order, kept in memory where they fit."""
        return Files(self.source.chosen(numbers), self._set.format, self._set.short_side, self.crop, keep=True)


@dataclass
class TestSet:
    """The test pictures of both domains.

    Attributes:
        pictures: By domain, "a" and "b".
        train: Training pictures of the domains that have any.
        paired: Whether picture i of one domain is the true translation of picture i of the other.
        colourings: For each picture of A its true pictures of B, where several are known.
        notes: What a reader of the results should know of the set.
        channels: Of domains with other numbers of channels than 1 and 3, which metrics cannot take: those measured.
    """

    __test__ = False  # not a test of pytest

    pictures: dict[str, Files]
    train: dict[str, Files]
    paired: bool
    colourings: list[Files | None] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    channels: dict[str, list[int]] = field(default_factory=dict)

    def seen(self, images: Tensor, domain: str) -> Tensor:
        """The channels of images [..., C, H, W] of a domain, "a" or "b", that metrics measure."""
        return images[..., self.channels[domain], :, :] if domain in self.channels else images


class SeenPictures:
    """Pictures with the channels that metrics measure.

    Args:
        pictures: With all channels.
        channels: Those measured; None: all.
    """

    def __init__(self, pictures: Files, channels: list[int] | None) -> None:
        self._pictures, self._channels = pictures, channels

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitem__(self, index: int, /) -> Tensor:
        image = self._pictures[index]
        return image if self._channels is None else image[self._channels]


class UnstatedFormat(PixelFormat):
    """Colour images of the ranges of their files' types, where no configuration says otherwise."""

    def key(self, name: str) -> str:
        """How to state a key of the target domain."""
        return f"{name}_b in a --config"


def measured_channels(cfg: Config, domain: str) -> list[int] | None:
    """The channels of domain "a" or "b" that metrics measure, those that grids show; None: all, 1 or 3 of them."""
    count: int = getattr(cfg, f"input_dim_{domain}")
    numbers = torch.arange(count)[:, None, None]
    picked: list[int] = shown(numbers, getattr(cfg, f"show_channels_{domain}")).flatten().tolist()
    return None if count in (1, 3) else picked


def channels_note(cfg: Config, domain: str, channels: list[int]) -> str:
    """The line that says which channels of a domain are measured."""
    which = f"channel {channels[0]}" if len(channels) == 1 else f"channels {', '.join(map(str, channels))}"
    count = getattr(cfg, f"input_dim_{domain}")
    return (
        f"domain {domain.upper()}: {which} of {count} measured, since metrics take 1 or 3; show_channels_{domain} "
        "names others"
    )


def open_test_set(cfg: Config, allow_outside: bool = False) -> TestSet:
    """The test pictures that a configuration names. Pictures of equal names (without extension) are pairs.

    `data_root`/colourings/NAME/ may hold several true pictures of B for the picture NAME of A.

    Args:
        cfg: Of the run.
        allow_outside: Whether list files may name images outside their folder.

    Raises:
        ConfigError: The configuration names no test pictures.
        ImageError: A folder or list is missing or holds no images.
    """
    test = {d: open_source_of(cfg, "test", d, allow_outside) for d in "ab"}
    train = {d: open_source_of(cfg, "train", d, allow_outside) for d in "ab" if has_images(cfg, "train", d)}
    return pair(cfg, test, train)


def pair(cfg: Config, test: Mapping[str, ImageSource], train: Mapping[str, ImageSource]) -> TestSet:
    """What `open_test_set` makes of images by domain, "a" and "b"; `train` may lack some.

    Raises:
        ImageError: A folder of colourings holds no images.
    """
    crop = (cfg.crop_image_height, cfg.crop_image_width)

    def files(source: ImageSource, domain: str) -> Files:
        return Files(source, pixel_format(cfg, domain), cfg.short_side(domain), crop)

    found = dict(test)
    by_name = {d: {stem_of(source.name(i)): i for i in range(len(source))} for d, source in found.items()}
    common = [name for name in by_name["a"] if name in by_name["b"]]
    notes = []
    if len(common) == 1 and min(len(source) for source in found.values()) > 1:  # by chance, more likely than not
        notes.append(f"{common[0]} is the only name in both domains: the test pictures are not taken for pairs")
        common = []
    elif common:
        every = (set(map(source.name, range(len(source)))) for source in found.values())  # a list may repeat names
        left = sum(map(len, every)) - 2 * len(common)
        notes += [f"{left} test pictures without a partner of the same name are left out"] if left else []
        found = {d: found[d].chosen(by_name[d][name] for name in common) for d in "ab"}
    if not common and not notes:
        notes.append("no test picture of A has the name of one of B: there are no pairs to compare")
    channels = {d: picked for d in "ab" if (picked := measured_channels(cfg, d)) is not None}
    notes += [channels_note(cfg, d, picked) for d, picked in channels.items()]
    places = [Path(cfg.data_root, "colourings", name) if cfg.data_root else None for name in common]
    colourings = [
        files(open_source(place, pages="first"), "b") if place and place.is_dir() else None for place in places
    ]
    return TestSet(
        {d: files(found[d], d) for d in "ab"},
        {d: files(source, d) for d, source in train.items()},
        bool(common),
        [several if several and len(several) > 1 else None for several in colourings],
        notes,
        channels,
    )


class SameSizeFiles(Files):
    """Pictures that must have one size already."""

    def __getitem__(self, index: int, /) -> Tensor:
        height, width = self._set.image(index).shape[:2]
        if (height, width) != self.crop:
            raise ImageError(
                f"{self.source.where(index)}: {width}x{height} where others are {self.crop[1]}x{self.crop[0]}; "
                "give --size to bring all to one size"
            )
        return super().__getitem__(index)


def stem_of(name: str) -> str:
    """The name of an image in its source without its extension: "a/b" of "a/b.png", "a/b#2" of "a/b.tif#2"."""
    file, mark, page = name.rpartition("#")
    if not mark or not page.isdecimal():
        file, mark, page = name, "", ""
    return PurePosixPath(file).with_suffix("").as_posix() + mark + page
