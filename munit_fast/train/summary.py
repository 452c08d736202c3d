"""The summary of a run: outputs/<name>/summary.json, written when it begins and when it ends."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

from munit_fast.io.atomic import atomic_write_bytes
from munit_fast.train.run_dir import RunDirectory
from munit_fast.utils.text import one_line

NAME = "summary.json"
BEGIN, END, CHANGED, INITIAL = "begin", "end", "changed", "initial"  # kinds of events
_NO_FAULTS = (BEGIN, END, CHANGED, INITIAL)
_PARTS = 10  # of the run, each with its mean losses


def write_summary(folder: RunDirectory, iterations: int, about: Mapping[str, Any]) -> dict[str, Any]:
    """Write and return the summary of a run after so many iterations.

    about: "trainer", the algorithm, and "filled", the values that the configuration did not state; with evaluations
    their number, "evaluations", and the "best".
    initial: the model that the run began from, None for random weights; of several beginnings (a run that was killed
    before it saved begins again) the last. changed: keys of the configuration that a resumed run took over.
    sessions: from which iteration to which each process trained, when it began, and how it ended; how long is not
    known of one that was killed, and `hours` is without it. losses: means over tenths of the iterations,
    {name: [first tenth, …, last tenth]}. Raises FileWriteError.
    """
    events = folder.read_events()
    sessions = _sessions(events, iterations)
    run = folder.read_run()
    summary = {
        **about,
        "initial": _initial(events),
        "changed": [
            {key: event.get(key) for key in ("iteration", "key", "old", "new")}
            for event in events
            if event["kind"] == CHANGED
        ],
        "iterations": iterations,
        "images_of_each_domain": sum((part["to"] - part["from"]) * part["global_batch"] for part in sessions),
        "hours": round(sum(session.get("seconds", 0) for session in sessions) / 3600, 3),
        "sessions": sessions,
        "iterations_per_second": _rounded(median([v for _, v in run.get("iterations_per_second", [(0, 0.0)])])),
        "skipped_steps": int(max([v for _, v in run.get("skipped_steps", [(0, 0.0)])])),
        "faults": dict(Counter(event["kind"] for event in events if event["kind"] not in _NO_FAULTS)),
        "losses": {name: _tenths(curve, iterations) for name, curve in folder.read_losses().items()},
    }
    atomic_write_bytes(folder.root / NAME, (json.dumps(summary, indent=1) + "\n").encode())
    return summary


def describe_run(checkpoint: Path) -> str | None:
    """The run that ended with this checkpoint, in one line; None where it is not the last or there is no summary."""
    try:
        summary = json.loads((checkpoint.resolve().parents[1] / NAME).read_text(encoding="utf-8"))
        if checkpoint.stem.rpartition("_")[2] != f"{summary['iterations']:08d}":
            return None
        count = len(summary["sessions"])
        return (
            f"{summary['iterations']:,} iterations on {summary['images_of_each_domain']:,} images of each domain, "
            f"at least {summary['hours']:.1f} hours in {count} session{'' if count == 1 else 's'}{_begun(summary)}"
        )
    except (OSError, ValueError, TypeError, KeyError, IndexError):
        return None


def _initial(events: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    found = [event for event in events if event["kind"] == INITIAL]
    return {k: v for k, v in found[-1].items() if k not in ("kind", "time", "iteration")} if found else None


def _begun(summary: Mapping[str, Any]) -> str:
    """What the run began from: its licence may bind what came of it."""
    initial = summary.get("initial")
    if not isinstance(initial, Mapping):
        return ""
    licence = (initial.get("about") or {}).get("licence")
    return one_line(f", begun from {initial['from']}" + (f" ({licence})" if licence else ""), 500)


def _sessions(events: Sequence[Mapping[str, Any]], iterations: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for event in events:
        if event["kind"] == BEGIN:
            found.append({"began": event["time"], "from": event["iteration"], "global_batch": event["global_batch"]})
        elif event["kind"] == END and found:
            found[-1] |= {"to": event["iteration"], "seconds": event["seconds"], "ended": event["message"]}
    for part, following in zip(found, [*(part["from"] for part in found[1:]), iterations]):
        part.setdefault("to", following)  # what a killed process did beyond its last state was done again
        part.setdefault("ended", "killed or failed")
    return found


def _tenths(curve: Sequence[tuple[int, float]], iterations: int) -> list[float | None]:
    parts: list[list[float]] = [[] for _ in range(_PARTS)]
    for iteration, value in curve:
        parts[min(_PARTS - 1, (iteration - 1) * _PARTS // max(1, iterations))].append(value)
    return [_rounded(mean(part)) if part else None for part in parts]


def _rounded(value: float) -> float | None:
    return float(f"{value:.4g}") if value == value and abs(value) != float("inf") else None
