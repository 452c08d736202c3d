"""Everything that only a GPU can say, in one command of less than nine minutes.

Builds in place, runs the tests marked gpu, then the benchmark's gate set, and writes a log, rows and a report.

    make gpu-check                          # OUT=FOLDER for the results, default benchmarks/results
    python benchmarks/gpu_check.py --smoke  # the same steps on the CPU, small: proves that they run

Needs no network: what is not installed comes from wheels/, which `make gpu-wheels` fills on a machine that has one.
A step that fails does not stop the next; the exit code is 1 if any failed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WHEELS = ROOT / "wheels"
# Packages that `import munit_fast` and the tests marked gpu need, by the name they are imported under.
NEEDED = (
    "numpy",
    "PIL",
    "yaml",
    "pydantic",
    "typer",
    "rich",
    "jinja2",
    "filelock",
    "tensorboard",
    "pytest",
    "hypothesis",
)
NEEDED += ("pytest_timeout", "pytest_benchmark", "ninja", "pybind11", "triton")
BUDGET_S = 520
SHARES = {"build": 0.2, "tests": 0.45}  # of the budget, at most; the benchmark gets what is left


def missing() -> list[str]:
    return [name for name in NEEDED if importlib.util.find_spec(name) is None]


def environment() -> dict[str, str]:
    """For the steps: the checkout and what was unpacked from wheels/ on the path, results kept out of the sources."""
    paths = [str(ROOT / "build" / "checkout"), str(ROOT / "build" / "wheels"), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in paths if p), "OMP_WAIT_POLICY": "passive"}


def unpack_wheels() -> None:
    """Install wheels/*.whl beside the checkout where something is missing; exits with what to do where that fails."""
    if not (absent := missing()):
        return
    wheels = sorted(map(str, WHEELS.glob("*.whl")))
    if wheels:
        target = ROOT / "build" / "wheels"
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--upgrade"]
        subprocess.run([*pip, "--target", str(target), *wheels], check=True)
        sys.path.insert(0, str(target))
        importlib.invalidate_caches()
        absent = missing()
    if absent:
        sys.exit(
            f"missing here: {', '.join(absent)}; run `make gpu-wheels` where there is a network and bring wheels/ along"
        )


def place_packages() -> None:
    """Make `munit_fast.kernels` importable from a bare checkout: a folder of links, as an installation would see it."""
    place = ROOT / "build" / "checkout"
    place.mkdir(parents=True, exist_ok=True)
    package = place / "munit_fast"
    package.mkdir(exist_ok=True)
    wanted = {path.name: path for path in (ROOT / "munit_fast").iterdir() if path.name != "__pycache__"}
    wanted["kernels"] = ROOT / "kernels"
    for name, source in wanted.items():
        link = package / name
        if link.is_symlink():
            link.unlink()
        if not link.exists():
            link.symlink_to(source)


class Steps:
    """Runs the steps, each with its log, and keeps how they went."""

    def __init__(self, out: Path, budget: float) -> None:
        self.out, self.begin, self.budget = out, time.monotonic(), budget
        self.results: list[dict[str, object]] = []

    @property
    def left(self) -> float:
        return self.budget - (time.monotonic() - self.begin)

    def run(self, name: str, command: list[str], limit: float) -> None:
        print(f"== {name} (at most {limit:.0f} s)", flush=True)
        begin, log = time.monotonic(), self.out / "gpu-check.log"
        with log.open("a") as file:
            print(f"== {name}: {' '.join(command)}", file=file, flush=True)
            start = file.tell()
            try:
                code = subprocess.run(
                    command,
                    cwd=ROOT,
                    env=environment(),
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    timeout=limit,
                    check=False,
                ).returncode
            except subprocess.TimeoutExpired:
                code = 124
        with log.open(errors="replace") as file:
            file.seek(start)
            lines = file.read().splitlines()
        print("\n".join(lines[-15:]), flush=True)
        seconds = round(time.monotonic() - begin, 1)
        self.results.append(
            {"step": name, "exit_code": code, "seconds": seconds, "last_line": lines[-1] if lines else ""}
        )
        print(f"== {name}: exit code {code} after {seconds} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--smoke", action="store_true", help="run on the CPU with the smallest set")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT") or ROOT / "benchmarks" / "results"))
    parser.add_argument("--budget", type=float, default=BUDGET_S, help="seconds for everything")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "gpu-check.log").unlink(missing_ok=True)
    unpack_wheels()
    import torch

    if not args.smoke and not torch.cuda.is_available():
        sys.exit(
            "gpu-check needs an NVIDIA GPU that torch sees; --smoke runs without one, and proves nothing about a GPU"
        )
    steps, python = Steps(args.out, args.budget), sys.executable
    name = "smoke" if args.smoke else torch.cuda.get_device_name().lower().replace(" ", "-")
    if not args.smoke:
        steps.run("build", [python, "setup.py", "build_ext", "--inplace"], args.budget * SHARES["build"])
    place_packages()
    # The smoke run has no tests to run: that each of them is collected is what can be seen without a GPU.
    pytest = [python, "-m", "pytest", "tests", "-m", "gpu", "-q", "-p", "no:cacheprovider", "--maxfail=30"]
    steps.run("tests", [*pytest, *(["--collect-only"] if args.smoke else [])], args.budget * SHARES["tests"])
    rows = args.out / f"{name}.jsonl"
    bench = [python, "-m", "munit_fast", "bench", "--set", "smoke" if args.smoke else "gate", "--output", str(rows)]
    bench += (
        ["--rounds", "2", "--turn", "0", "--no-compile", "--device", "cpu"] if args.smoke else ["--no-max-autotune"]
    )
    limit = max(steps.left - 20, 10)
    steps.run("bench", [*bench, "--minutes", f"{(limit - 15) / 60:.2f}"], limit)
    report = args.out / f"{name}-report.md"
    write = ["bench", "--report", "--results", str(rows), "--readme", str(report), "--pictures", str(args.out)]
    steps.run("report", [python, "-m", "munit_fast", *write], 60)
    summary = {"device": name, "torch": torch.__version__, "seconds": round(time.monotonic() - steps.begin, 1)}
    (args.out / f"{name}-gpu-check.json").write_text(json.dumps(summary | {"steps": steps.results}, indent=1) + "\n")
    failed = [step["step"] for step in steps.results if step["exit_code"]]
    print(
        f"gpu-check: {summary['seconds']} s, "
        + (f"failed: {', '.join(map(str, failed))}" if failed else "all steps passed")
    )
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
