"""What training images are changed by, against plain formulas, and what decides it."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.runs import run
from helpers.source_files import write_images
from munit_fast.config import ConfigError, make_config
from munit_fast.data import Augmentation, ImageError, ImageSet, UnpairedBatches, display_images, to_model_range
from munit_fast.data.configured import augmentation
from munit_fast.data.datasets import train_crop
from munit_fast.train import loop

EVERYTHING = Augmentation("both", 0.3, 0.4, 0.2)
CROP = (24, 20)
Batch = tuple[torch.Tensor, torch.Tensor]


def key(i: int) -> np.random.SeedSequence:
    return np.random.SeedSequence(7, spawn_key=(i,))


def noise(height: int, width: int, channels: int, dtype: Any = np.uint8) -> np.ndarray:
    values = np.random.default_rng(0).random((height, width, channels), np.float32)
    white = 1 if dtype == np.float32 else np.iinfo(dtype).max
    return (values * white).astype(dtype)


# -- plain formulas


def cubic(x: float) -> float:
    """Keys' kernel with a = -1/2."""
    x = abs(x)
    if x < 1:
        return 1.5 * x**3 - 2.5 * x**2 + 1
    return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0


def resampling(size: int, wanted: int) -> np.ndarray:
    """[wanted, size]: the weights of bicubic interpolation, the kernel widened where pixels become fewer."""
    step = size / wanted
    wide = max(1.0, step)
    centres = [(i + 0.5) * step - 0.5 for i in range(wanted)]
    weights = np.array([[cubic((j - centre) / wide) for j in range(size)] for centre in centres])
    return weights / weights.sum(axis=1, keepdims=True)


def expected(array: np.ndarray, crop: tuple[int, int], found: Augmentation, seed: np.random.SeedSequence) -> np.ndarray:
    """[C, H, W] in -1..1, in float64."""
    words = [int(word) for word in seed.generate_state(9, np.uint64)]
    signs = [2 * (word >> 11) / 2**53 - 1 for word in words]
    values = array.astype(np.float64) / (1 if array.dtype == np.float32 else np.iinfo(array.dtype).max)
    if found.flip in ("horizontal", "both") and words[0] & 1:
        values = values[:, ::-1]
    if found.flip in ("vertical", "both") and words[0] & 2:
        values = values[::-1]
    whole = values
    factor = math.exp(math.log(1 + found.scale) * signs[5])
    for axis in (0, 1):
        size, length = round(crop[axis] / factor), values.shape[axis]
        low, high = min(0, length - size), max(0, length - size)
        place = low + words[1 + axis] % (high + 1) if low == 0 else -(words[1 + axis] % (1 - low))
        place += round(found.shift * signs[3 + axis] * size)
        margin = 3 * length
        for end in (0, -1):
            plain = np.ptp(whole.take(end, axis), axis=0).max() == 0
            widths = [((margin, 0) if end == 0 else (0, margin)) if a == axis else (0, 0) for a in range(3)]
            values = np.pad(values, widths, mode="edge" if plain else "symmetric")
        values = values.take(range(margin + place, margin + place + size), axis)
    values = np.einsum(
        "ih,hwc,jw->cij",
        *(resampling(*pair) for pair in [(values.shape[0], crop[0])]),
        values,
        resampling(values.shape[1], crop[1]),
    ).clip(0, 1)
    brightness, contrast, saturation = (1 + found.color_jitter * sign for sign in signs[6:])
    values = values * brightness
    mean = values.mean(axis=(1, 2), keepdims=True)
    values = (values - mean) * contrast + mean
    if len(values) == 3:
        luma = np.tensordot([0.299, 0.587, 0.114], values, 1)
        values = (values - luma) * saturation + luma
    return (2 * values - 1).clip(-1, 1)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_everything_against_a_plain_formula(channels: int, dtype: Any) -> None:
    array = noise(26, 33, channels, dtype)
    for i in range(15):
        found = EVERYTHING.random_crop(array, CROP, key(i))
        assert found.shape == (channels, *CROP) and found.dtype == torch.float32 and found.is_contiguous()
        assert torch.allclose(found.double(), torch.from_numpy(expected(array, CROP, EVERYTHING, key(i))), atol=3e-5)


