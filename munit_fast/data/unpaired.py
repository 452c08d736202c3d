"""Unpaired training batches: endless, the same for every number of workers, resumable at any iteration."""

from __future__ import annotations

import ctypes
import signal
import sys
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from munit_fast.data.augmentation import AS_PUBLISHED, Augmentation
from munit_fast.data.datasets import ImageSet, check_crops, shuffled, train_crop
from munit_fast.data.picture import ImageError

_SHUFFLE, _AUGMENT, _REPLACE = 0, 1, 2  # what a random stream is for: the first word of its key
_A, _B = 0, 1

_MAX_SUBSTITUTES = 8  # images tried in the place of one that cannot be read
_MAX_DEATHS = 3  # of loader processes in a row, without a batch between them, after which they are not restarted

Crop = tuple[int, int]


class LoaderError(RuntimeError):
    """The processes that load images keep dying. The message is one line."""


class UnpairedBatches:
    """Endless pairs of unpaired batches (x_a, x_b), each [batch_size, C, H, W] float32 in -1..1.

    Every epoch shuffles each domain anew and runs until the shorter one is used up; what does not fill a
    batch is left out. The order is a function of (seed, epoch, domain), and a sample's crop and augmentation are a
    function of (seed, epoch, domain, position in the epoch), through NumPy's ``SeedSequence``. So a run resumed at
    iteration k gets bit for bit what the uninterrupted run got there, for every number of workers. PyTorch's global
    random generator is not used.

    With several ranks the global batch has ``batch_size * world_size`` images and each rank takes its slice.

    With a ``report``, an image that cannot be read is replaced by another one of its set, which the seed and its
    place decide: as long as the same files are bad, a resumed run sees the same images. A loader process that dies
    is started again. Without one, both end the iteration.

    Args:
        set_a: domain A.
        set_b: domain B.
        crop_a: (height, width) of the training crops of A.
        crop_b: the same for B.
        batch_size: images of each domain per rank.
        seed: any integer.
        num_workers: worker processes that decode; where both sets are in memory, none are used.
        start_iteration: the iteration that every new iterator begins with.
        rank: of this process in data-parallel training.
        world_size: number of such processes.
        report: takes a line for each image that was replaced, once a file, and for each loader restarted.
        augmentation_a: how the images of A are changed; as published, they are flipped with probability ½.
        augmentation_b: the same for B.

    Attributes:
        iterations_per_epoch: batches per epoch.

    Raises:
        ValueError: a set has fewer images than the global batch, or a number is out of its range.
        ImageError: an image cannot be read or is smaller than the crop. For sets in memory this shows at
            once, for others when the batch is due, and with a ``report`` when no other image can be read either.
        LoaderError: loader processes die again and again.
    """

    def __init__(
        self,
        set_a: ImageSet,
        set_b: ImageSet,
        crop_a: Crop,
        crop_b: Crop,
        batch_size: int,
        seed: int = 0,
        num_workers: int = 0,
        start_iteration: int = 0,
        rank: int = 0,
        world_size: int = 1,
        report: Callable[[str], None] | None = None,
        augmentation_a: Augmentation = AS_PUBLISHED,
        augmentation_b: Augmentation = AS_PUBLISHED,
    ) -> None:
        if batch_size < 1 or num_workers < 0 or start_iteration < 0 or not 0 <= rank < world_size:
            raise ValueError(
                "batch_size must be at least 1, num_workers and start_iteration at least 0, rank in "
                f"0..world_size-1; got {batch_size=}, {num_workers=}, {start_iteration=}, {rank=}, "
                f"{world_size=}"
            )
        self._sets = (set_a, set_b)
        for image_set, crop in zip(self._sets, (crop_a, crop_b), strict=True):
            _check_set(image_set, crop, batch_size, world_size)
        augmentations = (augmentation_a, augmentation_b)
        self._samples = _Samples(self._sets, (crop_a, crop_b), augmentations, seed, replace=report is not None)
        self._report = report
        self._reported: set[tuple[int, int]] = set()
        self._schedule = _Schedule((len(set_a), len(set_b)), batch_size, seed, rank, world_size)
        self._num_workers = 0 if set_a.cached and set_b.cached else num_workers
        self.start_iteration = start_iteration
        self.iterations_per_epoch = self._schedule.iterations_per_epoch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        iteration, deaths = self.start_iteration, 0
        loader = self._loader(iteration)
        while True:
            try:
                batch = next(loader)
            except (RuntimeError, EOFError, OSError) as error:
                # The latter two come from the pipes of a process that died in the middle of a batch.
                other = isinstance(error, RuntimeError) and not str(error).startswith("DataLoader worker")
                if self._report is None or self._num_workers == 0 or other:
                    raise
                deaths += 1
                if deaths > _MAX_DEATHS:
                    raise LoaderError(
                        f"a process that loads images died {deaths} times in a row, before iteration {iteration + 1}; "
                        "is there too little memory? lower num_workers (0: load in the training process)"
                    ) from error
                self._report(f"a process that loads images died before iteration {iteration + 1}; starting it again")
                loader = self._loader(iteration)
                continue
            if isinstance(batch, _Failure):
                del loader  # and its workers, which a traceback would keep
                raise ImageError(batch.message)
            for failure in batch.replaced:
                self._report_once(failure)
            iteration, deaths = iteration + 1, 0
            yield batch.x_a, batch.x_b

    def _loader(self, start: int) -> Iterator[Any]:
        # One endless epoch: the workers live as long as this iterator. With persistent_workers the loader would
        # hold on to them after an error, for as long as its traceback is kept.
        loader: DataLoader[_Sample] = DataLoader(
            self._samples,
            batch_sampler=self._schedule.batches(start),
            num_workers=self._num_workers,
            collate_fn=_collate,
            worker_init_fn=_init_worker,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # without one, the loader takes a number from the global generator
        )
        on_death = signal.getsignal(signal.SIGCHLD)
        iterator = iter(loader)
        if signal.getsignal(signal.SIGCHLD) is not on_death:
            # The loader's handler raises wherever the process is, in the middle of an update for example. Without it a
            # death is noticed when the next batch is due, within five seconds.
            signal.signal(signal.SIGCHLD, on_death)
        return iterator

    def _report_once(self, failure: _Failure) -> None:
        if self._report is not None and failure.image not in self._reported:
            self._reported.add(failure.image)
            self._report(f"{failure.message}; another image takes its place")

    def names(self, iteration: int) -> tuple[list[str], list[str]]:
        """The images of the global batch at ``iteration``, in its order: for error reports."""
        keys = self._schedule.global_keys(iteration)
        files_a, files_b = ([self._sets[d].where(key.number) for key in keys if key.domain == d] for d in (_A, _B))
        return files_a, files_b


