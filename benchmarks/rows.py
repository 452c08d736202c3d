"""Rows: one JSON line for each contender of each case, with its figures and where they were measured."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_type_hints

from munit_fast.benchmarks.cases import shape_of
from munit_fast.io.atomic import write_error


class RowsError(ValueError):
    """A file cannot be read as rows; the message names the line."""


class Machine(NamedTuple):
    """What rows of one machine share. Processors of the same name may differ in their instructions."""

    device: str
    cpu: str
    cpu_flags: str | None
    threads: int

    @property
    def amx(self) -> bool | None:
        """Whether the CPU multiplies bfloat16 matrices in hardware (AMX); None: not known."""
        return None if self.cpu_flags is None else "amx_bf16" in self.cpu_flags.split()

    @property
    def features(self) -> str:
        """ " with AMX" or " without AMX" for an x86 CPU; "" where that is not known."""
        if self.cpu_flags is None or "avx2" not in self.cpu_flags.split():
            return ""
        return " with AMX" if self.amx else " without AMX"

    def __str__(self) -> str:
        on_cpu = f"{self.features}, {self.threads} threads" if self.device == self.cpu else ""
        return self.device + on_cpu


@dataclass(frozen=True)
class Row:
    """One measurement. Times in seconds a call, rates a second; None where a figure does not apply."""

    # machine and versions
    run: str  # one process; only its rows were timed in turns
    date: str
    commit: str | None
    version: str  # of munit-fast
    device: str
    driver: str | None
    cuda: str | None
    cpu: str
    isa: str | None  # which of our kernels ran
    # What decides how fast the CPU multiplies (machine.CPU_FLAGS); None: not known, as in rows that lack the field.
    cpu_flags: str | None = field(default=None, kw_only=True)
    threads: int
    omp_wait_policy: str | None
    torch: str
    triton: str | None
    python: str
    tf32: bool | None  # whether float32 convolutions on a GPU may use it
    # case
    level: str
    name: str
    mode: str
    dtype: str
    batch: int
    channels: int
    side: int
    # contender
    implementation: str
    layout: str
    precision: str  # of autocast: dtype, or fp32 as a baseline
    graph: bool
    l2: str | None  # warm or cold, on a GPU
    # times
    rounds: int
    p20: float | None  # None: see failure
    p50: float | None
    p80: float | None
    # figures
    bytes: int | None  # the least that must be moved
    copy_speed: float  # bytes a second of a large copy on this machine, read and written
    flops: int | None
    matrix_rate: float  # FLOP a second of a large matrix product of `precision`
    peak_bytes: int | None  # beyond what is held before a step: weights, moments, inputs
    state_bytes: int | None  # weights and moments of an iteration
    launches: int | None
    error: float | None  # relative, of the check before the timing
    failure: str | None  # why there is no time

    @property
    def machine(self) -> Machine:
        """The machine that it was timed on."""
        return Machine(self.device, self.cpu, self.cpu_flags, self.threads)

    @property
    def case(self) -> tuple[Any, ...]:
        """What rows must share, beside their run, to be compared with one another."""
        where = (self.machine, self.torch)
        return (*where, self.level, self.name, self.mode, self.dtype, self.batch, self.channels, self.side, self.l2)

    @property
    def contender(self) -> tuple[Any, ...]:
        """What tells the contenders of a case apart."""
        return (self.implementation, self.layout, self.precision, self.graph)

    @property
    def ours(self) -> bool:
        """Whether it is munit_fast's, on any backend or as an exported file: no baseline.

        Plain "munit_fast" is impl="auto", the one scored.
        """
        return self.implementation.partition(" ")[0] == "munit_fast"

    @property
    def seconds(self) -> float:
        """The median; only rows without a failure have one."""
        assert self.p50 is not None
        return self.p50

    @property
    def title(self) -> str:
        """The contender's name in a table."""
        words = [self.implementation]
        words += [self.layout] if self.implementation != "munit_fast" or self.layout == "NCHW" else []
        return " ".join([*words, self.precision]) + (" in a CUDA graph" if self.graph else "")

    @property
    def shape(self) -> str:
        """The size for readers, batch×channels×side²."""
        return shape_of(self.name, self.batch, self.channels, self.side)

    @property
    def bandwidth(self) -> float | None:
        """Bytes a second, counting each byte that must be moved once."""
        return None if self.bytes is None or self.p50 is None else self.bytes / self.p50

    @property
    def share_of_copy(self) -> float | None:
        """The bandwidth over that of a large copy."""
        return None if self.bandwidth is None else self.bandwidth / self.copy_speed

    @property
    def flop_rate(self) -> float | None:
        """FLOP a second; None where either is not known."""
        return None if self.flops is None or self.p50 is None else self.flops / self.p50

    @property
    def share_of_matrix(self) -> float | None:
        """The FLOP rate over that of a large matrix product."""
        return None if self.flop_rate is None else self.flop_rate / self.matrix_rate

    @property
    def hours_per_million(self) -> float | None:
        """Of a million calls: for an iteration, the published length of a training."""
        return None if self.p50 is None else self.p50 * 1e6 / 3600

    def line(self) -> str:
        """As one line of JSON; the derived figures are written for readers, and not read back."""
        derived = {
            name: None if value is None else float(f"{value:.4g}")
            for name, value in (
                ("bandwidth", self.bandwidth),
                ("share_of_copy", self.share_of_copy),
                ("flop_rate", self.flop_rate),
                ("share_of_matrix", self.share_of_matrix),
                ("calls_per_second", None if self.p50 is None else 1 / self.p50),
                ("hours_per_million", self.hours_per_million),
            )
        }
        return json.dumps(asdict(self) | derived, ensure_ascii=False)


