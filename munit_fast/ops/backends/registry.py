"""Which backend `impl="auto"` takes, as data: the first row of TABLE that fits, and in it the first backend that can.

The rows are to come from measurements on the devices they name (`pytest -m gpu -k bandwidth` prints what they need).
There are none yet, so the row for all GPUs is a default, and says so. A row with a `switch` counts only on the GPU
models that `MEASURED_FILE` names it for: `make gpu-check` measures and writes that file. While there is none, no such
row counts.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch

ANY = 1 << 62
MEASURED_FILE = Path(__file__).with_name("measured.json")


class Problem(NamedTuple):
    """What an operator is asked to do, as far as a backend or the choice depends on it."""

    op: str  # "epilogue", "losses" or "phase_border"
    norm: str = "none"
    channels_last: bool = True
    samples: int = 1
    sample: int = 0  # elements of x, or of the padded result where that is larger
    itemsize: int = 4
    channels: int = 1  # of x


class BackendRule(NamedTuple):
    """A set of problems, and who serves them best; best first. None: any."""

    device: str
    op: str | None
    capability: tuple[int, int]  # the least
    norms: tuple[str, ...] | None
    itemsize: int | None
    sample_bytes: int  # the most
    order: tuple[str, ...]
    because: str
    switch: str | None = None  # counts only where MEASURED_FILE has it switched on; None: everywhere


TABLE = [
    BackendRule("cpu", "phase_border", (0, 0), None, None, ANY, (), "only operators of GPUs come here, but for tests"),
    BackendRule("cpu", None, (0, 0), None, None, ANY, ("cpu",), "the kernels for this processor"),
    # The passes read x twice where the cluster reads it once, and CUDA C++ launches with less work on the host than
    # Triton; which of that shows, and where, no GPU has said yet. The gate set of the benchmark has no larger samples
    # than those of 256 channels in 128².
    BackendRule(
        "cuda",
        "epilogue",
        (9, 0),
        ("instance",),
        None,
        1 << 25,
        ("cuda", "triton"),
        "a cluster reads x once; measured as faster on this GPU model",
        switch="clusters",
    ),
    BackendRule("cuda", None, (0, 0), None, None, ANY, ("triton", "cuda"), "no measurement on a GPU yet"),
]
FALLBACK = ("reference",)


def read_measured(path: Path, device: str) -> frozenset[str]:
    """The rows of TABLE that `make gpu-check` measured as faster on `device`.

    Args:
        path: the file.
        device: the name of the GPU.

    Returns:
        Values of `BackendRule.switch`; none where there is no file, or one of another device.

    Raises:
        ValueError: the file is none of these.
    """
    if not path.exists():
        return frozenset()
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        switches = content["switched_on"]
        known = {row.switch for row in TABLE if row.switch is not None}
        if not isinstance(content["measured_on"], str) or not isinstance(switches, list):
            raise TypeError("measured_on must be a string and switched_on a list")
        if unknown := [name for name in switches if name not in known]:
            raise ValueError(f"switched_on may have {', '.join(sorted(known)) or 'nothing'}; got {unknown[0]!r}")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not what `make gpu-check` writes ({error}); remove it, or measure again") from None
    return frozenset(switches if content["measured_on"] == device else ())


@cache
def switches(device: str) -> frozenset[str]:
    """The rows that are switched on for `device`, "cuda:1" for example; a machine may have GPUs of several models."""
    if not MEASURED_FILE.exists():
        return frozenset()
    return read_measured(MEASURED_FILE, torch.cuda.get_device_name(torch.device(device)))


def order(device: str, capability: tuple[int, int], problem: Problem | None) -> tuple[str, ...]:
    """The backends to try, best first.

    Args:
        device: type of the device, "cpu" or "cuda", and the index of a GPU: "cuda:1". Without an index no row with a
            switch counts.
        capability: compute capability of an NVIDIA GPU, else (0, 0).
        problem: what is to be computed; None: the row without conditions, for whatever no other
            row is about.

    Raises:
        ValueError: `MEASURED_FILE` is damaged.
    """
    kind, _, index = device.partition(":")
    for row in TABLE:
        fits = row.device == kind and row.capability <= capability and _fits(row, problem)
        if fits and (row.switch is None or (index and row.switch in switches(device))):
            return (*row.order, *FALLBACK)
    return FALLBACK


def _fits(row: BackendRule, problem: Problem | None) -> bool:
    if problem is None:
        return row.op is None and row.norms is None and row.itemsize is None and row.sample_bytes == ANY
    return (
        (row.op is None or row.op == problem.op)
        and (row.norms is None or problem.norm in row.norms)
        and (row.itemsize is None or row.itemsize == problem.itemsize)
        and problem.sample * problem.itemsize <= row.sample_bytes
    )