class _Key(NamedTuple):
    """What a training sample depends on, besides the set and the seed."""

    domain: int
    epoch: int
    position: int  # in the shuffled epoch
    number: int  # in the image set


class _Failure(NamedTuple):
    """An ImageError on its way out of a worker: raised there, it would arrive inside a traceback."""

    message: str
    image: tuple[int, int]  # domain, number in the set


class _Sample(NamedTuple):
    domain: int
    content: Tensor | _Failure  # [C, H, W]
    replaced: _Failure | None = None


class _Batch(NamedTuple):
    x_a: Tensor
    x_b: Tensor
    replaced: list[_Failure]


class _Schedule:
    """Which samples make up which iteration."""

    def __init__(self, lengths: tuple[int, int], batch_size: int, seed: int, rank: int, world_size: int) -> None:
        self._lengths, self._batch_size, self._seed, self._rank = lengths, batch_size, seed, rank
        self._global_batch = batch_size * world_size
        self._order: dict[int, tuple[int, np.ndarray]] = {}  # domain → (epoch, its order): one epoch is kept
        self.iterations_per_epoch = min(lengths) // self._global_batch

    def batches(self, start: int) -> Iterator[list[_Key]]:
        """The keys of the iterations ``start``, ``start + 1``, ... without end."""
        return map(self.keys, count(start))

    def keys(self, iteration: int) -> list[_Key]:
        """The keys of this rank's samples: batch_size of A, then batch_size of B."""
        return self._keys(iteration, self._rank * self._batch_size, self._batch_size)

    def global_keys(self, iteration: int) -> list[_Key]:
        """The keys of all ranks' samples."""
        return self._keys(iteration, 0, self._global_batch)

    def _keys(self, iteration: int, start: int, length: int) -> list[_Key]:
        epoch, step = divmod(iteration, self.iterations_per_epoch)
        first = step * self._global_batch + start
        positions = range(first, first + length)
        return [_Key(d, epoch, p, int(self._epoch_order(d, epoch)[p])) for d in (_A, _B) for p in positions]

    def _epoch_order(self, domain: int, epoch: int) -> np.ndarray:
        kept = self._order.get(domain)
        if kept is None or kept[0] != epoch:
            order = shuffled(self._lengths[domain], _stream(self._seed, _SHUFFLE, epoch, domain))
            kept = self._order[domain] = (epoch, order)
        return kept[1]


