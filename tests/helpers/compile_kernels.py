"""Compiles every kernel that MUNIT's networks launch, for GPUs that need not be here, and writes what came out.

Besides those, the kernels of the longest activation.

    python compile_kernels.py OUT.json

Each row of sm_90 says how many `instructions` an element costs: those of the loop over tiles, of which a thread has
one copy, by the elements of a tile that the thread handles; and how many are `outside` of it, by thread.

A process of its own, since it replaces Triton's driver. `test_ahead_of_time.py` runs it and reads the result. What is
compiled is what would be launched: the host functions run on tensors without memory, their launches are recorded, and
each goes through Triton's own argument specialisation.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the tests, when run as a script

import torch
import triton
from triton.backends.compiler import GPUTarget

from helpers import kernel_cases as cases
from helpers.kernel_cases import KernelCase, KernelInputs
from helpers.kernel_checks import run_backward, run_forward
from helpers.loss_cases import l1_gradients, lsgan_gradients
from munit_fast.kernels import launch
from munit_fast.kernels.losses import l1_losses_forward, lsgan_loss_forward
from munit_fast.kernels.phase_border import phase_border_backward, phase_border_forward

TARGETS = {
    "sm_75": GPUTarget("cuda", 75, 32),
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "sm_120": GPUTarget("cuda", 120, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Everything in channels_last for an H100 or H200; elsewhere the types and flags whose code differs most.
JOBS = [("sm_90", dtype, "nhwc") for dtype in DTYPES] + [("sm_90", "bf16", "nchw"), ("sm_90", "fp32", "nchw")]
JOBS += [(target, "bf16", "nhwc") for target in TARGETS if target != "sm_90"]
JOBS += [("sm_75", "fp32", "nhwc"), ("gfx942", "fp32", "nhwc")]

TILE = (("TILE_PIXELS", "BLOCK_L"), ("TILE_CHANNELS", "BLOCK_K"))

Launch = tuple[Any, tuple[int, ...], tuple[Any, ...], dict[str, Any]]


class Driver:
    """What Triton asks a driver before it compiles; one device for each target."""

    def __init__(self, target: GPUTarget) -> None:
        self.target = target

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> str:
        return str(self.target)

    def get_current_stream(self, device: str) -> int:
        return 0


def record(case: KernelCase) -> list[Launch]:
    """What the forward and the backward of a case launch."""
    launches: list[Launch] = []
    original = launch.run
    launch.run = lambda kernel, grid, device, *args, **meta: launches.append((kernel, grid, args, meta))
    try:
        n, c = case.shape[:2]
        p = c // case.block**2
        layout = torch.channels_last if case.channels_last else torch.contiguous_format

        def empty(*shape: int) -> torch.Tensor:
            kind = {"memory_format": layout} if len(shape) == 4 else {}
            return torch.empty(*shape, dtype=case.dtype, device="meta", **kind)

        kinds = {"none": None, "shared": (p,), "sample": (n, p)}
        weight, bias = (None if kinds[k] is None else empty(*kinds[k]) for k in (case.weight, case.bias))
        x, residual = empty(*case.shape), None
        if case.residual and case.window:
            residual = empty(n, c, case.shape[2] + 2, case.shape[3] + 2)[:, :, 1:-1, 1:-1]
        elif case.residual:
            residual = empty(*case.shape)
        inputs = KernelInputs(x, weight, bias, residual, 0.2, x)
        inputs.grad, stats = run_forward(case, inputs)
        need_residual = residual is not None and (case.pad > 0 or case.block > 1)
        run_backward(case, inputs, stats, (True, need_residual, weight is not None or bias is not None))
    finally:
        launch.run = original
    return launches


def record_losses(dtype: torch.dtype) -> list[Launch]:
    launches: list[Launch] = []
    original = launch.run
    launch.run = lambda kernel, grid, device, *args, **meta: launches.append((kernel, grid, args, meta))
    try:
        shapes = [(1, 3, 256, 256)] * 4 + [(1, 8, 1, 1)] * 2 + [(1, 256, 64, 64)] * 2
        first, second = ([torch.empty(s, dtype=dtype, device="meta") for s in shapes] for _ in range(2))
        l1_gradients(l1_losses_forward(first, second), first, second, (*[True] * 8, *[False] * 4, *[True] * 4))
        outputs = [torch.empty(1, 1, size, size, dtype=dtype, device="meta") for size in (16, 8, 1)]
        lsgan_gradients(lsgan_loss_forward(outputs, 1.0), outputs, 1.0)
    finally:
        launch.run = original
    return launches


def record_phase_border(dtype: torch.dtype) -> list[Launch]:
    """Of MUNIT's upsampling layers, with the parameter in float32 and in the tensors' dtype."""
    launches: list[Launch] = []
    original = launch.run
    launch.run = lambda kernel, grid, device, *args, **meta: launches.append((kernel, grid, args, meta))
    try:
        for (c, o), weight_dtype, order in (
            ((256, 128), torch.float32, torch.contiguous_format),
            ((128, 64), torch.float32, torch.channels_last),
            ((256, 128), dtype, torch.contiguous_format),
        ):
            a = torch.empty(1, c, 66, 66, dtype=dtype, device="meta", memory_format=torch.channels_last)
            y = torch.empty(1, 4 * o, 64, 64, dtype=dtype, device="meta", memory_format=torch.channels_last)
            weight = torch.empty(o, c, 5, 5, dtype=weight_dtype, device="meta", memory_format=order)
            phase_border_forward(y, a, weight)
            phase_border_backward(y, a, weight, torch.empty_like(a), torch.empty_like(weight))
    finally:
        launch.run = original
    return launches


def resources(cubin: bytes) -> dict[str, int]:
    """Registers, stack and local memory of a CUDA binary. Spilled registers live on the stack."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True)
    return {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", text.stdout)}


def instructions(cubin: bytes) -> tuple[int, int]:
    """The SASS instructions of a kernel's tile loop, and those outside it; NOPs do not count.

    Counted in the machine code, not as executed: of both sides of a branch each instruction counts, and a loop inside
    the loop counts as one round. The tile loop is the largest loop: what can be reached from the target of a backward
    branch and leads back to it. A kernel without a loop is outside it.
    """
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([tool, "-sass", file.name], capture_output=True, text=True, check=True).stdout
    found = re.findall(r"/\*([0-9a-f]{4,})\*/\s+(@\S+ )?\s*(\S+)\s*([^;]*);", text)
    index = {int(address, 16): i for i, (address, *_) in enumerate(found)}
    following: list[list[int]] = [[] for _ in found]
    leading: list[list[int]] = [[] for _ in found]
    heads = set()
    for i, (_, predicate, name, operands) in enumerate(found):
        target = re.search(r"(?:^|\s)(0x[0-9a-f]+)\s*$", operands) if name.startswith("BRA") else None
        if target is not None:
            to = index[int(target[1], 16)]
            following[i].append(to)
            if to < i:
                heads.add(to)
        ends = name == "EXIT" or (target is not None and operands.strip() == target[1])
        if i + 1 < len(found) and not (ends and not predicate):
            following[i].append(i + 1)
        for to in following[i]:
            leading[to].append(i)

    def reached(start: int, edges: list[list[int]]) -> set[int]:
        seen, waiting = {start}, [start]
        while waiting:
            new = set(edges[waiting.pop()]) - seen
            seen |= new
            waiting += new
        return seen

    real = {i for i, (_, _, name, _) in enumerate(found) if name != "NOP"}
    loops = [reached(head, following) & reached(head, leading) & real for head in heads]
    loop = max((len(members) for members in loops if len(members) > 1), default=0)
    return loop, len(real) - loop


def _wide_accesses(
    kernel: str, tensors: dict[str, bool], meta: dict[str, Any], itemsize: int, warp: int
) -> dict[str, int]:
    """How many 16-byte accesses a thread needs for a tile of each big tensor that the kernel reads or writes."""
    pixels, channels = (meta.get(names[0], meta.get(names[1], 0)) for names in TILE)
    each = pixels * channels * itemsize // (16 * warp * meta["num_warps"])
    reads = ("p_x", "p_residual", "p_grad") if kernel != "epilogue_bwd_kernel" else ("p_x", "p_grad")
    writes = ("p_y", "p_grad_x", "p_grad_residual")
    return {
        "loads": each * sum(tensors.get(name, False) for name in reads),
        "stores": each * sum(tensors.get(name, False) for name in writes),
    }


def _compile(job: tuple[str, str, str]) -> list[dict[str, Any]]:
    target, dtype, layout = job
    triton.runtime.driver.set_active(Driver(TARGETS[target]))
    rows: dict[str, dict[str, Any]] = {}
    work: list[tuple[str, list[Launch]]] = [
        (str(case), record(case))
        for c in cases.NETWORK_CASES
        for case in cases.variants(c, (DTYPES[dtype],), (layout == "nhwc",))
    ]
    if target != "sm_90" or layout == "nchw":
        work = work[::3]
    work += [
        (str(case), record(case)) for case in cases.variants(cases.LONGEST_CASE, (DTYPES[dtype],), (layout == "nhwc",))
    ]
    work.append(("losses", record_losses(DTYPES[dtype])))
    work.append(("phase border", record_phase_border(DTYPES[dtype])))
    for name, launches in work:
        for kernel, grid, args, meta in launches:
            compiled = kernel.warmup(*args, grid=grid, **meta)
            row = {"case": name, "kernel": kernel.__name__, "job": job, "grid": grid, "cases": [name]}
            if compiled.hash in rows:
                rows[compiled.hash]["cases"].append(name)
                continue
            rows[compiled.hash] = row
            tensors = {n: isinstance(a, torch.Tensor) for n, a in zip(kernel.arg_names, args)}
            row["tensors"] = [name for name, present in tensors.items() if present]
            row["expected"] = _wide_accesses(
                kernel.__name__, tensors, meta, DTYPES[dtype].itemsize, TARGETS[target].warp_size
            )
            if "ptx" in compiled.asm:
                text = compiled.asm["ptx"]
                pixels, channels = (meta.get(names[0], meta.get(names[1], 0)) for names in TILE)
                if target == "sm_90" and pixels:
                    loop, row["outside"] = instructions(compiled.asm["cubin"])
                    row["instructions"] = loop * 32 * meta["num_warps"] / (pixels * channels)
                row.update(resources(compiled.asm["cubin"]))
                wide = r"\.global[\w.:]*\.(?:v4\.[bfus]32|v2\.[bfus]64)"
                row["loads"] = len(re.findall("ld" + wide, text))
                row["stores"] = len(re.findall("st" + wide, text))
            else:
                text = compiled.asm["amdgcn"]
                row["STACK"] = int(re.search(r"\.private_segment_fixed_size:\s*(\d+)", text)[1])
                row["LOCAL"] = int(re.search(r"\.vgpr_spill_count:\s*(\d+)", text)[1])
                row["REG"] = int(re.search(r"\.vgpr_count:\s*(\d+)", text)[1])
                row["loads"] = len(re.findall(r"(?:global|buffer)_load_dwordx4", text))
                row["stores"] = len(re.findall(r"(?:global|buffer)_store_dwordx4", text))
    return list(rows.values())


def main(out: str) -> None:
    workers = min(len(JOBS), os.cpu_count() or 1, 2)
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        rows = [row for job in pool.map(_compile, JOBS) for row in job]
    Path(out).write_text(json.dumps(rows))


if __name__ == "__main__":
    main(sys.argv[1])