@pytest.mark.parametrize("name", ["flip", "shift", "scale", "color_jitter"])
def test_each_alone_against_a_plain_formula(name: str) -> None:
    alone = replace(Augmentation("none"), **{name: getattr(EVERYTHING, name)})
    array = noise(24, 31, 3)
    changed = 0
    for i in range(15):
        found = alone.random_crop(array, CROP, key(i))
        assert torch.allclose(found.double(), torch.from_numpy(expected(array, CROP, alone, key(i))), atol=3e-5)
        changed += not torch.equal(found, Augmentation("none").random_crop(array, CROP, key(i)))
    assert changed > 8


@pytest.mark.parametrize("edge", ["top", "left", "all"])
def test_paper_goes_on_as_paper(edge: str) -> None:
    """Beyond an edge of one colour there is that colour, though lines are near it."""
    array = noise(24, 20, 3)
    for place in ("top", "left", "bottom", "right") if edge == "all" else (edge,):
        turns = {"top": 0, "left": 1, "bottom": 2, "right": 3}[place]
        np.rot90(array, -turns)[:1] = (250, 240, 230)
    moved = Augmentation("none", 0.4, 0.3)
    for i in range(15):
        found = moved.random_crop(array, CROP, key(i))
        assert torch.allclose(found.double(), torch.from_numpy(expected(array, CROP, moved, key(i))), atol=3e-5)
    if edge == "all":
        shifted = Augmentation("none", 0.9).random_crop(array, CROP, key(3))
        assert (shifted == to_model_range(array[:1, :1])).all(dim=0).float().mean() > 0.3


def test_nothing_is_blurred_without_scale() -> None:
    """Every pixel of a shifted crop is one of the image's."""
    array = noise(24, 24, 3)
    values = {tuple(pixel) for pixel in to_model_range(array).flatten(1).T.tolist()}
    for i in range(10):
        found = Augmentation(shift=0.9).random_crop(array, (24, 24), key(i))
        assert {tuple(pixel) for pixel in found.flatten(1).T.tolist()} <= values


def test_the_whole_range_is_drawn() -> None:
    """Of a ramp without texture, the crop's middle tells the shift and its slope the factor."""
    ramp = np.repeat(np.linspace(0.3, 0.7, 41, dtype=np.float32)[:, None, None], 41, axis=1)
    shifts, factors = [], []
    for i in range(400):
        moved = Augmentation(shift=0.25).random_crop(ramp, (41, 41), key(i))[0, :, 20]
        shifts.append(
            (int((moved - moved.min()).argmin()) - int((moved.max() - moved).argmin()), moved[20].item() * 50)
        )
        zoomed = Augmentation(scale=0.25).random_crop(ramp, (41, 41), key(i))[0, :, 20]
        factors.append((0.8 / 40) / (zoomed[21] - zoomed[19]).item() * 2)
    middles = np.array([middle for _, middle in shifts])
    assert middles.min() == pytest.approx(-10, abs=0.6) and middles.max() == pytest.approx(10, abs=0.6)
    assert abs(middles.mean()) < 1
    # Sizes of windows are whole: 33 to 51 rows.
    assert min(factors) == pytest.approx(1 / 1.25, abs=0.02) and max(factors) == pytest.approx(1.25, abs=0.02)