_TYPES = {name: get_args(hint) or (hint,) for name, hint in get_type_hints(Row).items()}
_DEFAULTS = {f.name: f.default for f in fields(Row) if f.default is not MISSING}  # of fields that older rows lack


def _checked(values: Any) -> Row:
    """A row of plain values. Raises ValueError, TypeError or KeyError; the message names the field."""
    if not isinstance(values, dict):
        raise TypeError(f"expected an object, got {type(values).__name__}")
    values = _DEFAULTS | values
    for name, types in _TYPES.items():
        value = values[name]
        fits = isinstance(value, types) or (float in types and isinstance(value, int))
        if not fits or (isinstance(value, bool) and bool not in types):
            raise TypeError(f"{name} must be {' or '.join(t.__name__ for t in types)}, got {value!r}")
    row = Row(**{f.name: values[f.name] for f in fields(Row)})
    times = (row.p20, row.p50, row.p80)
    if row.failure is None and (None in times or not 0 < row.p20 <= row.p50 <= row.p80):  # type: ignore[operator]
        raise ValueError("times must be positive and p20 ≤ p50 ≤ p80")
    return row


def parse(text: str, source: str) -> list[Row]:
    """The rows of a file's text. Raises RowsError."""
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            found.append(_checked(json.loads(line)))
        except (ValueError, TypeError, KeyError) as error:
            what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            raise RowsError(f"{source}, line {number} is not a row of `munit-fast bench`: {what}") from None
    return found


def load(*paths: Path) -> list[Row]:
    """The rows of files and of folders' *.jsonl. Raises RowsError: none, or one that is not of rows."""
    files = [file for path in paths for file in (sorted(path.glob("*.jsonl")) if path.is_dir() else [path])]
    rows = []
    for file in files:
        try:
            rows += parse(file.read_text(encoding="utf-8"), str(file))
        except OSError as error:
            raise RowsError(f"cannot read {error.filename}: {error.strerror}") from None
        except UnicodeDecodeError:
            raise RowsError(f"{file} is not a text file of rows") from None
    if not rows:
        raise RowsError(f"no rows in {', '.join(map(str, paths))}; `munit-fast bench --output FILE` makes them")
    return rows


def load_revision(revision: str, folder: Path) -> list[Row]:
    """The rows that `folder` held at a git revision; files of an older form are passed over. Raises RowsError."""

    def git(*words: str) -> str:
        try:
            done = subprocess.run(["git", *words], capture_output=True, text=True, check=False, cwd=folder)
        except OSError:
            raise RowsError(f"{revision!r} is no file, and without git no revision can be read") from None
        if done.returncode:
            raise RowsError(f"{revision!r} is neither a file nor a revision here: {done.stderr.strip()}")
        return done.stdout

    names = git("ls-tree", "--name-only", revision, "./").splitlines()
    rows = []
    for name in names:
        if name.endswith(".jsonl"):
            try:
                rows += parse(git("show", f"{revision}:./{name}"), f"{name} at {revision}")
            except RowsError:
                continue
    if not rows:
        raise RowsError(f"no rows in {folder} at {revision}")
    return rows


def append(path: Path, rows: Iterable[Row]) -> None:
    """Add rows to a file, whole lines at a time. Raises FileWriteError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write("".join(row.line() + "\n" for row in rows))
    except OSError as error:
        raise write_error(path, error) from None
