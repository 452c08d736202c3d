"""Which backend `impl="auto"` takes, as data: the first row of TABLE that fits, and in it the first backend that can.

The rows are to come from measurements on the devices they name (`pytest -m gpu -k bandwidth` prints what they need).
There are none yet, so the one row for GPUs is a default, and says so.
"""

from __future__ import annotations

from typing import NamedTuple

ANY = 1 << 62


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


TABLE = [
    BackendRule("cpu", "phase_border", (0, 0), None, None, ANY, (), "only operators of GPUs come here, but for tests"),
    BackendRule("cpu", None, (0, 0), None, None, ANY, ("cpu",), "the kernels for this processor"),
    # The passes read x twice where the cluster reads it once, and CUDA C++ launches with less work on the host than
    # Triton; which of that shows, and where, no GPU has said yet.
    BackendRule("cuda", None, (0, 0), None, None, ANY, ("triton", "cuda"), "no measurement on a GPU yet"),
]
FALLBACK = ("reference",)


def order(device: str, capability: tuple[int, int], problem: Problem | None) -> tuple[str, ...]:
    """The backends to try, best first.

    Args:
        device: type of the device, "cpu" or "cuda".
        capability: compute capability of an NVIDIA GPU, else (0, 0).
        problem: what is to be computed; None: the row without conditions, for whatever no other
            row is about.
    """
    for row in TABLE:
        if row.device == device and row.capability <= capability and _fits(row, problem):
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
