"""Launches each kernel with many arguments by Triton and by `kernels.launch`, and prints where they differ, as JSON.

A process of its own, since a stub takes the place of libcuda. What is launched is what the networks launch, then with
one thing changed at a time. Triton's specialisation, its caches and its launcher are real; only code generation is
replaced, with the code of one kernel for all, each under a hash of its own.
"""

from __future__ import annotations

import hashlib
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the tests, when run as a script

import torch
import triton
from torch import Tensor
from triton.compiler import CompiledKernel
from triton.runtime import JITFunction

from helpers import kernel_cases as cases
from helpers.compile_kernels import Launch, record, record_losses, record_phase_border
from helpers.kernel_cases import KernelCase
from munit_fast.benchmarks.stub_driver import DEVICE, StubDriver
from munit_fast.kernels import direct, launch, probe

MEMORY = torch.zeros(1 << 16, dtype=torch.uint8)
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int32)
INTS = (0, 1, 2, 16, 17, -1, -16, 2**31 - 1, 2**31, 2**31 + 8, -(2**31), 2**40, 2**40 + 1, 2**63, 2**64 - 16)
OTHER = (True, torch.nn.Parameter(torch.ones(4)), 0.5, None)


def at(offset: int, dtype: torch.dtype) -> Tensor:
    """A tensor so many bytes behind an address that is a multiple of 16."""
    start = -MEMORY.data_ptr() % 16 + offset
    return MEMORY[start : start + 1024].view(dtype)


def placed(argument: Any, numbers: Iterator[int]) -> Any:
    """The tensors of an argument, which have no memory, each at an address of its own."""
    if isinstance(argument, (tuple, list)):
        return tuple(placed(a, numbers) for a in argument)
    if isinstance(argument, Tensor):
        return at(64 * next(numbers) + argument.data_ptr() % 16, argument.dtype)
    return argument


def described(argument: Any) -> str:
    if isinstance(argument, tuple):
        return f"({', '.join(map(described, argument))})"
    return f"{argument.dtype}+{argument.data_ptr() % 16}" if isinstance(argument, Tensor) else repr(argument)


def recorded() -> list[Launch]:
    """One launch of each kernel for each way in which its arguments are present or None."""
    work = [record(case) for c in cases.NETWORK_CASES for case in cases.variants(c, (torch.bfloat16,), (True,))[:2]]
    for group in (KernelCase(norm="group", weight="shared", bias="shared"), KernelCase((2, 64, 64, 64), norm="group")):
        work.append(record(group))
    work += [record_losses(torch.float32), record_phase_border(torch.bfloat16)]
    work += [[(probe.probe_kernel, (1,), (1,), {"num_warps": 1})]]
    found: dict[Any, Launch] = {}
    for kernel, grid, args, meta in (one for launches in work for one in launches):
        count = iter(range(1000))
        found.setdefault((kernel.__name__, str([type(a) for a in args])), (kernel, grid, placed(args, count), meta))
    return list(found.values())


def changes(value: Any) -> Iterator[Any]:
    """What else an argument could be."""
    if isinstance(value, Tensor):
        size = value.element_size()
        yield from (at(64 + offset, value.dtype) for offset in (4, 8, 12, 32) if offset % size == 0)
        yield from (at(0, dtype) for dtype in DTYPES)
        yield from (at(8, dtype) for dtype in DTYPES)
        yield from (None, torch.nn.Parameter(at(16, value.dtype), False), torch.empty(0, dtype=value.dtype))
    elif isinstance(value, tuple):
        for i, element in enumerate(value):
            if i in (0, len(value) - 1):
                yield from ((*value[:i], new, *value[i + 1 :]) for new in changes(element))
        yield from (value[:-1], (*value, *value), ())
    elif value is None:
        yield from (at(0, torch.float32), at(4, torch.float32), at(0, torch.bfloat16), 1)
    else:
        yield from INTS
        yield from OTHER