def test_flips_come_half_the_time_and_apart() -> None:
    array = np.arange(4, dtype=np.uint8).reshape(2, 2, 1)
    first = to_model_range(array)
    seen: dict[str, Counter[tuple[bool, bool]]] = {}
    for flip in ("none", "horizontal", "vertical", "both"):
        seen[flip] = Counter()
        for i in range(800):
            corner = Augmentation(flip).random_crop(array, (2, 2), key(i))[0, 0, 0]  # type: ignore[arg-type]
            place = int((first == corner).flatten().nonzero())
            seen[flip][place // 2 == 1, place % 2 == 1] += 1
    assert set(seen["none"]) == {(False, False)}
    assert set(seen["horizontal"]) == {(False, False), (False, True)}
    assert set(seen["vertical"]) == {(False, False), (True, False)}
    assert len(seen["both"]) == 4
    for flip, counts in seen.items():
        assert all(abs(count - 800 / len(seen[flip])) < 80 for count in counts.values())


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_only_three_channels_are_colours(channels: int) -> None:
    """The saturation of other images stays: a channel goes by brightness and its own mean alone."""
    array = noise(9, 9, channels)
    alone = array.copy()
    alone[:, :, 1:] = 0
    jitter = Augmentation("none", color_jitter=0.5)
    for i in range(5):
        found, same = (jitter.random_crop(a, (9, 9), key(i)) for a in (array, alone))
        assert torch.equal(found[0], same[0])


def test_a_flat_image_stays_flat_and_in_range() -> None:
    white = np.full((16, 16, 3), 255, np.uint8)
    for i in range(20):
        found = Augmentation("both", 0.9, 0.9, 0.9).random_crop(white, (16, 16), key(i))
        assert found.max() <= 1 and found.min() >= -1 and (found - found[0, 0, 0]).abs().max() < 1e-6
        assert torch.equal(Augmentation("both", 0.9).random_crop(white, (16, 16), key(i)), torch.ones(3, 16, 16))


# -- what decides


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], list[Path]]:
    root = tmp_path_factory.mktemp("augmentation")
    return write_images(root / "a", 7), write_images(root / "b", 10)


def take(sets: tuple[list[Path], list[Path]], count: int, cache: bool = True, **options: Any) -> list[Batch]:
    a, b = (ImageSet(paths, cache=cache) for paths in sets)
    options = {"augmentation_a": EVERYTHING, "augmentation_b": EVERYTHING, "batch_size": 2, "seed": 5} | options
    return list(islice(UnpairedBatches(a, b, (8, 9), (6, 7), **options), count))


def equal(left: list[Batch], right: list[Batch]) -> bool:
    return all(torch.equal(x, y) for p, q in zip(left, right, strict=True) for x, y in zip(p, q, strict=True))


def test_off_gives_the_bits_of_versions_without(sets: tuple[list[Path], list[Path]]) -> None:
    digest = hashlib.sha256()
    for batch in take(sets, 30, augmentation_a=Augmentation(), augmentation_b=Augmentation()):
        for images in batch:
            digest.update(images.numpy().tobytes())
    assert digest.hexdigest() == "46f6ea22c58fbadc066c708bdb9954ee75f61ae76b7621564bc3b1c2805989a7"


@pytest.mark.parametrize("flip", ["none", "horizontal", "vertical", "both"])
def test_places_do_not_depend_on_what_else_is_on(flip: Any) -> None:
    array = noise(30, 31, 3)
    for i in range(10):
        plain = Augmentation(flip).random_crop(array, CROP, key(i))
        tiny = Augmentation(flip, 1e-6, 1e-6, 1e-7).random_crop(array, CROP, key(i))
        assert torch.allclose(plain, tiny, atol=1e-5)


def test_a_sample_is_decided_by_its_place(sets: tuple[list[Path], list[Path]]) -> None:
    whole = take(sets, 9)
    assert equal(take(sets, 6, start_iteration=3), whole[3:])
    assert equal(take(sets, 7, cache=False, num_workers=2, start_iteration=2), whole[2:])
    ranks = [take(sets, 4, batch_size=1, rank=rank, world_size=2) for rank in (0, 1)]
    for i in range(4):
        for domain in (0, 1):
            assert torch.equal(torch.cat([rank[i][domain] for rank in ranks]), whole[i][domain])
    assert not equal(take(sets, 9, seed=6), whole)


def test_domains_have_their_own(sets: tuple[list[Path], list[Path]]) -> None:
    both, only_a = take(sets, 6), take(sets, 6, augmentation_b=Augmentation())
    off = take(sets, 6, augmentation_a=Augmentation(), augmentation_b=Augmentation())
    for i in range(6):
        assert torch.equal(only_a[i][0], both[i][0]) and torch.equal(only_a[i][1], off[i][1])
        assert not torch.equal(both[i][0], off[i][0]) and not torch.equal(both[i][1], off[i][1])
    same = (sets[0], sets[0])
    a, b = (ImageSet(paths) for paths in same)
    drawn = list(
        islice(UnpairedBatches(a, b, (8, 9), (8, 9), 7, augmentation_a=EVERYTHING, augmentation_b=EVERYTHING), 3)
    )
    assert not any(torch.equal(x_a, x_b) for x_a, x_b in drawn)


