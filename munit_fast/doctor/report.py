"""What this machine has, which backend serves which operator, and why another does not: gathered and printed."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import itertools
import json
import os
import platform
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from munit_fast.amp import BF16_FEATURES, Workload, bf16_hardware, cpu_features, measure
from munit_fast.doctor.trials import DTYPES, OPS, Trial, devices, dtype_name, layouts_of
from munit_fast.ops import native
from munit_fast.ops.backends import BACKENDS, automatic
from munit_fast.ops.conv_plans import rules
from munit_fast.reference import epilogue as reference
from munit_fast.utils import env
from munit_fast.utils.version import __version__

# Reported beside those that begin with MUNIT_FAST_: they decide on threads, devices and how kernels run.
VARIABLES = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "CUDA_VISIBLE_DEVICES", "TRITON_INTERPRET")


@dataclass(frozen=True)
class Service:
    """Whether a backend serves an operator for one dtype on one device.

    Attributes:
        op: A function of `munit_fast.functional`.
        device: As torch prints it, "cuda:0" for example.
        dtype: Name without "torch.".
        backend: A key of `munit_fast.ops.backends.BACKENDS`.
        unsupported_reason: Why it does not; None where it does. Named why_not in JSON.
        auto: Whether impl="auto" takes this backend.
    """

    op: str
    device: str
    dtype: str
    backend: str
    unsupported_reason: str | None
    auto: bool


@dataclass(frozen=True)
class Examination:
    """What `munit-fast doctor` found on this machine; `as_json` writes it as it is.

    Attributes:
        versions: By package.
        cpu: Model, architecture, cores, threads and instruction sets.
        native: How the compiled part was built; or "error": why it is missing.
        precision: What `--amp auto` takes on the CPU and the measurement behind it, by kind of work.
        gpus: Name, capability, memory, driver and runtime of each.
        no_gpu: Why there is none; None where there is one.
        environment: The variables that munit-fast and its backends read.
        services: For each operator, device, dtype and backend.
        conv: The value of MUNIT_FAST_CONV; "auto": `convolutions` decide.
        convolutions: The rows of `munit_fast.ops.conv_plans` for the instruction set in use.
        torch_bugs: What the installed torch computes wrong, one sentence each.
    """

    versions: dict[str, str]
    cpu: dict[str, Any]
    native: dict[str, str]
    precision: dict[str, str]
    gpus: list[dict[str, Any]]
    no_gpu: str | None
    environment: dict[str, str]
    services: list[Service] = field(repr=False)
    conv: str
    convolutions: list[dict[str, Any]]
    torch_bugs: list[str]


def examine() -> Examination:
    """Look at this machine. Works without the compiled part, without triton and without a GPU."""
    built = native.module
    return Examination(
        versions={
            "munit-fast": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,  # with what it was built for, which the package's metadata may leave out
            **{name: _version(name) for name in ("triton", "numpy")},
        },
        cpu={
            "model": cpu_model(),
            "architecture": platform.machine(),
            "cores": os.cpu_count(),
            "torch threads": torch.get_num_threads(),
            "bfloat16": sorted(cpu_features() & BF16_FEATURES),
            "instruction sets": built.available_isas() if built is not None else [],
            "in use": built.isa() if built is not None else None,
        },
        native=built.build_info() if built is not None else {"error": str(native.native_error)},
        precision=_precision(),
        gpus=[_gpu(index) for index in range(torch.cuda.device_count())] if torch.cuda.is_available() else [],
        no_gpu=_why_no_gpu(),
        environment={
            name: value
            for name, value in sorted(os.environ.items())
            if name.startswith("MUNIT_FAST_") or name in VARIABLES
        },
        services=_services(),
        conv=env.conv(),
        convolutions=[
            row._asdict() | {"dtypes": [dtype_name(dtype) for dtype in row.dtypes], "isas": list(row.isas)}
            for row in rules()
        ],
        torch_bugs=_torch_bugs(),
    )


def _torch_bugs() -> list[str]:
    error = _instance_norm_gradient_error()
    if error < 1e-6:
        return []
    return [
        f"torch {torch.__version__} computes wrong gradients of instance norm on CPUs (relative error {error:.1f}) "
        "for one image whose gradient comes in channels_last. munit-fast's norms are right; see docs/troubleshooting.md"
    ]


def _instance_norm_gradient_error() -> float:
    """‖got - expected‖ / ‖expected‖ of torch's gradient for a channels_last one, in float64 on the CPU."""
    random = torch.Generator().manual_seed(0)
    x, upstream = (torch.randn(1, 2, 3, 4, generator=random, dtype=torch.float64, device="cpu") for _ in range(2))
    with torch.inference_mode(False), torch.enable_grad():
        x = x.clone().requires_grad_()
        expected = reference.epilogue(x, norm="instance")
        y = F.instance_norm(x)
        (got,) = torch.autograd.grad(y, x, upstream.contiguous(memory_format=torch.channels_last))
        (wanted,) = torch.autograd.grad(expected, x, upstream)
    return float((got - wanted).norm() / wanted.norm())