def changed(one: Launch, rng: random.Random) -> Iterator[Launch]:
    """A launch, then with each argument and constant changed by itself, then with several."""
    kernel, grid, args, meta = one
    yield one
    for i, value in enumerate(args):
        for new in changes(value):
            yield kernel, grid, (*args[:i], new, *args[i + 1 :]), meta
    for name, value in meta.items():
        others = {bool: (not value,), int: (1, 2, 8, 4.0), str: ("none", "other")}[type(value)]
        yield from ((kernel, grid, args, {**meta, name: new}) for new in others if name != "num_warps" or new != 4.0)
    yield kernel, grid, args, dict(reversed(meta.items()))
    yield kernel, grid, args, {**meta, "num_stages": 1}
    yield kernel, (*grid, 1, 1)[:3], args, meta
    for _ in range(40):
        several = [rng.choice([a, a, *changes(a)]) for a in args]
        yield kernel, tuple(rng.randrange(1, 9) for _ in grid), tuple(several), meta


class Checker:
    def __init__(self) -> None:
        self.driver = StubDriver()
        self.differences: list[str] = []
        self.counts = dict.fromkeys(("launches", "direct", "refused"), 0)
        self.kernels: dict[str, int] = {}
        self.through_triton = 0

    def compile_one_for_all(self) -> None:
        """Each kernel that is compiled from now on has the code of the probe, and its own signature and hash."""
        original = triton.compiler.compile
        [code] = [original(*made) for made in [self._probe_source()]]

        def compile_quickly(src: Any, target: Any = None, options: Any = None, **_: Any) -> CompiledKernel:
            text = f"{src.hash()} {src.signature} {src.constants} {src.attrs} {sorted((options or {}).items())}"
            return CompiledKernel(src, code.metadata_group, hashlib.sha256(text.encode()).hexdigest())

        triton.compiler.compile = compile_quickly

    def _probe_source(self) -> tuple[Any, Any]:
        src = triton.compiler.ASTSource(probe.probe_kernel, {"number": "i32"}, {}, {})
        return src, triton.backends.compiler.GPUTarget("cuda", 90, 32)

    def check(self, one: Launch) -> None:
        kernel, grid, args, meta = one
        self.counts["launches"] += 1
        try:
            self.driver.declare(kernel[grid](*args, **meta))
        except Exception as error:  # what Triton refuses is refused alike
            self.counts["refused"] += 1
            self._refused(one, error)
            return
        expected = self.driver.kept(lambda: kernel[grid](*args, **meta))
        for _ in range(2):  # the first may be the one that Triton makes
            before = self.through_triton
            got = self.driver.kept(lambda: launch.run(kernel, grid, DEVICE, *args, **meta))
            if got != expected:
                self.differences.append(f"{kernel.__name__} {described(args)} {meta}")
        if self.through_triton == before:
            self.counts["direct"] += 1
            self.kernels[kernel.__name__] = self.kernels.get(kernel.__name__, 0) + 1

    def _refused(self, one: Launch, error: Exception) -> None:
        kernel, grid, args, meta = one
        try:
            launch.run(kernel, grid, DEVICE, *args, **meta)
        except type(error):
            return
        except Exception as other:
            error = other
        self.differences.append(f"{kernel.__name__} {described(args)} {meta}: {error!r}")


def main() -> None:
    checker, original = Checker(), JITFunction.run
    compiled: set[int] = set()

    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        checker.through_triton += 1
        return original(self, *args, **kwargs)

    rng = random.Random(0)
    with checker.driver.active(), mock.patch.object(JITFunction, "run", run):
        checker.compile_one_for_all()
        launches = recorded()
        for one in launches:
            for variant in changed(one, rng):
                checker.check(variant)
        for kernel in {one[0] for one in launches}:
            compiled |= {id(c) for c in kernel.device_caches[DEVICE.index][0].values()}
        known = [s.kernel.__name__ for s in direct._signatures.values() if s.served]
    print(
        json.dumps(
            {
                **checker.counts,
                "differences": checker.differences[:20],
                "kernels": checker.kernels,
                "served": known,
                "kept": len(direct._launchers),
                "compiled": len(compiled),
            }
        )
    )


if __name__ == "__main__":
    main()
