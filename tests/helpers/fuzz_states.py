"""Checkpoints and states of runs for the fuzzer."""

from __future__ import annotations

import contextlib
import copy
import functools
import io
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st

from helpers.fuzz_inputs import GENERATOR, STEP, Target, check_message, mutate, mutated
from munit_fast.config import make_config
from munit_fast.io.checkpoints import CheckpointError, load_file, load_states
from munit_fast.models import networks
from munit_fast.train.initial import begin_from
from munit_fast.train.run_state import apply_state, checksum, find_state, run_state
from munit_fast.train.trainer import MUNIT_Trainer


def checkpoint_inputs() -> st.SearchStrategy[bytes]:
    def saved(obj: Any, legacy: bool = False) -> bytes:
        buffer = io.BytesIO()
        torch.save(obj, buffer, _use_new_zipfile_serialization=not legacy)
        return buffer.getvalue()

    state = networks.AdaINGen(3, GENERATOR).state_dict()
    pair = {"a": state, "b": state}
    adam = {
        "state": {0: {"step": torch.tensor(1.0), "exp_avg": torch.zeros(2)}},
        "param_groups": [{"lr": 1e-4, "params": [0]}],
    }
    small = {"a": dict(list(state.items())[:2]), "b": {}}
    seeds = [
        saved(pair),
        saved(pair, legacy=True),
        saved({"gen": adam, "dis": adam}),
        saved(small),
        saved(small, legacy=True),
    ]
    seeds.append(pickle.dumps({"a": {}, "b": {}}))

    def strange(value: torch.Tensor, kind: str) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            makers: dict[str, Callable[[], Any]] = {
                "complex": lambda: value.to(torch.complex64),
                "int": lambda: value.to(torch.int8),
                "bool": lambda: value.bool(),
                "nan": lambda: value * torch.nan,
                "sparse": lambda: value.to_sparse(),
                "csr": lambda: torch.ones(2, 2).to_sparse_csr(),
                "meta": lambda: value.to("meta"),
                "quantized": lambda: torch.quantize_per_tensor(value.float(), 0.1, 0, torch.qint8),
                "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
                "stride0": lambda: (
                    torch.zeros(1).expand(value.numel()).reshape(value.shape) if value.numel() else value
                ),
                "half": lambda: value.half(),
                "empty": lambda: torch.empty(0),
                "scalar": lambda: torch.tensor(1.0),
                "huge": lambda: torch.zeros(1).expand(2**40),
                "transposed": lambda: value.mT.contiguous().mT if value.dim() > 1 else value,
                "number": lambda: 3,
                "text": lambda: "x",
                "none": lambda: None,
                "list": lambda: [value],
                "parameter": lambda: torch.nn.Parameter(value) if value.is_floating_point() else value,
            }
            return makers[kind]()

    kinds = st.sampled_from(
        ["complex", "int", "bool", "nan", "sparse", "csr", "meta", "quantized", "nested", "stride0", "half", "empty"]
    ) | st.sampled_from(
        ["scalar", "huge", "transposed", "number", "text", "none", "list", "parameter", "drop", "rename"]
    )

    def odd(changes: list[tuple[int, str, bool]], legacy: bool) -> bytes:
        changed: dict[Any, Any] = dict(state)
        for place, kind, _ in changes:
            name = list(state)[place % len(state)]
            if kind in ("drop", "rename"):
                value = changed.pop(name, None)
                if kind == "rename":
                    changed[place] = value
            else:
                changed[name] = strange(state[name], kind)
        try:
            return saved({"a": changed, "b": state}, legacy)
        except (RuntimeError, NotImplementedError):  # what cannot be saved cannot arrive
            return saved({"a": {}, "b": state}, legacy)

    structured = st.builds(
        odd, st.lists(st.tuples(st.integers(0, 200), kinds, st.booleans()), min_size=1, max_size=3), st.booleans()
    )
    return mutated(seeds) | structured | st.builds(mutate, structured, st.lists(STEP, max_size=2)) | state_inputs()