def _precision() -> dict[str, str]:
    """What `--amp auto` measures on the CPU, for one 256×256 image and the published configuration."""
    if not bf16_hardware(torch.device("cpu")):
        return {"training and translation": "off: this processor has no bfloat16 instructions"}
    found = {}
    for name, load in (("training", Workload()), ("translation", Workload(training=False))):
        found[name] = f"{measure(load).faster}: {measure(load).describe()}"
    return found


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed" if importlib.util.find_spec(package) is None else "installed, of unknown version"


def cpu_model() -> str:
    """The processor's name; "unknown" where the system does not tell."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1] if found else platform.processor() or "unknown"


def gpu_driver() -> str | None:
    """The version of NVIDIA's kernel driver; None where the system does not tell."""
    try:
        found = re.search(r"Kernel Module.*?\s(\d+(?:\.\d+)+)", Path("/proc/driver/nvidia/version").read_text())
    except OSError:
        found = None
    return found[1] if found else None


def _gpu(index: int) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(index)
    return {
        "device": f"cuda:{index}",
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "memory": f"{properties.total_memory / 2**30:.1f} GiB",
        "multiprocessors": properties.multi_processor_count,
        "driver": gpu_driver() or "unknown",
        "runtime": f"HIP {torch.version.hip}" if torch.version.hip else f"CUDA {torch.version.cuda}",
    }


def _why_no_gpu() -> str | None:
    if torch.cuda.is_available():
        return None
    if torch.version.cuda is None and torch.version.hip is None:
        return f"torch {torch.__version__} was built for the CPU only"
    return "torch was built for GPUs, but no driver or device is visible"


def _services() -> list[Service]:
    found = []
    for device, dtype in itertools.product(devices(), DTYPES):
        reasons = {name: backend.unsupported_reason(device, dtype) for name, backend in BACKENDS.items()}
        auto = automatic(device, dtype)
        found += [
            Service(op, str(device), dtype_name(dtype), name, reason, name == auto)
            for op, (name, reason) in itertools.product(OPS, reasons.items())
        ]
    return found


def as_json(found: Examination, trials: list[Trial] | None) -> str:
    """What was found, and the trials if there were any, as JSON text."""
    content = asdict(found)
    for service in content["services"]:
        service["why_not"] = service.pop("unsupported_reason")
    if trials is not None:
        content["selftest"] = [{**asdict(trial), "passed": trial.passed} for trial in trials]
    return json.dumps(content, indent=2, ensure_ascii=False)


def show(found: Examination, console: Console) -> None:
    """Print what was found: every reason in full, wrapped to the width."""
    facts = Table.grid(padding=(0, 2))
    facts.add_column(no_wrap=True)
    facts.add_column(overflow="fold")
    for label, text in _facts(found):
        facts.add_row(label, escape(text))
    console.print(facts)
    console.print(f'\nBackends of {", ".join(OPS[:-1])} and {OPS[-1]}; * is what impl="auto" takes:')
    table = Table("device", "backend", box=SIMPLE_HEAD, pad_edge=False)
    for title in ("serves", "does not serve, because"):
        table.add_column(title, overflow="fold")
    for device, backend, serves, reasons in _grouped(found.services):
        table.add_row(device, backend, serves or "-", escape(reasons))
    console.print(table)
    _show_convolutions(found, console)


