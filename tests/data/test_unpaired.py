"""Image sets and the unpaired batches drawn from them."""

from __future__ import annotations

import multiprocessing
import pickle
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.source_files import write_images
from munit_fast.data import (
    FileSource,
    ImageError,
    ImageSet,
    UnpairedBatches,
    decode_image,
    display_images,
    resize_short_side,
    to_model_range,
)
from munit_fast.data.datasets import centre_crop, shuffled, train_crop

Batch = tuple[torch.Tensor, torch.Tensor]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("batches")
    write_images(root / "a", 7)
    write_images(root / "b", 10)
    return root


def make_set(folder: Path, name: str, cache: bool = True, channels: int = 3) -> ImageSet:
    return ImageSet(sorted((folder / name).iterdir()), channels, None, cache)


def make_batches(folder: Path, cache: bool = True, **options: int) -> UnpairedBatches:
    sets = make_set(folder, "a", cache), make_set(folder, "b", cache)
    return UnpairedBatches(*sets, (8, 9), (6, 7), **{"batch_size": 2, "seed": 5, **options})


def take(batches: UnpairedBatches, count: int) -> list[Batch]:
    return list(islice(batches, count))


def images_of(batch: torch.Tensor) -> list[int]:
    """The numbers of a batch's images, read from their red channel."""
    return [round((x.item() + 1) * 127.5) for x in batch[:, 0, 0, 0]]


def equal(left: list[Batch], right: list[Batch]) -> bool:
    pairs = zip(left, right, strict=True)
    return all(torch.equal(p[0], q[0]) and torch.equal(p[1], q[1]) for p, q in pairs)


# -- sets


@pytest.mark.parametrize("cache", [True, False])
def test_a_set_gives_resized_images(folder: Path, cache: bool) -> None:
    paths = sorted((folder / "a").iterdir())
    image_set = ImageSet(paths, 1, 9, cache)
    assert (len(image_set), image_set.cached, image_set.where(3)) == (7, cache, str(paths[3]))
    expected = resize_short_side(decode_image(paths[3], 1), 9)
    assert expected.shape == (9, 10, 1) and np.array_equal(image_set.image(3), expected)


def test_a_cached_set_reads_its_files_once(tmp_path: Path) -> None:
    paths = write_images(tmp_path, 3)
    cached, lazy = ImageSet(paths, cache=True), ImageSet(paths, cache=False)
    paths[1].unlink()
    assert cached.image(1).shape == (12, 14, 3)
    with pytest.raises(ImageError, match=r"001\.png: no such file"):
        lazy.image(1)


@pytest.mark.parametrize(("limit", "cached"), [(7 * 12 * 14 * 3, True), (7 * 12 * 14 * 3 - 1, False)])
def test_auto_caches_what_fits(folder: Path, limit: int, cached: bool) -> None:
    paths = sorted((folder / "a").iterdir())
    assert ImageSet(paths, cache="auto", cache_limit_bytes=limit).cached is cached


def test_a_bad_file_stops_the_cache_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = write_images(tmp_path, 200)
    paths[0].write_bytes(b"")
    read = []
    whole = FileSource.read
    monkeypatch.setattr(FileSource, "read", lambda *a: (read.append(a), whole(*a))[1])
    with pytest.raises(ImageError, match=r"000\.png: .*empty"):
        ImageSet(paths, cache=True)
    assert len(read) < 200


def test_empty_sets_and_sizes_are_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="path"):
        ImageSet([], 3)
    with pytest.raises(ValueError, match=r"short_side .*not 0"):
        ImageSet(sorted((folder / "a").iterdir()), 3, 0)


def test_a_set_is_called_by_its_folder(tmp_path: Path) -> None:
    paths = write_images(tmp_path / "x", 1) + write_images(tmp_path / "y", 1)
    assert ImageSet(paths).source.label == str(tmp_path)
    assert ImageSet(paths[:1]).source.label == str(tmp_path / "x")


def test_a_needle_is_named(tmp_path: Path) -> None:
    Image.new("RGB", (60_000, 1)).save(tmp_path / "needle.png")
    with pytest.raises(ImageError, match=r"needle\.png: a 60000x1 image"):
        ImageSet([tmp_path / "needle.png"], 3, 256)


# -- crops


def key(i: int) -> np.random.SeedSequence:
    return np.random.SeedSequence(i)