def small_trainer() -> MUNIT_Trainer:
    """A trainer with as few and small tensors as there can be, an average and a controller among them."""
    torch.manual_seed(0)
    dis = {"dim": 2, "n_layer": 1, "num_scales": 1}
    options = {"ema_half_life": 2, "r1_w": 1, "ada_target": 0.6}
    cfg = make_config({"gen": GENERATOR, "dis": dis, "display_size": 1} | options)
    trainer = MUNIT_Trainer(cfg.hyperparameters())
    for optimizer in (trainer.gen_opt, trainer.dis_opt):
        for parameter in (p for group in optimizer.param_groups for p in group["params"]):
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
    trainer.options.terms.last = {name: torch.tensor(1.0) for name in trainer.options.terms.lazy}
    return trainer


def state_inputs() -> st.SearchStrategy[bytes]:
    """Whole states of a run with some of their values replaced, the checksum right or not."""
    state = run_state(small_trainer(), 1)
    values: list[Any] = [
        None,
        3,
        -1,
        10**30,
        1.5,
        "x",
        [],
        {},
        [1],
        {"a": 1},
        torch.zeros(2),
        torch.zeros(0),
        torch.ones(2, 2),
    ]
    values += [
        torch.ones(2).to_sparse(),
        torch.ones(2).to("meta"),
        torch.ones(2, dtype=torch.complex64),
        torch.tensor(torch.nan),
    ]

    def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []
        return [place for key in keys for place in [(*path, key), *places(value[key], (*path, key))]]

    every = places(state)

    def odd(changes: list[tuple[int, int, bool]], right: bool) -> bytes:
        changed = copy.deepcopy(state)
        for place, value, drop in changes:
            *path, last = every[place % len(every)]
            try:
                where = functools.reduce(lambda part, key: part[key], path, changed)
                if drop:
                    del where[last]
                else:
                    where[last] = values[value % len(values)]
            except (KeyError, IndexError, TypeError, RuntimeError):  # an earlier change took the place away
                continue
        if right:
            with contextlib.suppress(Exception):
                changed["checksum"] = checksum({key: value for key, value in changed.items() if key != "checksum"})
        buffer = io.BytesIO()
        torch.save(changed, buffer)
        return buffer.getvalue()

    change = st.tuples(st.integers(0, 10**6), st.integers(0, 99), st.booleans())
    return st.builds(odd, st.lists(change, min_size=1, max_size=3), st.sampled_from([True, True, True, False]))


def initial_target(folder: Path) -> Target:
    trainer = small_trainer()
    start = copy.deepcopy(trainer.state_dict())

    def run(data: bytes) -> None:
        for name in ("gen_00000001.pt", "dis_00000001.pt", "run/checkpoints/resume_00000001.pt"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
        for source in ("gen_00000001.pt", "run"):
            trainer.load_state_dict(start)
            try:
                found = begin_from(trainer, folder / source)
            except CheckpointError as error:
                check_message(error)
                changed = [key for key, value in trainer.state_dict().items() if not torch.equal(value, start[key])]
                assert not changed, "half a model was taken"
            else:
                assert all(line.isprintable() and len(line) < 2000 for line in found.lines), found.lines
                assert all(value.isfinite().all() for value in trainer.state_dict().values())

    return run


def checkpoint_target(folder: Path) -> Target:
    path, nets = folder / "gen_00000001.pt", [networks.AdaINGen(3, GENERATOR) for _ in range(2)]
    (folder / "run").mkdir()
    trainer = small_trainer()

    def weights() -> torch.Tensor:
        return torch.cat([value.flatten() for net in nets for value in net.state_dict().values()]).clone()

    def run(data: bytes) -> None:
        path.write_bytes(data)
        before = weights()
        try:
            load_states(path, load_file(path), *nets)
        except CheckpointError as error:
            check_message(error)
            assert torch.equal(before.nan_to_num(), weights().nan_to_num()), "half a checkpoint was loaded"
        try:
            load_file(path)
        except CheckpointError as error:
            check_message(error)
        for names in (
            ["resume_00000001.pt"],
            ["gen_00000001.pt", "dis_00000001.pt", "ema_00000001.pt", "optimizer.pt"],
        ):
            for name in names:
                (folder / "run" / name).write_bytes(data)
            try:
                loaded = find_state(folder / "run")
                apply_state(trainer, loaded.state, loaded.source)
            except CheckpointError as error:
                check_message(error)
            for name in names:
                (folder / "run" / name).unlink()

    return run
