"""What many devices would cost and gain: docs/scaling.md, from what was measured and from what is assumed.

    python benchmarks/scripts/scaling.py                 # write docs/scaling.md
    python benchmarks/scripts/scaling.py --check         # only see whether it is up to date
    python benchmarks/scripts/scaling.py --measure       # time gloo's all-reduce here and keep it in docs/scaling.json

A training iteration exchanges each gradient once: that of the discriminators after their backward, that of the
generators after theirs, whatever `accumulation` is. Between the nodes and inside them the exchange is a ring.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import sys
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import jinja2
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

ROOT = Path(__file__).resolve().parents[2]
PAGE, MEASURED = ROOT / "docs" / "scaling.md", ROOT / "docs" / "scaling.json"
COUNTS = (8, 16, 32, 64, 128, 256, 512, 1024)
PER_NODE = 8
EXCHANGES = 2  # of an iteration: the discriminators' gradients in one buffer, then the generators'
GOOD = 0.8  # efficiency below which more devices are not worth their price


@dataclass(frozen=True)
class Link:
    """Bytes a second in one direction, and seconds until the first one arrives."""

    name: str
    speed: float
    latency: float


NVLINK = Link("NVLink 4 (H100), a GPU", 450e9, 3e-6)
LINKS = (
    Link("8 × 400 Gb/s InfiniBand a node", 8 * 50e9, 5e-6),
    Link("1 × 400 Gb/s a node", 50e9, 5e-6),
    Link("100 Gb/s Ethernet a node", 12.5e9, 20e-6),
    Link("25 Gb/s Ethernet a node", 3.1e9, 30e-6),
    Link("10 Gb/s Ethernet a node", 1.25e9, 50e-6),
)
ASSUMED_STEPS = (0.010, 0.030, 0.100)


def ring(size: float, count: int, link: Link) -> float:
    """Seconds of an all-reduce of `size` bytes among `count` members: 2 (n-1)/n of them cross each link."""
    if count == 1:
        return 0.0
    # A tree has 2 log2 n steps and as many bytes; NCCL takes it where the ring's 2 (n-1) steps would be longer.
    steps = min(2 * (count - 1), 2 * math.ceil(math.log2(count)))
    return 2 * (count - 1) / count * size / link.speed + EXCHANGES * steps * link.latency


def exchange(size: float, count: int, link: Link, inside: Link = NVLINK, per_node: int = PER_NODE) -> float:
    """Seconds to average `size` bytes over `count` devices: inside the nodes, then between them."""
    here = min(count, per_node)
    return ring(size, here, inside) + ring(size, max(1, count // per_node), link)


def efficiency(step: float, seconds: float) -> float:
    """Of weak scaling: one device's time over that of many. Nothing of the exchange is hidden behind the backward."""
    return step / (step + seconds)


def parameters() -> dict[str, int]:
    """Of the published configuration."""
    from munit_fast import MUNIT_Trainer, make_config

    trainer = MUNIT_Trainer(make_config({"display_size": 1}).hyperparameters())
    return {
        "generators": sum(p.numel() for net in (trainer.gen_a, trainer.gen_b) for p in net.parameters()),
        "discriminators": sum(p.numel() for net in (trainer.dis_a, trainer.dis_b) for p in net.parameters()),
    }


# ---- measured ----


def _rank(rank: int, count: int, sizes: list[int], found: Any) -> None:
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29533"}
    dist.init_process_group("gloo", rank=rank, world_size=count)
    buffers = [torch.ones(part) for part in sizes]
    times = []
    for _ in range(5):
        dist.barrier()
        begin = perf_counter()
        for buffer in buffers:
            dist.all_reduce(buffer)
        times.append(perf_counter() - begin)
    if rank == 0:
        found.put(median(times))
    dist.destroy_process_group()


def measure() -> None:
    """Time gloo over this machine's loopback."""
    kept = json.loads(MEASURED.read_text())
    sizes = list(parameters().values())
    context = multiprocessing.get_context("spawn")
    seconds = {}
    for count in (2, 4):
        found = context.SimpleQueue()
        multiprocessing.spawn(_rank, (count, sizes, found), nprocs=count)
        seconds[str(count)] = round(found.get(), 4)
    cpu = next((line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")), platform.machine())
    kept["all_reduce"] = {
        "what": "gloo over loopback, the published model's gradients in float32, median of 5",
        "bytes": 4 * sum(sizes),
        "seconds": seconds,
        "cpu": cpu,
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "date": date.today().isoformat(),
    }
    MEASURED.write_text(json.dumps(kept, indent=1) + "\n")


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


# ---- the page ----


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def percent(value: float) -> str:
    return f"{100 * value:.0f} %"


def last_good(step: float, size: float, link: Link) -> str:
    good = [n for n in COUNTS if efficiency(step, exchange(size, n, link)) >= GOOD]
    return "none" if not good else f"{good[-1]}" if good[-1] < COUNTS[-1] else f"≥ {COUNTS[-1]}"


def efficiencies(size: float) -> str:
    def cell(n: int, link: Link) -> str:
        return " / ".join(percent(efficiency(step, exchange(size, n, link))) for step in ASSUMED_STEPS)

    return table(["GPUs", *(k.name for k in LINKS)], [[str(n), *(cell(n, k) for k in LINKS)] for n in COUNTS])


def page() -> str:
    counts, kept = parameters(), json.loads(MEASURED.read_text())
    size, step = 4 * sum(counts.values()), kept["step"]["seconds"]
    ethernet = [link for link in LINKS if "Ethernet" in link.name]

    def alone(n: int, link: Link) -> str:
        seconds = ring(size, n, link)
        return f"{seconds:.2f} s, {percent(efficiency(step, seconds))}"

    names = [link.name for link in LINKS]
    template = jinja2.Template((Path(__file__).with_name("scaling.md.j2")).read_text(), keep_trailing_newline=True)
    return template.render(
        **counts,
        size=size,
        step=kept["step"],
        reduced=kept["all_reduce"],
        per_node=PER_NODE,
        inside=NVLINK,
        steps=" / ".join(f"{1e3 * s:.0f}" for s in ASSUMED_STEPS),
        good=percent(GOOD),
        cpu_table=table(
            ["machines", *(link.name.removesuffix(" a node") for link in ethernet)],
            [[str(n), *(alone(n, link) for link in ethernet)] for n in (2, 8, 64, 1024)],
        ),
        exchange_table=table(
            ["GPUs", *names], [[str(n), *(f"{1e3 * exchange(size, n, k):.1f} ms" for k in LINKS)] for n in COUNTS]
        ),
        efficiency_table=efficiencies(size),
        last_table=table(
            ["link", *(f"{1e3 * s:.0f} ms a step" for s in ASSUMED_STEPS)],
            [[k.name, *(last_good(s, size, k) for s in ASSUMED_STEPS)] for k in LINKS],
        ),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    if arguments.measure:
        measure()
    text = page()
    if arguments.check:
        sys.exit(0 if PAGE.read_text() == text else f"{PAGE} is not what benchmarks/scripts/scaling.py writes; run it")
    PAGE.write_text(text)


if __name__ == "__main__":
    main()
