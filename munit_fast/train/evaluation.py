"""Metrics while training: when they are measured, which checkpoint is the best, and when nothing gets better."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console
from rich.text import Text

from munit_fast.config import Config
from munit_fast.data import ImageError
from munit_fast.evaluate import EvaluateOptions, TestSet, evaluate_model
from munit_fast.evaluate.overfitting import overfitting
from munit_fast.io.checkpoints import checkpoint_name, found_checkpoints, save_atomically, upgrade_state_dict
from munit_fast.models.munit import MODELS, MUNIT, UNIT
from munit_fast.train.best import History, scores_of, shown
from munit_fast.train.distributed import LostPeerError, PeerError, Ranks
from munit_fast.train.events import EventLog
from munit_fast.train.measured import Measured
from munit_fast.train.noise import undisturbed
from munit_fast.train.run_dir import RunDirectory

_GO_ON, _BUSY, _STOP = 0, 1, 2  # what the main rank tells the others
_ON_THE_CONSOLE = ("kid", "l1", "ssim", "line_f1", "diversity", "overfitting")


class _Abandoned(Exception):
    """The run is to stop: an evaluation must not keep it from saving."""


class Evaluations:
    """The evaluations of one session of a run: the main rank measures, the others wait without their time-out.

    Args:
        cfg: Of the run; without `eval_iter` nothing is ever measured.
        measured: On the main rank what `open_measured` returned.
        trainer: Whose generators and discriminators are measured, as copies.
        folder: Of the run.
        ranks: Of the job.
        events: Takes what could not be measured.
        console: Takes a line for each evaluation.
        amp: The run's precision.
        patience: Evaluations without a better value after which `exhausted` is set; None: never.

    Attributes:
        exhausted: Whether `patience` is used up, on every rank alike.
        history: On the main rank what was measured so far.
        stop_wanted: Asked while an evaluation runs; True gives it up.
    """

    def __init__(
        self,
        cfg: Config,
        measured: Measured | None,
        trainer: Any,
        folder: RunDirectory,
        ranks: Ranks,
        events: EventLog,
        console: Console,
        amp: str,
        patience: int | None,
    ) -> None:
        self.every, self.patience, self.share = cfg.eval_iter, patience, cfg.eval_share
        self.trainer, self.folder, self.ranks, self.events, self.console = trainer, folder, ranks, events, console
        self.exhausted = False
        self.stop_wanted: Callable[[], bool] = lambda: False
        self._began, self._spent, self._longest = time.monotonic(), 0.0, 0.0
        self._said = False
        self.history = History([], "", "")
        if measured is None:
            return
        for note in measured.unreadable:
            events.log_data(f"{note}; another image takes its place in evaluations")
        self.tests: TestSet = measured.tests
        for note in self.tests.notes:
            console.print(Text(f"evaluations: {note}"), soft_wrap=True)
        self.history = History(folder.read_evaluations(), cfg.eval_metric, measured.digest)
        self.options = EvaluateOptions(
            num_style=cfg.eval_styles, amp=amp, also=(), device=trainer.device, extractor=measured.extractor
        )
        with undisturbed(trainer.device):  # new networks draw weights
            self._model: MUNIT | UNIT = MODELS[trainer.algorithm](cfg, impl=trainer.impl).to(trainer.device).eval()
        self._discriminators = {d: copy.deepcopy(getattr(trainer, f"dis_{d}")).eval() for d in "ab"}

    def begin(self, done: int) -> dict[str, Any] | None:
        """Do what a killed process was about to do after iteration `done`; otherwise as `after`."""
        if not self.every:
            return None
        row = None
        if self.ranks.main:
            if done and done % self.every == 0 and not self.history.has(done):
                row = self._evaluate(done)
            best = self.history.best
            if best is not None and best["iteration"] == done:
                self.keep_best()
        self._agree()
        return row

    def after(self, done: int) -> dict[str, Any] | None:
        """Evaluate if it is time to, on every rank; what was measured, on the main one."""
        if not self.every or done % self.every:
            return None
        row = self._evaluate(done) if self.ranks.main and self._in_time(done) else None
        self._agree()
        return row

    def keep_best(self) -> None:
        """Write best_########.pt, the generators as they are, and remove the one before."""
        name = checkpoint_name("best", self.trainer.iterations)
        if not (self.folder.checkpoints / name).exists():
            save_atomically(self._states(), self.folder.checkpoints / name)
        for path in found_checkpoints(self.folder.checkpoints, "best").values():
            if path.name != name:
                path.unlink(missing_ok=True)

    def summary(self) -> dict[str, Any]:
        """For the run's summary: {"evaluations": their number, "best": the best one}; {} without any."""
        best = self.history.best
        if best is None:
            return {}
        name, metric = checkpoint_name("best", best["iteration"]), self.history.metric
        return {
            "evaluations": len(self.history.rows),
            "best": {
                "metric": metric,
                "value": best["values"][metric],
                "stderr": best["stderr"].get(metric),
                "iteration": best["iteration"],
                "checkpoint": name if (self.folder.checkpoints / name).exists() else None,
            },
        }

    def _agree(self) -> None:
        """Have every rank know whether to stop; the others wait for as long as the main one is busy."""
        if self.ranks.main:
            self.exhausted = self.patience is not None and self.history.since_best >= self.patience
            self.ranks.max(_STOP if self.exhausted else _GO_ON)
            return
        while (said := self.ranks.max(_GO_ON)) == _BUSY:
            pass
        self.exhausted = said == _STOP

    def _in_time(self, done: int) -> bool:
        """Whether one more evaluation keeps to its share of the time. A CPU takes them all: its user chose."""
        if self.trainer.device.type == "cpu" or not self._spent:
            return True
        elapsed = time.monotonic() - self._began
        if self._spent + self._longest <= self.share * (elapsed + self._longest):
            return True
        if not self._said:
            self.console.print(
                Text(
                    f"iteration {done}: not evaluated, since evaluations would take more than {self.share:.0%} of the "
                    "time (eval_share); so will be others. Raise eval_iter, or lower eval_images or eval_styles"
                ),
                soft_wrap=True,
            )
            self._said = True
        return False

    def _evaluate(self, done: int) -> dict[str, Any] | None:
        """Measure and record; None where that was impossible, which is reported and does not end the run."""
        begin = time.monotonic()
        try:
            with undisturbed(self.trainer.device):
                row = self.history.row(done, *self._measure())
        except _Abandoned:
            return None
        except (PeerError, LostPeerError):
            raise
        except (ImageError, ValueError, MemoryError, RuntimeError) as error:  # RuntimeError: out of memory, too
            reason = str(error).partition("\n")[0]
            self.events.log("evaluation", f"iteration {done}: not evaluated: {reason}", iteration=done)
            return None
        finally:
            seconds = time.monotonic() - begin
            self._spent, self._longest = self._spent + seconds, max(self._longest, seconds)
        row["seconds"] = round(seconds, 2)
        self.folder.append_evaluation(row)
        best, metric = ", the best so far" if self.history.add(row) else "", self.history.metric
        named = [name for name in row["values"] if name.startswith(_ON_THE_CONSOLE) and name != metric]
        line = "; ".join([shown(row, metric) + best, ", ".join(shown(row, name) for name in named)])
        self.console.print(Text(f"evaluation after iteration {done}: {line}"), soft_wrap=True)
        return row

    def _measure(self) -> tuple[dict[str, float], dict[str, float]]:
        """Values by name, and the standard errors of those that have one."""
        states = self._states()
        for network, state in ((self._model.gen_a, states["a"]), (self._model.gen_b, states["b"])):
            network.load_state_dict(upgrade_state_dict(state, network))  # whose weights have no spectral norm
        found = evaluate_model(self._model, self.tests, self.options, lambda done, total: self._beat())
        values, stderr = scores_of(found)
        for domain, copied in self._discriminators.items():
            self._beat()
            copied.load_state_dict(getattr(self.trainer, f"dis_{domain}").state_dict())
            value = overfitting(copied, self.tests.train[domain], self.tests.pictures[domain])
            if math.isfinite(value):
                values[f"overfitting_{domain}"] = value
        return values, stderr

    def _beat(self) -> None:
        """Between two parts of an evaluation."""
        if self.stop_wanted():
            raise _Abandoned
        self.ranks.max(_BUSY)

    def _states(self) -> Mapping[str, Any]:
        """The generators that one would translate with, {"a", "b"}: averaged, where there is an average."""
        generators, average = self.trainer.generators, self.trainer.average
        states: Mapping[str, Any] = average.states(generators) if average is not None else {}
        return states or {key: network.state_dict() for key, network in generators.items()}