@pytest.mark.parametrize("channels", [1, 3])
def test_threads_change_nothing(channels: int) -> None:
    array, threads = noise(300, 280, channels), torch.get_num_threads()
    found = []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            found.append(torch.stack([EVERYTHING.random_crop(array, (256, 256), key(i)) for i in range(4)]))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_random_generators_are_left_alone(sets: tuple[list[Path], list[Path]]) -> None:
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index]  # noqa: NPY002
    take(sets, 3)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # type: ignore[index]  # noqa: NPY002


def test_an_image_too_small_is_refused_as_ever(tmp_path: Path) -> None:
    image_set = ImageSet(write_images(tmp_path, 1))
    with pytest.raises(ImageError, match=r"000\.png: 14x12 pixels .*crop of 9x13; lower crop_image_width"):
        train_crop(image_set, 0, (13, 9), key(0), EVERYTHING)


def test_the_images_of_a_set_are_not_written_to(sets: tuple[list[Path], list[Path]]) -> None:
    image_set = ImageSet(sets[0])
    before = image_set.image(3).copy(), display_images(image_set, (8, 8), 4)
    for i in range(10):
        train_crop(image_set, 3, (12, 14), key(i), EVERYTHING)
    assert np.array_equal(image_set.image(3), before[0])
    assert torch.equal(display_images(image_set, (8, 8), 4), before[1])


# -- configuration


def test_keys_are_those_of_a_domain() -> None:
    keys = {"flip_a": "none", "shift_a": 0.1, "scale_b": 0.2, "color_jitter_b": 0.3}
    cfg = make_config(keys)
    assert augmentation(cfg, "a") == Augmentation("none", 0.1)
    assert augmentation(cfg, "b") == Augmentation("horizontal", 0, 0.2, 0.3)
    assert augmentation(make_config({}), "a") == Augmentation()


@pytest.mark.parametrize("name", ["shift_a", "scale_b", "color_jitter_a"])
@pytest.mark.parametrize("value", [1, -0.1, "nan", "much", True])
def test_values_out_of_range_are_named(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"^configuration: {name}: .*(less than 1|0|number)") as caught:
        make_config({name: value})
    assert "\n" not in str(caught.value)


def test_unknown_flips_are_named() -> None:
    for value in ("diagonal", False):
        with pytest.raises(ConfigError, match=r"flip_a: .*'none', 'horizontal', 'vertical' or 'both'"):
            make_config({"flip_a": value})


def test_a_run_augments_its_training_images_alone(
    small_config: dict[str, Any], picture_folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, Any]] = []
    whole = UnpairedBatches

    def batches(*sets: Any, **options: Any) -> UnpairedBatches:
        seen.append(options)
        return whole(*sets, **options)

    monkeypatch.setattr(loop, "UnpairedBatches", batches)
    keys = {"shift_a": 0.3, "scale_b": 0.2, "flip_b": "both"}
    for name, values in (("on", keys), ("off", {})):
        run(small_config | {"max_iter": 2, "lr": 1e-12} | values, picture_folders, tmp_path / name)
    assert seen[0]["augmentation_a"] == Augmentation(shift=0.3)
    assert seen[0]["augmentation_b"] == Augmentation("both", scale=0.2)
    assert seen[1]["augmentation_a"] == seen[1]["augmentation_b"] == Augmentation()
    # With weights that do not move, the grids show the same images with and without.
    grids = [sorted((tmp_path / name / "outputs/small/images").glob("*00000002.jpg")) for name in ("on", "off")]
    assert len(grids[0]) == len(grids[1]) > 0
    for on, off in zip(*grids, strict=True):
        difference = np.asarray(Image.open(on)).astype(int) - np.asarray(Image.open(off))
        assert np.abs(difference).max() <= 8
    with pytest.raises(ConfigError, match=r"(?m)^shift_a: 0\.3 -> 0: give --override shift_a=0 "):
        run(small_config | {"max_iter": 3}, picture_folders, tmp_path / "on", resume=True)