def test_training_crops_cover_all_places_and_both_directions(folder: Path) -> None:
    image_set = make_set(folder, "a")
    seen: Counter[tuple[int, int, bool]] = Counter()
    for i in range(2000):
        crop = train_crop(image_set, 2, (10, 12), key(i))
        assert crop.shape == (3, 10, 12)
        rows, columns = ((crop[c] + 1) * 12.75 for c in (1, 2))
        flipped = bool(columns[0, 0] > columns[0, -1])
        seen[round(rows[0, 0].item()), round(columns.min().item()), flipped] += 1
    assert set(seen) == {(y, x, f) for y in range(3) for x in range(3) for f in (False, True)}
    assert min(seen.values()) > 70 and max(seen.values()) < 155  # 111 expected


def test_a_training_crop_is_a_part_of_the_image(folder: Path) -> None:
    image_set = make_set(folder, "a")
    whole = to_model_range(image_set.image(1))
    for i in range(20):
        crop = train_crop(image_set, 1, (12, 14), key(i))
        assert torch.equal(crop, whole) or torch.equal(crop, whole.flip(2))


def test_flipping_before_or_after_the_resize_is_alike() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (50, 67, 3), np.uint8)
    for size in (20, 33, 64):
        first = resize_short_side(np.ascontiguousarray(pixels[:, ::-1]), size).astype(int)
        then = resize_short_side(pixels, size)[:, ::-1].astype(int)
        assert np.abs(first - then).max() <= 1 and (first != then).mean() < 0.01


def test_the_centre_crop_takes_the_middle(folder: Path) -> None:
    image_set = make_set(folder, "a")
    assert torch.equal(centre_crop(image_set, 4, (8, 4)), to_model_range(image_set.image(4)[2:10, 5:9]))


@pytest.mark.parametrize("crop", [(13, 9), (9, 15)])
@pytest.mark.parametrize("cache", [True, False])
def test_a_crop_larger_than_an_image_names_the_keys(folder: Path, crop: tuple[int, int], cache: bool) -> None:
    sets = make_set(folder, "a", cache), make_set(folder, "b", cache)
    with pytest.raises(ImageError) as caught:
        next(iter(UnpairedBatches(*sets, (8, 8), crop, 1)))
    for word in ("14x12 pixels", f"{crop[1]}x{crop[0]}", "crop_image_width", "crop_image_height", "new_size", "b"):
        assert word in str(caught.value)


def test_cached_sets_are_checked_before_training(tmp_path: Path) -> None:
    paths = write_images(tmp_path, 5)
    Image.new("RGB", (7, 40)).save(paths[3])
    image_set = ImageSet(paths, cache=True)
    with pytest.raises(ImageError, match=r"003\.png: 7x40 pixels"):
        UnpairedBatches(image_set, image_set, (8, 8), (8, 8), 1)


# -- batches


def test_shapes_and_range(folder: Path) -> None:
    x_a, x_b = take(make_batches(folder), 1)[0]
    assert x_a.shape == (2, 3, 8, 9) and x_b.shape == (2, 3, 6, 7)
    assert x_a.dtype == x_b.dtype == torch.float32 and x_a.min() >= -1 and x_b.max() <= 1


def test_an_epoch_is_the_shorter_set_without_repeats(folder: Path) -> None:
    batches = make_batches(folder)
    assert batches.iterations_per_epoch == 3
    drawn = take(batches, 3 * 40)
    orders = set()
    for epoch in range(40):
        part = drawn[3 * epoch : 3 * epoch + 3]
        for domain, count in ((0, 7), (1, 10)):
            images = [i for batch in part for i in images_of(batch[domain])]
            assert len(set(images)) == 6 and set(images) <= set(range(count))
            orders.add((domain, *images))
    assert len(orders) > 75
    for domain, count in ((0, 7), (1, 10)):
        assert {i for batch in drawn for i in images_of(batch[domain])} == set(range(count))


@pytest.mark.parametrize("start", [1, 2, 3, 7])
def test_resuming_gives_the_same_bits(folder: Path, start: int) -> None:
    whole = take(make_batches(folder), 12)
    assert equal(take(make_batches(folder, start_iteration=start), 12 - start), whole[start:])


def test_iterating_again_begins_again(folder: Path) -> None:
    batches = make_batches(folder)
    assert equal(take(batches, 5), take(batches, 5))


def test_seeds_and_domains_differ(folder: Path) -> None:
    first = take(make_batches(folder), 3)
    for seed in (6, 5 + 2**32, -5):
        assert not equal(take(make_batches(folder, seed=seed), 3), first)
    both = make_set(folder, "a")
    x_a, x_b = take(UnpairedBatches(both, both, (8, 9), (8, 9), 7), 1)[0]
    assert images_of(x_a) != images_of(x_b)