def _show_convolutions(found: Examination, console: Console) -> None:
    isa = found.cpu["in use"]
    head = f"Convolutions on the CPU, MUNIT_FAST_CONV={found.conv}"
    if found.conv != "auto":
        console.print(f"{head}: {_OVERRIDES[found.conv]}")
        return
    if not found.convolutions:
        console.print(
            f"{head}: all are direct, {f'{isa} has no others' if isa else 'the others need the compiled part'}"
        )
        return
    console.print(f"{head}, {isa}; the first row that fits, else direct:")
    table = Table("kernel", "dtype", "plan", box=SIMPLE_HEAD, pad_edge=False)
    for title in ("channels, tiles from", "because"):
        table.add_column(title, overflow="fold")
    for row in found.convolutions:
        least = f"{row['channels']}, {row['tiles']} ({row['tiles_kept']} kept, {row['tiles_weight']} weight)"
        kernel = f"{row['kernel']}×{row['kernel']}, stride {row['stride']}"
        table.add_row(kernel, ", ".join(row["dtypes"]), row["plan"], least, escape(row["because"]))
    console.print(table)


_OVERRIDES = {
    "direct": "all are direct",
    "winograd": "F(4×4) wherever it can serve",
    "winograd2": "F(2×2) wherever it can serve",
}


def _facts(found: Examination) -> Iterator[tuple[str, str]]:
    yield from found.versions.items()
    cpu = found.cpu
    yield "CPU", f"{cpu['model']}, {cpu['architecture']}, {cpu['cores']} cores, {cpu['torch threads']} torch threads"
    yield "", f"bfloat16 instructions: {', '.join(cpu['bfloat16']) or 'none'}"
    if "error" in found.native:
        yield "CPU kernels", found.native["error"]
    else:
        built = found.native
        yield "CPU kernels", f"built by compiler {built['compiler']} for {built['architecture']}"
        yield "", built["flags"]
        isas = [f"{isa} (in use)" if isa == cpu["in use"] else isa for isa in cpu["instruction sets"]]
        yield "instructions", f"{', '.join(isas)}; MUNIT_FAST_CPU_ISA=NAME takes another"
        if "cuda_error" in built:
            yield "CUDA kernels", f"none: {built['cuda_error']}"
        else:
            yield "CUDA kernels", f"built by {built['cuda_compiler']} for {built['cuda_architectures']}"
            yield "", built["cuda_flags"]
    for work, text in found.precision.items():
        yield f"--amp auto, {work}", text
    for gpu in found.gpus:
        named = ("capability", "memory", "multiprocessors", "driver", "runtime")
        yield gpu["device"], ", ".join([gpu["name"], *(f"{name} {gpu[name]}" for name in named)])
    if found.no_gpu:
        yield "GPU", f"none: {found.no_gpu}"
    variables = [f"{name}={value}" for name, value in found.environment.items()]
    yield "environment", "\n".join(variables) or "no variable is set"
    for bug in found.torch_bugs:
        yield "warning", bug


def _grouped(services: list[Service]) -> Iterator[tuple[str, str, str, str]]:
    """Device, backend, the dtypes it serves and the reasons for the others: every backend has all operators or none."""
    of_first = [service for service in services if service.op == OPS[0]]
    for (device, backend), group in itertools.groupby(
        sorted(of_first, key=lambda s: (s.device, list(BACKENDS).index(s.backend))), lambda s: (s.device, s.backend)
    ):
        members = list(group)
        serves = ", ".join(s.dtype + "*" * s.auto for s in members if s.unsupported_reason is None)
        by_reason: dict[str, list[str]] = {}
        for s in members:
            if s.unsupported_reason is not None:
                by_reason.setdefault(s.unsupported_reason, []).append(s.dtype)
        everything = [len(dtypes) == len(members) for dtypes in by_reason.values()]
        reasons = [
            reason if whole else f"{', '.join(dtypes)}: {reason}"
            for whole, (reason, dtypes) in zip(everything, by_reason.items())
        ]
        if serves and torch.contiguous_format not in layouts_of(backend):
            reasons.append("NCHW: it reads channels_last tensors only")
        yield device, backend, serves, "; ".join(reasons)