class _Samples(Dataset[_Sample]):
    """Training samples by key; runs in the workers."""

    def __init__(
        self,
        sets: tuple[ImageSet, ImageSet],
        crops: tuple[Crop, Crop],
        augmentations: tuple[Augmentation, Augmentation],
        seed: int,
        replace: bool,
    ) -> None:
        self._sets, self._crops, self._augmentations = sets, crops, augmentations
        self._seed, self._replace = seed, replace

    def __getitem__(self, key: _Key) -> _Sample:
        sample = self._read(key)
        failure = sample.content
        if not isinstance(failure, _Failure) or not self._replace:
            return sample
        stream = _stream(self._seed, _REPLACE, key.epoch, key.domain, key.position)
        for number in shuffled(len(self._sets[key.domain]), stream)[:_MAX_SUBSTITUTES]:
            other = self._read(key._replace(number=int(number)))
            if isinstance(other.content, Tensor):
                return other._replace(replaced=failure)
        return sample

    def _read(self, key: _Key) -> _Sample:
        stream = _stream(self._seed, _AUGMENT, key.epoch, key.domain, key.position)
        try:
            of_domain = self._crops[key.domain], stream, self._augmentations[key.domain]
            content = train_crop(self._sets[key.domain], key.number, *of_domain)
        except ImageError as error:
            return _Sample(key.domain, _Failure(str(error), (key.domain, key.number)))
        return _Sample(key.domain, content)


def _init_worker(worker: int) -> None:
    """Leave SIGINT to the parent, let SIGTERM end the worker, and end it with the parent.

    Ctrl-C reaches every process of a terminal, and the parent decides. A forked worker would otherwise inherit the
    parent's handlers, which take the first signal as a request only. It also holds the parent's lock on the run's
    folder, so it must not outlive a parent that is killed.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG; elsewhere the loader looks every few seconds


def _collate(samples: list[_Sample]) -> _Batch | _Failure:
    images: tuple[list[Tensor], list[Tensor]] = ([], [])
    for sample in samples:
        if isinstance(sample.content, _Failure):
            return sample.content
        images[sample.domain].append(sample.content)
    replaced = [sample.replaced for sample in samples if sample.replaced is not None]
    return _Batch(torch.stack(images[_A]), torch.stack(images[_B]), replaced)


def _stream(seed: int, *key: int) -> np.random.SeedSequence:
    """The random stream of one purpose; ``spawn_key`` keeps streams with different keys apart."""
    return np.random.SeedSequence(seed % 2**64, spawn_key=key)


def _check_set(image_set: ImageSet, crop: Crop, batch_size: int, world_size: int) -> None:
    needed = batch_size * world_size
    if len(image_set) < needed:
        ranks = "" if world_size == 1 else f" on each of {world_size} ranks"
        raise ValueError(
            f"{image_set.source.label} has {len(image_set)} images, fewer than batch_size {batch_size}{ranks}; "
            f"add images or lower batch_size"
        )
    if image_set.cached:
        check_crops(image_set, crop)