def test_epochs_and_positions_have_their_own_crops(tmp_path: Path) -> None:
    def places(count: int) -> tuple[list[float], list[float]]:
        """The rows of the crops of 20 batches, by domain: of one epoch or of 20."""
        image_set = ImageSet(write_images(tmp_path / str(count), count, 24, 9), cache=True)
        drawn = take(UnpairedBatches(image_set, image_set, (4, 4), (4, 4), 1), 20)
        rows_a, rows_b = ([float(batch[d][0, 1, 0, 0]) for batch in drawn] for d in (0, 1))
        return rows_a, rows_b

    for count in (1, 20):
        rows_a, rows_b = places(count)
        assert len(set(rows_a)) > 8 and len(set(rows_b)) > 8
        assert sum(a == b for a, b in zip(rows_a, rows_b, strict=True)) < 6


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(folder: Path, workers: int) -> None:
    whole = take(make_batches(folder), 8)
    lazy = make_batches(folder, cache=False, num_workers=workers, start_iteration=2)
    assert equal(take(lazy, 6), whole[2:])


def test_ranks_share_the_global_batch(folder: Path) -> None:
    whole = take(make_batches(folder, batch_size=3), 4)
    ranks = [take(make_batches(folder, batch_size=1, rank=r, world_size=3), 4) for r in range(3)]
    for i, batch in enumerate(whole):
        for domain in (0, 1):
            assert torch.equal(torch.cat([rank[i][domain] for rank in ranks]), batch[domain])


def test_the_global_generator_is_left_alone(folder: Path) -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    take(make_batches(folder), 5)
    take(make_batches(folder, cache=False, num_workers=1), 2)
    assert torch.equal(torch.rand(4), expected)


def test_the_stream_is_the_same_in_every_version() -> None:
    assert shuffled(8, np.random.SeedSequence(5, spawn_key=(0, 0, 1))).tolist() == [3, 5, 2, 4, 1, 0, 6, 7]
    assert key(1).generate_state(2, np.uint64).tolist() == [7434755675892716031, 10007452063617845036]


def test_names_are_those_of_a_batch(folder: Path) -> None:
    batches = make_batches(folder, start_iteration=2)
    for iteration, batch in enumerate(take(batches, 5), 2):
        for files, images in zip(batches.names(iteration), batch, strict=True):
            assert [int(Path(name).stem) for name in files] == images_of(images)


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_set_smaller_than_the_batch_is_named(folder: Path, world_size: int) -> None:
    with pytest.raises(ValueError, match=r"a has 7 images, .*batch_size (8|4 .* 2 ranks)"):
        make_batches(folder, batch_size=8 // world_size, world_size=world_size)
    assert make_batches(folder, batch_size=7).iterations_per_epoch == 1


@pytest.mark.parametrize(
    "options", [{"batch_size": 0}, {"num_workers": -1}, {"start_iteration": -1}, {"rank": 1}, {"rank": -1}]
)
def test_numbers_out_of_range_are_refused(folder: Path, options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(options))}={next(iter(options.values()))}"):
        make_batches(folder, **options)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_file_is_named_in_one_line(tmp_path: Path, workers: int) -> None:
    paths = write_images(tmp_path, 4)
    paths[2].write_bytes(paths[2].read_bytes()[:60])
    image_set = ImageSet(paths, cache=False)
    batches = UnpairedBatches(image_set, image_set, (8, 8), (8, 8), 2, num_workers=workers)
    with pytest.raises(ImageError, match=r"002\.png: ") as caught:
        take(batches, 4)
    assert "\n" not in str(caught.value)
    assert multiprocessing.active_children() == []  # though the traceback is still held


def test_samples_survive_pickling(folder: Path) -> None:
    """Where worker processes are spawned and not forked, the samples reach them as a pickle."""
    batches = make_batches(folder, cache=False)
    copy = pickle.loads(pickle.dumps(batches._samples))
    for sample_key in batches._schedule.keys(4):
        assert torch.equal(copy[sample_key].content, batches._samples[sample_key].content)


# -- display


def test_display_shows_what_there_is(folder: Path) -> None:
    image_set = make_set(folder, "a")
    assert images_of(display_images(image_set, (8, 8), 3)) == [0, 1, 2]
    assert images_of(display_images(image_set, (8, 8), 99)) == list(range(7))
    picked = images_of(display_images(image_set, (8, 8), 5, seed=1))
    assert len(set(picked)) == 5 and picked == images_of(display_images(image_set, (8, 8), 5, seed=1))
    assert picked != images_of(display_images(image_set, (8, 8), 5, seed=2))
    with pytest.raises(ValueError, match=r"count .*not 0"):
        display_images(image_set, (8, 8), 0)
