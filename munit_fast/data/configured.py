"""The four image sets that a configuration names."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal, NamedTuple

from munit_fast.config import Config, ConfigError
from munit_fast.data.augmentation import Augmentation
from munit_fast.data.datasets import ImageSet
from munit_fast.data.measure import resolve_ranges
from munit_fast.data.picture import ImageError
from munit_fast.data.sources import BandSource, FileSource, ImageSource, MissingClass, Pages, open_source, read_list
from munit_fast.data.sources.hub import PREFIX, is_saved, split_names
from munit_fast.data.sources.table import is_archive
from munit_fast.data.values import PixelFormat

_NAMES = {("train", "a"): "trainA", ("train", "b"): "trainB", ("test", "a"): "testA", ("test", "b"): "testB"}
_TEST_FOLDERS = ("test", "val", "validation")  # of class folders, and splits of data sets


class Place(NamedTuple):
    """Where images are, as `munit_fast.data.sources.open_source` takes it."""

    spec: str
    classes: tuple[str, ...] = ()


@dataclass
class Sources:
    """Training images of both domains, and test images where the configuration has them, else None.

    Attributes:
        train_a: Training images of domain A.
        train_b: Training images of domain B.
        test_a: Test images of domain A.
        test_b: Test images of domain B.
        config: The configuration, with the ranges that were measured.
        notes: Lines to say once: files left out, files with several images, ranges measured, sizes chosen here.
    """

    train_a: ImageSet
    train_b: ImageSet
    test_a: ImageSet | None
    test_b: ImageSet | None
    config: Config
    notes: list[str] = field(default_factory=list)


def open_source_of(
    cfg: Config, split: str, domain: str, allow_outside: bool = False, pages: Pages | None = None
) -> ImageSource:
    """The images of a split and domain, in a fixed order.

    Args:
        cfg: Names folders, archives or data sets, and lists of files in folders.
        split: "train" or "test".
        domain: "a" or "b".
        allow_outside: Whether a list or data set may name files outside its folder.
        pages: Of files with several images; None: as the configuration says.

    Raises:
        ConfigError: The configuration names no images.
        ImageError: What it names is missing or holds no images.
    """
    place = _place(cfg, split, domain)
    pages = pages or cfg.pages
    key = f"{split}_{domain}"
    if getattr(cfg, f"data_list_{key}") is not None and not _has_own_place(cfg, split, domain):
        raise ConfigError(f"data_list_{key}: a list names files in data_folder_{key}; set that, or remove the list")
    listing = getattr(cfg, f"data_list_{split}_{domain}") if _has_own_place(cfg, split, domain) else None
    if listing is None:
        axis = cfg.slice_axis
        found = open_source(place.spec, pages=pages, classes=place.classes, allow_outside=allow_outside, axis=axis)
        return with_bands(found, cfg, domain)
    if place.spec.startswith(PREFIX) or is_archive(place.spec):
        raise ImageError(f"data_list_{split}_{domain}: a list names files in a folder; {place.spec} is none")
    paths = read_list(Path(listing), place.spec, allow_outside)
    return with_bands(FileSource(paths, place.spec, pages, axis=cfg.slice_axis), cfg, domain)


def has_images(cfg: Config, split: str, domain: str) -> bool:
    """Whether the configuration names a place for these images and the place exists.

    Args:
        cfg: The configuration. Of data_folder_… keys only the presence counts.
        split: "train" or "test".
        domain: "a" or "b".
    """
    if cfg.data_root is None or _has_own_place(cfg, split, domain):
        return getattr(cfg, f"data_folder_{split}_{domain}") is not None
    place = _place_in_root(cfg, cfg.data_root, split, domain)
    if place is None or not (is_archive(place.spec) and place.classes):
        return place is not None
    try:
        open_source(place.spec, pages="first", classes=place.classes)
    except MissingClass:
        return False
    return True


def pixel_format(cfg: Config, domain: str) -> PixelFormat:
    """How the images of domain "a" or "b" become arrays. Raises ConfigError where a range is still to be measured."""
    channels: int = getattr(cfg, f"input_dim_{domain}")
    return PixelFormat(channels, cfg.limits(domain), cfg.background, domain)


def augmentation(cfg: Config, domain: str) -> Augmentation:
    """How the training images of domain "a" or "b" are changed."""
    return Augmentation(**{key.name: getattr(cfg, f"{key.name}_{domain}") for key in fields(Augmentation)})


def with_bands(source: ImageSource, cfg: Config, domain: str) -> ImageSource:
    """The images of a source, their files joined where the configuration names the bands of domain "a" or "b"."""
    bands: list[str] | None = getattr(cfg, f"bands_{domain}")
    return source if bands is None else BandSource(source, bands)


def open_sources(cfg: Config, allow_outside: bool = False) -> Sources:
    """Open the image sets that a configuration names; training images are kept in memory where they fit.

    Args:
        cfg: Names the images, their channels and values, and the size that the short side is resized to.
        allow_outside: As in `open_source_of`.

    Raises:
        ConfigError: The configuration names no training images.
        ImageError: What it names is missing or holds no images, or a range cannot be measured. Images that cannot be
            read are no error yet.
    """
    train = {d: open_source_of(cfg, "train", d, allow_outside) for d in "ab"}
    test = {d: open_source_of(cfg, "test", d, allow_outside) for d in "ab" if has_images(cfg, "test", d)}
    resolved, measured = resolve_ranges(cfg, train)

    def image_set(source: ImageSource, domain: str, cache: Literal["auto", False]) -> ImageSet:
        return ImageSet(source, pixel_format(resolved, domain), cfg.short_side(domain), cache, lenient=True)

    opened = (*train.values(), *test.values())
    notes = [*_size_notes(cfg), *dict.fromkeys(note for source in opened for note in source.notes()), *measured]
    train_a, train_b = (image_set(train[d], d, "auto") for d in "ab")
    # Of the test images only the displayed ones are ever read.
    test_a, test_b = (image_set(test[d], d, False) if d in test else None for d in "ab")
    return Sources(train_a, train_b, test_a, test_b, resolved, notes)


def _size_notes(cfg: Config) -> list[str]:
    """The size that images are resized to where the configuration does not say it."""
    silent = [d for d in "ab" if cfg.new_size is None and getattr(cfg, f"new_size_{d}") is None]
    if not silent:
        return []
    key, whose = ("new_size", "") if len(silent) == 2 else (f"new_size_{silent[0]}", f" in domain {silent[0].upper()}")
    return [
        f"{key} is not given: the short side is resized to {cfg.short_side(silent[0])}{whose}, the larger side of the "
        f"crop; {key}: none keeps the size"
    ]


def _has_own_place(cfg: Config, split: str, domain: str) -> bool:
    """Whether a split and domain has a folder of its own, which goes before `data_root`."""
    return getattr(cfg, f"data_folder_{split}_{domain}") is not None


def _place(cfg: Config, split: str, domain: str) -> Place:
    """Where the images of a split and domain are, whether or not they exist. Raises ConfigError, ImageError."""
    if cfg.data_root is None or _has_own_place(cfg, split, domain):
        spec: str | None = getattr(cfg, f"data_folder_{split}_{domain}")
        if spec is None:
            key = f"{split}_{domain}"
            raise ConfigError(
                f"the configuration names no images: set data_root, or data_folder_{key} (and data_list_{key})"
            )
        return Place(spec)
    place = _place_in_root(cfg, cfg.data_root, split, domain)
    if place is not None:
        return place
    if cfg.data_classes(domain):
        raise ImageError(f"{cfg.data_root}: has no {split} images of {', '.join(cfg.data_classes(domain))}")
    return Place(os.path.join(cfg.data_root, _NAMES[split, domain]))  # its error says that it is not there


def _place_in_root(cfg: Config, root: str, split: str, domain: str) -> Place | None:
    classes = cfg.data_classes(domain)
    if root.startswith(PREFIX) or is_saved(root):
        return _split_of_dataset(root, classes, split)
    if is_archive(root):
        return _folder_of_archive(root, classes, split, domain)
    if classes:
        return _class_folders(root, classes, split)
    name = _NAMES[split, domain]
    return next((Place(spec) for spec in _specs(Path(root), name)), None)


def _specs(root: Path, name: str) -> list[str]:
    """What there is in a folder of trainA, trainA.zip, trainA.tar, and shards trainA-000000.tar."""
    found = [str(root / f"{name}{suffix}") for suffix in ("", ".zip", ".tar") if (root / f"{name}{suffix}").exists()]
    for suffix in ("zip", "tar"):
        shard = re.compile(rf"{name}-\d+\.{suffix}")
        if root.is_dir() and any(shard.fullmatch(path.name) for path in root.iterdir()):
            found.append(str(root / f"{name}-*.{suffix}"))
    return found


def _class_folders(root: str, classes: tuple[str, ...], split: str) -> Place | None:
    """The folder of the classes: below "train" where there is one, and below "test" or "val"."""
    names = ("train", "") if split == "train" else _TEST_FOLDERS
    folders = [Path(root, name) for name in names]
    if split == "train":
        return next((Place(str(folder), classes) for folder in folders if folder.is_dir()), None)
    there = (folder for folder in folders if all((folder / name).is_dir() for name in classes))
    return next((Place(str(folder), classes) for folder in there), None)


def _folder_of_archive(root: str, classes: tuple[str, ...], split: str, domain: str) -> Place | None:
    if not classes:
        return Place(root, (_NAMES[split, domain],))
    for folder in ("train/", "") if split == "train" else (f"{name}/" for name in _TEST_FOLDERS):
        inside = tuple(folder + name for name in classes)
        try:
            open_source(root, pages="first", classes=inside)
        except MissingClass:
            continue
        return Place(root, inside)
    return None


def _split_of_dataset(root: str, classes: tuple[str, ...], split: str) -> Place | None:
    if not classes:
        raise ConfigError(
            f"data_root: {root} is one data set: say by data_class_a and data_class_b which labels are which domain, "
            "or give data_folder_train_a, … with its columns (?column=NAME)"
        )
    splits = split_names(root)
    if not splits:  # one split, or the one that `root` names
        return Place(root, classes) if split == "train" else None
    wanted = ("train", *(splits if len(splits) == 1 else ())) if split == "train" else _TEST_FOLDERS
    name = next((name for name in wanted if name in splits), None)
    where = root.removeprefix(PREFIX)
    return None if name is None else Place(f"{PREFIX}{where}{'&' if '?' in where else '?'}split={name}", classes)
