"""The four image sets that a configuration names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from munit_fast.config import Config, ConfigError
from munit_fast.data.datasets import ImageSet
from munit_fast.data.sources import BandSource, FileSource, ImageSource, list_images, read_list
from munit_fast.data.values import PixelFormat

_FOLDERS = {
    ("train", "a"): "trainA",
    ("train", "b"): "trainB",
    ("test", "a"): "testA",
    ("test", "b"): "testB",
}


@dataclass
class Sources:
    """Training images of both domains, and test images where the configuration has them, else None."""

    train_a: ImageSet
    train_b: ImageSet
    test_a: ImageSet | None
    test_b: ImageSet | None


def image_folder(cfg: Config, split: str, domain: str) -> Path:
    """The folder of some images of a configuration.

    Args:
        cfg: the configuration.
        split: "train" or "test".
        domain: "a" or "b".

    Raises:
        ConfigError: The configuration names none.
    """
    if cfg.data_root is not None:
        return Path(cfg.data_root) / _FOLDERS[split, domain]
    key = f"{split}_{domain}"
    folder: str | None = getattr(cfg, f"data_folder_{key}")
    if folder is None:
        raise ConfigError(
            f"the configuration names no images: set data_root, or data_folder_{key} (and data_list_{key})"
        )
    return Path(folder)


def image_paths(cfg: Config, split: str, domain: str, allow_outside: bool = False) -> list[Path]:
    """The images of a split and domain, in a fixed order.

    From data_root's trainA, trainB, testA, testB, or from data_folder_* with or without data_list_*.

    Args:
        cfg: Names the folders and lists.
        split: "train" or "test".
        domain: "a" or "b".
        allow_outside: Whether the paths of a list may lead out of its folder.

    Raises:
        ConfigError: The configuration names no folder.
        ImageError: The folder or list is missing or holds no images.
    """
    folder = image_folder(cfg, split, domain)
    listing = None if cfg.data_root is not None else getattr(cfg, f"data_list_{split}_{domain}")
    return read_list(Path(listing), folder, allow_outside) if listing is not None else list_images(folder)


def pixel_format(cfg: Config, domain: str) -> PixelFormat:
    """How the images of domain "a" or "b" become arrays. Raises ConfigError where a range is still to be measured."""
    channels: int = getattr(cfg, f"input_dim_{domain}")
    return PixelFormat(channels, cfg.limits(domain), cfg.background, domain)


def with_bands(source: ImageSource, cfg: Config, domain: str) -> ImageSource:
    """The images of a source, their files joined where the configuration names the bands of domain "a" or "b"."""
    bands: list[str] | None = getattr(cfg, f"bands_{domain}")
    return source if bands is None else BandSource(source, bands)


def has_images(cfg: Config, split: str, domain: str) -> bool:
    """Whether the configuration names a place for these images and the place exists.

    Args:
        cfg: the configuration. Of data_folder_… keys only the presence counts.
        split: "train" or "test".
        domain: "a" or "b".
    """
    if cfg.data_root is not None:
        return (Path(cfg.data_root) / _FOLDERS[split, domain]).is_dir()
    return getattr(cfg, f"data_folder_{split}_{domain}") is not None


def open_sources(cfg: Config, allow_outside: bool = False) -> Sources:
    """Open the image sets that a configuration names; training images are kept in memory where they fit.

    Args:
        cfg: Names the folders and lists, the channels and the size that the short side is resized to.
        allow_outside: As in `image_paths`.

    Raises:
        ConfigError: The configuration names no training images.
        ImageError: A folder or list is missing or holds no images. Images that cannot be read are no error yet.
    """

    def image_set(split: str, domain: str) -> ImageSet:
        # Of the test images only the displayed ones are ever read.
        cache: Literal["auto", False] = "auto" if split == "train" else False
        paths = image_paths(cfg, split, domain, allow_outside)
        source = FileSource(paths, image_folder(cfg, split, domain), cfg.pages, axis=cfg.slice_axis)
        return ImageSet(
            with_bands(source, cfg, domain), pixel_format(cfg, domain), cfg.short_side(domain), cache, lenient=True
        )

    return Sources(
        image_set("train", "a"),
        image_set("train", "b"),
        image_set("test", "a") if has_images(cfg, "test", "a") else None,
        image_set("test", "b") if has_images(cfg, "test", "b") else None,
    )
