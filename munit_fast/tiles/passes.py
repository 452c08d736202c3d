"""The passes over an image that give the exact statistics of its norms, and what is kept on disk between them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from munit_fast.tiles.networks import Conv, Node, Normed, Reader, ancestors
from munit_fast.tiles.plan import Box, Planes, tiles_of
from munit_fast.tiles.statistics import Moments, measure, merge
from munit_fast.tiles.storage import Job, Journal, PixelFile


@dataclass(frozen=True)
class Schedule:
    """What is done in which order.

    Attributes:
        nodes: A pass over all tiles for each; a convolution with a norm is measured.
        last: The nodes whose features are kept on disk, and the place of the last pass that reads them; that of the
            image is len(nodes).
        peak: The most bytes that they take at once.
        arithmetic: Multiplications of all passes over those of the network.
    """

    nodes: tuple[Node, ...]
    last: Mapping[Node, int]
    peak: int
    arithmetic: float

    def tiles(self, planes: Planes, tile: int) -> int:
        """How many tiles all passes have."""
        return sum(len(_tiles(node, planes, tile)) for node in self.nodes)


def schedules(image: Node, planes: int, itemsize: int, *, with_image: bool) -> list[Schedule]:
    """All ways to keep features or to compute them again, from most bytes on disk to none.

    Args:
        image: The last node.
        planes: How many planes.
        itemsize: Bytes of a number.
        with_image: Whether the image itself follows, or only statistics are wanted.
    """
    nodes = [node for node in ancestors(image, lambda _: False) if isinstance(node, (Conv, Normed))]
    wanted = [node for node in nodes if _is_normed(node) or _is_sum(node)]
    # A level has half the numbers of the one above, and costs more to compute again: what lies deeper is kept first.
    deepest = max(node.level for node in nodes)
    choices = [[node for node in wanted if node.level >= level] for level in range(deepest + 1)]
    choices += [[node for node in wanted if _is_sum(node)], []]
    found = [_schedule(image, frozenset(choice), planes, itemsize, with_image) for choice in choices]
    return sorted(found, key=lambda schedule: (-schedule.peak, schedule.arithmetic))


def statistics(
    schedule: Schedule,
    planes: Planes,
    tile: int,
    moments: dict[str, Moments],
    job: Job,
    to_disk: np.dtype[Any],
    device: torch.device,
    progress: Callable[[int, str], None],
) -> Reader:
    """Fill in the statistics of every norm, pass by pass.

    Args:
        schedule: One of `schedules`.
        planes: What the statistics are of.
        tile: Side of a tile, in pixels of the image.
        moments: Where they go, by name; the nodes read them from there.
        job: Has the files.
        to_disk: dtype of kept features.
        device: Where features are computed.
        progress: Called after each tile with the number of those done and the name of the pass.

    Returns:
        What reads tiles of the nodes, from features that are kept.
    """
    files: dict[Node, PixelFile] = {}

    def kept(node: Node, box: Box) -> Tensor | None:
        return None if node not in files else torch.from_numpy(files[node].read(box)).permute(2, 0, 1)[None].to(device)

    reader = Reader(kept)
    last = schedule.last
    tiles = {node: _tiles(node, planes, tile) for node in schedule.nodes}
    done = 0
    for i, node in enumerate(schedule.nodes):
        measured = isinstance(node, Conv)
        path = job.folder / f"{i:03d}-{node.name}"
        journal = Journal(path, len(tiles[node]), 2 * node.channels if measured else 0)
        features = path.with_name(path.name + ".features")
        again = not journal.complete
        file = None
        if node in last and (again or features.exists()):
            shape = (len(planes.offsets), node.height, node.width, node.channels)
            file = PixelFile(features, shape, to_disk)
        for number, box in enumerate(tiles[node]):
            if not journal.done[number]:
                x = reader.tile(node, box)
                if file is not None:
                    file.write(box, x[0].permute(1, 2, 0).cpu().numpy())
                numbers = measure(x).reshape(-1) if measured else None
                journal.add(number, numbers, file)
            done += 1
            progress(done, node.name)
        if again:
            journal.flush(file)
        if measured:
            values = journal.numbers.reshape(len(tiles[node]), 2, node.channels)
            sizes = np.array([box.height * box.width for box in tiles[node]])
            moments[node.name] = merge(sizes, values[:, 0], values[:, 1])
        journal.close()
        if file is not None:
            files[node] = file
        for other in [other for other in files if last[other] <= i and other is not node]:
            files.pop(other).remove()
    return reader


def _schedule(image: Node, kept: frozenset[Node], planes: int, itemsize: int, with_image: bool) -> Schedule:
    every = ancestors(image, lambda _: False)
    nodes = [node for node in every if _is_normed(node) or node in kept]
    passes = [*nodes, image] if with_image else nodes
    reads = [{other for other in ancestors(node, kept.__contains__) if other in kept} for node in passes]
    last = {node: max((i for i, names in enumerate(reads) if node in names), default=-1) for node in kept}
    last = {node: i for node, i in last.items() if i >= 0}
    first = {node: i for i, node in enumerate(passes)}
    size = {node: planes * node.height * node.width * node.channels * itemsize for node in last}
    peak = max(sum(size[n] for n in last if first[n] <= i <= last[n]) for i in range(len(passes)))
    computed = [one for node in passes for one in ancestors(node, kept.__contains__) if one not in kept]
    work = sum(node.macs for node in [*passes, *computed])
    return Schedule(tuple(nodes), last, peak, work / sum(node.macs for node in [*every, image]))


def _is_normed(node: Node) -> bool:
    return isinstance(node, Conv) and node.normed


def _is_sum(node: Node) -> bool:
    return isinstance(node, Normed) and node.residual is not None


def _tiles(node: Node, planes: Planes, tile: int) -> list[Box]:
    return tiles_of(len(planes.offsets), node.height, node.width, max(1, tile >> node.level))
