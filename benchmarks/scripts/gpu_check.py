"""Everything that only a GPU can say, in one command of less than nine minutes.

Builds in place, runs the tests marked gpu, then the benchmark's gate set, what matters most first, and writes a log,
rows, their page, `goals.md` (the goals, met or missed, and what was not measured) and `measured.json` (which backend
`auto` may take on this GPU model; see docs/development.md).

    make gpu-check                          # OUT=FOLDER for the results, default benchmarks/results
    make gpu-check GPU_FLAGS=--bench        # only the benchmark's cases without rows in OUT, or in benchmarks/results
    python benchmarks/scripts/gpu_check.py --smoke  # the same steps on the CPU, small: proves that they run

Needs no network: what is not installed comes from wheels/, which `make gpu-wheels` fills on a machine that has one.
A step that fails does not stop the next; the exit code is 1 if any failed. The clock stopping the benchmark is no
failure: what was not measured is said.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from bare_checkout import PLACE, ROOT, place, prepare

BUDGET_S = 500  # with the report and what torch needs to start, under nine minutes
SHARES = {"build": 0.2, "tests": 0.45}  # of the budget, at most; the benchmark gets what is left
STOPPED = 124
GRACE_S = 5  # from the interrupt, at which pytest names what failed so far, to the kill
TESTS_AT_ONCE = 6  # a context on the GPU each, and one thread for what they compare with
ENDING_S = 20  # of the benchmark's time: a case that has begun when the others are no longer begun
# A GPU's times hardly spread, and the cases of 64 MB and more need few calls a turn; max-autotune takes minutes a case.
TURNS = ["--no-max-autotune", "--rounds", "7", "--turn", "0.005"]


class Steps:
    """Runs the steps, one log for all, and keeps how they went."""

    def __init__(self, out: Path, budget: float, path: list[str]) -> None:
        self.out, self.begin, self.budget = out, time.monotonic(), budget
        paths = os.pathsep.join(p for p in [*path, os.environ.get("PYTHONPATH", "")] if p)
        self.environment = {**os.environ, "PYTHONPATH": paths, "OMP_WAIT_POLICY": "passive"}
        self.results: list[dict[str, object]] = []

    @property
    def left(self) -> float:
        return self.budget - (time.monotonic() - self.begin)

    def run(
        self,
        name: str,
        command: list[str],
        limit: float,
        folder: Path = PLACE,
        may_stop: bool = False,
        shown: int = 15,
    ) -> None:
        """One step, with its children, in `folder`: Python puts that before all other paths. shown: its last lines."""
        print(f"== {name} (at most {limit:.0f} s)", flush=True)
        begin, log = time.monotonic(), self.out / "gpu-check.log"
        with log.open("a") as file:
            print(f"== {name}: {' '.join(command)}", file=file, flush=True)
            start = file.tell()
            step = subprocess.Popen(
                command,
                cwd=folder,
                env=self.environment,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                code = step.wait(timeout=max(limit - GRACE_S, 1))
            except subprocess.TimeoutExpired:
                os.killpg(step.pid, signal.SIGINT)
                with suppress(subprocess.TimeoutExpired):
                    step.wait(timeout=GRACE_S)
                with suppress(ProcessLookupError):
                    os.killpg(step.pid, signal.SIGKILL)  # compilers and tests that it started, too
                step.wait()
                code = STOPPED
        with log.open(errors="replace") as file:
            file.seek(start)
            lines = file.read().splitlines()
        print("\n".join(lines[-shown:]), flush=True)
        seconds = round(time.monotonic() - begin, 1)
        passed = code == 0 or (may_stop and code == STOPPED)
        last = lines[-1] if lines else ""
        self.results.append({"step": name, "exit_code": code, "passed": passed, "seconds": seconds, "last_line": last})
        print(f"== {name}: exit code {code} after {seconds} s", flush=True)


def at_once() -> list[str]:
    """The flags for several tests at a time, where pytest-xdist is; what only prints times is left out."""
    if importlib.util.find_spec("xdist") is None:
        return []
    return ["-n", str(TESTS_AT_ONCE), "--dist", "worksteal", "-k", "not bandwidth"]


def bring(rows: Path, folder: Path) -> None:
    """Go on with the rows of an earlier call where the folder for the results is new."""
    earlier = folder / rows.name
    if not rows.exists() and earlier.exists():
        shutil.copyfile(earlier, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--smoke", action="store_true", help="run on the CPU with the smallest set")
    parser.add_argument("--bench", action="store_true", help="only the benchmark, where an earlier call left off")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT") or ROOT / "benchmarks" / "results"))
    parser.add_argument("--budget", type=float, default=BUDGET_S, help="seconds for everything")
    args = parser.parse_args()
    out: Path = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    (out / "gpu-check.log").unlink(missing_ok=True)
    path = prepare()
    import torch

    from munit_fast.benchmarks.plots import slug

    if not args.smoke and not torch.cuda.is_available():
        sys.exit("gpu-check needs an NVIDIA GPU that torch sees; --smoke runs without one, and proves nothing of a GPU")
    steps, python = Steps(out, args.budget, path), sys.executable
    name = "smoke" if args.smoke else slug(torch.cuda.get_device_name())
    if not args.smoke:
        steps.run("build", [python, "setup.py", "build_ext", "--inplace"], args.budget * SHARES["build"], ROOT)
        place()
    if not args.bench:
        # The smoke run has no tests to run: that each of them is collected is what can be seen without a GPU.
        pytest = [python, "-m", "pytest", str(ROOT / "tests"), "-m", "gpu", "-q", "-p", "no:cacheprovider"]
        how = ["--collect-only"] if args.smoke else ["--maxfail=30", *at_once()]
        steps.run("tests", [*pytest, *how], args.budget * SHARES["tests"])
    rows, result = out / f"{name}.jsonl", out / f"{name}-gpu-check.json"
    result.unlink(missing_ok=True)
    if args.bench:
        bring(rows, ROOT / "benchmarks" / "results")
    what = ["--set", "smoke" if args.smoke else "gate"]
    bench = [python, "-m", "munit_fast", "bench", *what, "--output", str(rows), "--compile-last"]
    bench += ["--rounds", "2", "--turn", "0", "--no-compile", "--device", "cpu"] if args.smoke else TURNS
    bench += ["--missing"] if args.bench else []
    limit = max(steps.left - 15, 30)
    steps.run("bench", [*bench, "--minutes", f"{(limit - ENDING_S) / 60:.2f}"], limit, may_stop=True)
    report = [python, str(ROOT / "benchmarks" / "scripts" / "gpu_report.py"), str(rows), *what, "--out", str(out)]
    report += ["--no-compile", "--device", "cpu"] if args.smoke else []
    steps.run("report", report, 30, shown=100)
    summary = {"device": name, "torch": torch.__version__, "seconds": round(time.monotonic() - steps.begin, 1)}
    found = json.loads(result.read_text()) if result.exists() else {}
    result.write_text(json.dumps(summary | {"steps": steps.results} | found, indent=1, ensure_ascii=False) + "\n")
    failed = ", ".join(str(step["step"]) for step in steps.results if not step["passed"])
    print(f"gpu-check: {summary['seconds']} s, " + (f"failed: {failed}" if failed else "all steps passed"))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
