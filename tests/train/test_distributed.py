"""Training on several processes: the same numbers as on one, and no process that waits for a lost one."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import yaml
from rich.console import Console

from helpers import fake_cuda
from munit_fast import make_config
from munit_fast.io.checkpoints import load_file
from munit_fast.train import TrainOptions, train
from munit_fast.train import trainer as trainers
from munit_fast.train.cuda_graph import WARM_UP
from munit_fast.train.distributed import Ranks
from munit_fast.train.run_dir import RunDirectory, RunStatus
from munit_fast.train.run_state import apply_state, find_state

SCRIPT = Path(__file__).parents[1] / "helpers" / "ranks.py"
ITERATIONS = 20
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def config(small_config: dict[str, Any], data: Path, **over: Any) -> dict[str, Any]:
    quiet = {"image_save_iter": 10**6, "image_display_iter": 10**6, "snapshot_save_iter": 10}
    weights = {"recon_x_cyc_w": 1, "recon_kl_w": 0.01, "recon_kl_cyc_w": 0.01, "ema_half_life": 20}
    return small_config | quiet | weights | {"data_root": str(data), "max_iter": ITERATIONS, "step_size": 7} | over


def torchrun(count: int, *arguments: object, restarts: int = 0) -> list[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    return [*command, "--max-restarts", str(restarts), *map(str, arguments)]


def on_ranks(count: int, values: dict[str, Any], out: Path, trainer: str, *flags: str) -> None:
    out.mkdir(exist_ok=True)
    path = out / "small.yaml"
    path.write_text(yaml.safe_dump(values))
    command = torchrun(count, SCRIPT, path, out, trainer, *flags)
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=250)
    assert done.returncode == 0, done.stderr[-3000:]


def alone(values: dict[str, Any], out: Path, trainer: str, **more: Any) -> Path:
    options = TrainOptions("small", out, trainer, double=True, amp="off", **more)
    train(make_config(values), options, config_text=yaml.safe_dump(values), console=Console(quiet=True))
    return out


def compare(out: Path, whole: Path) -> None:
    """Losses of every iteration, and every parameter, moment and average at the end, to 1e-9."""
    rows = [
        [json.loads(line) for line in (path / "logs/small/losses.jsonl").read_text().splitlines()]
        for path in (out, whole)
    ]
    assert len(rows[0]) == len(rows[1]) == ITERATIONS
    for mine, theirs in zip(*rows):
        for row in (mine, theirs):
            assert {"images_per_second", "memory_mb"} <= set(row.pop("run"))
        assert mine == pytest.approx(theirs, rel=1e-9, abs=1e-12)
    states = [find_state(path / "outputs/small/checkpoints").state for path in (out, whole)]
    assert states[0]["iterations"] == states[1]["iterations"] == ITERATIONS
    for part in ("networks", "average", "optimizers"):
        pairs = list(zip(flat(states[0][part]), flat(states[1][part]), strict=True))
        assert len(pairs) > 20
        for (name, mine), (_, theirs) in pairs:
            assert float((mine - theirs).norm()) <= 1e-9 * float(theirs.norm()) + 1e-12, name
    controllers = [state.get("ada", {}) for state in states]
    assert list(controllers[0]) == list(controllers[1])
    assert all(torch.equal(controllers[0][name], controllers[1][name]) for name in controllers[0])


def flat(value: Any, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from flat(item, f"{name}.{key}")
    elif isinstance(value, torch.Tensor):
        yield name, value


@pytest.mark.slow
def test_many_ranks_are_one_process_with_their_batch(
    small_config: dict[str, Any], picture_folders: Path, tmp_path: Path
) -> None:
    """2 ranks of 2 images, 4 of 1, and 2 for ten iterations and then 4: one process of 4 images."""
    values = config(small_config, picture_folders, batch_size=4)
    whole = alone(values, tmp_path / "one", "MUNIT")
    for count in (2, 4):
        out = tmp_path / f"{count}"
        on_ranks(count, values | {"batch_size": 4 // count}, out, "MUNIT")
        compare(out, whole)
        names = sorted(p.name for p in (out / "outputs/small/checkpoints").iterdir())
        assert names == sorted(p.name for p in (whole / "outputs/small/checkpoints").iterdir())
    out = tmp_path / "changing"
    on_ranks(2, values | {"batch_size": 2, "max_iter": 10}, out, "MUNIT")
    on_ranks(4, values | {"batch_size": 1}, out, "MUNIT", "--resume")
    compare(out, whole)


@pytest.mark.slow
def test_all_ranks_begin_from_the_model_that_one_reads(
    small_config: dict[str, Any], picture_folders: Path, tmp_path: Path
) -> None:
    source = alone(config(small_config, picture_folders, max_iter=3), tmp_path / "source", "MUNIT", seed=9)
    values = config(small_config, picture_folders, batch_size=2)
    one = alone(values, tmp_path / "one", "MUNIT", init_from=source / "outputs/small")
    two = tmp_path / "two"
    on_ranks(2, values | {"batch_size": 1}, two, "MUNIT", f"--init_from={source / 'outputs/small'}")
    compare(two, one)
    begun = json.loads((two / "outputs/small/summary.json").read_text())["initial"]
    assert begun["from"] == str(source / "outputs/small") and len(begun["taken"]) == 4


@pytest.mark.slow
def test_all_ranks_take_an_override(small_config: dict[str, Any], picture_folders: Path, tmp_path: Path) -> None:
    """Given to all of them, and kept from the session before, of which only the main rank knows."""
    values = config(small_config, picture_folders, batch_size=2)
    one, two = tmp_path / "one", tmp_path / "two"
    for end, overrides in ((7, ()), (14, ("lr=0.001", "recon_x_w=3")), (ITERATIONS, ())):
        alone(values | {"max_iter": end}, one, "MUNIT", resume=end > 7, overrides=overrides)
        flags = [*(["--resume"] if end > 7 else []), *(f"--override={value}" for value in overrides)]
        on_ranks(2, values | {"batch_size": 1, "max_iter": end}, two, "MUNIT", *flags)
    compare(two, one)
    groups = find_state(two / "outputs/small/checkpoints").state["optimizers"]["gen"]["param_groups"]
    assert groups[0]["initial_lr"] == 0.001


@pytest.mark.slow
def test_unit_on_two_ranks_in_two_parts(small_config: dict[str, Any], picture_folders: Path, tmp_path: Path) -> None:
    values = config(small_config, picture_folders, batch_size=4)
    on_ranks(2, values | {"batch_size": 1, "accumulation": 2}, tmp_path / "two", "UNIT", "--checkpointing")
    compare(tmp_path / "two", alone(values, tmp_path / "one", "UNIT"))


def adaptive(values: dict[str, Any]) -> dict[str, Any]:
    """A probability that moves every third iteration, one way or the other."""
    dis = values["dis"] | {"gan_type": "nsgan"}  # whose outputs begin on both sides of the middle
    return values | {"dis": dis, "ada_target": 0.2, "ada_images": 40, "ada_iter": 3}


def check_adaptive(out: Path) -> None:
    rows = [json.loads(line) for line in (out / "logs/small/losses.jsonl").read_text().splitlines()]
    assert max(row["ada_p_a"] + row["ada_p_b"] for row in rows) > 0
    assert bool(find_state(out / "outputs/small/checkpoints").state["ada"]["seen"].any())


@pytest.mark.slow
def test_augmentation_on_many_ranks_is_that_of_one_process(
    small_config: dict[str, Any], picture_folders: Path, tmp_path: Path
) -> None:
    """2 ranks, each in two parts, then 4 from the middle of an interval of the controller."""
    values = adaptive(config(small_config, picture_folders, batch_size=4))
    whole = alone(values, tmp_path / "one", "MUNIT")
    out = tmp_path / "changing"
    on_ranks(2, values | {"batch_size": 1, "accumulation": 2, "max_iter": 10}, out, "MUNIT")
    check_adaptive(out)
    on_ranks(4, values | {"batch_size": 1}, out, "MUNIT", "--resume")
    compare(out, whole)
    check_adaptive(whole)


IN_GRAPHS: list[dict[str, Any]] = [
    {},
    {"adaptive": True},
    {"dis": {"norm": "sn"}},
    {"gen": {"weight_norm": "spectral"}, "dis": {"weight_norm": "spectral", "arch": "residual", "num_scales": 1}},
]


@pytest.mark.slow
@pytest.mark.parametrize("options", IN_GRAPHS, ids=str)
def test_ranks_in_a_graph_are_one_process(
    small_config: dict[str, Any], picture_folders: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    """The exchange of the gradients is captured and replayed with the rest, here the CPU's."""
    values = config(small_config, picture_folders, batch_size=4)
    values = adaptive(values) if options.get("adaptive") else values
    for part in {"gen", "dis"} & set(options):
        values[part] = values[part] | options[part]
    with pytest.MonkeyPatch.context() as patched:  # in a graph too: its learning rate is a float32 tensor
        fake_cuda.install(patched)
        whole = alone(values, tmp_path / "one", "MUNIT")
    out = tmp_path / "two"
    on_ranks(2, values | {"batch_size": 2}, out, "MUNIT", "--graph")
    compare(out, whole)
    graphs = 2 if options.get("adaptive") else 1
    said = f"{ITERATIONS - graphs * WARM_UP} replays, [0] held"
    assert [(out / f"replays-{rank}").read_text() for rank in (0, 1)] == [said] * 2


OPTIONS: dict[str, Any] = {"r1_w": 0.5, "r1_iter": 3, "feature_matching_w": 0.3, "lr_dis": 0.0004}


@pytest.mark.slow
@pytest.mark.parametrize("trainer", ["MUNIT", "UNIT"])
def test_optional_terms_are_those_of_one_process(
    small_config: dict[str, Any], picture_folders: Path, tmp_path: Path, trainer: str
) -> None:
    """In two sessions: in the second, R1 is logged before it is computed again. Each rank's batch is in two parts."""
    values = config(small_config, picture_folders, batch_size=4) | OPTIONS
    if trainer == "MUNIT":
        values |= {"mode_seeking_w": 0.01, "diversity_w": 0.2}
    values["dis"] = values["dis"] | {"gan_type": "hinge"}
    whole, out = alone(values, tmp_path / "one", trainer), tmp_path / "two"
    values |= {"batch_size": 1, "accumulation": 2}
    on_ranks(2, values | {"max_iter": 10}, out, trainer)
    on_ranks(2, values, out, trainer, "--resume")
    compare(out, whole)
    rows = [json.loads(line) for line in (out / "logs/small/losses.jsonl").read_text().splitlines()]
    penalties = [row.get("loss_dis_r1_a") for row in rows]
    assert penalties[:2] == [None, None] and None not in penalties[2:] and len(set(penalties[2:])) == 6
    assert {row["run"]["learning_rate_dis"] / row["run"]["learning_rate"] for row in rows} == {4}


@pytest.mark.slow
def test_optional_terms_in_a_graph_of_two_ranks(
    small_config: dict[str, Any], picture_folders: Path, tmp_path: Path
) -> None:
    """The mean of the last penalty is exchanged outside of the two graphs."""
    values = config(small_config, picture_folders, batch_size=4) | OPTIONS | {"lr": 2**-13, "lr_dis": 2**-11}
    with pytest.MonkeyPatch.context() as patched:
        fake_cuda.install(patched)
        whole = alone(values, tmp_path / "one", "MUNIT")
    out = tmp_path / "two"
    on_ranks(2, values | {"batch_size": 2}, out, "MUNIT", "--graph")
    compare(out, whole)
    said = f"{ITERATIONS - 2 * WARM_UP} replays, [0] held"
    assert [(out / f"replays-{rank}").read_text() for rank in (0, 1)] == [said] * 2


# ---- a rank that is lost ----


def ranks_of(path: Path) -> dict[int, int]:
    """Rank -> process id of the training processes that were given `path`."""
    found = {}
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and str(path).encode() in (entry / "cmdline").read_bytes():
                variables = dict(item.split(b"=", 1) for item in (entry / "environ").read_bytes().split(b"\0") if item)
                if b"RANK" in variables:
                    found[int(variables[b"RANK"])] = int(entry.name)
        except (OSError, ValueError):
            continue
    return found


def lines(path: Path) -> int:
    return path.read_text().count("\n") if path.exists() else 0


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds the ranks in /proc")
@pytest.mark.parametrize("restarts", [0, 1])
def test_a_killed_rank_ends_or_restarts_the_job(
    small_config: dict[str, Any], picture_folders: Path, tmp_path: Path, restarts: int
) -> None:
    values = config(small_config, picture_folders, batch_size=2, max_iter=10**6, snapshot_save_iter=5)
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(values))
    command = torchrun(
        2, "-m", "munit_fast", "train", "--config", path, "--output_path", tmp_path, "--device", "cpu",
        "--save_minutes", 0, restarts=restarts,
    )  # fmt: skip
    job = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
    history, folder = tmp_path / "logs/small/losses.jsonl", tmp_path / "outputs/small/checkpoints"
    try:
        wait_for(lambda: lines(history) >= 6, job)
        before = ranks_of(path)
        assert sorted(before) == [0, 1]
        os.kill(before[1], signal.SIGKILL)
        if restarts == 0:
            _, text = job.communicate(timeout=120)
            assert job.returncode != 0 and not ranks_of(path), text
            assert re.search("munit-fast: rank 0: .*process.*gone", text)
            assert find_state(folder).state["iterations"] >= 5
            return
        wait_for(
            lambda: sorted(ranks_of(path)) == [0, 1] and not set(ranks_of(path).values()) & set(before.values()), job
        )
        done = find_state(folder).state["iterations"]
        wait_for(lambda: find_state(folder).state["iterations"] >= done + 5, job)
        os.kill(ranks_of(path)[1], signal.SIGTERM)  # one rank is asked to stop: all do, after the same iteration
        _, text = job.communicate(timeout=120)
        assert job.returncode == 0, text
        assert text.count("resuming after iteration") == 1 and text.count("stopped after iteration") == 1
    finally:
        job.kill()
        for number in ranks_of(path).values():
            os.kill(number, signal.SIGKILL)


def wait_for(condition: Any, job: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120  # on a quiet machine all of it takes ten seconds
    while not condition():
        assert job.poll() is None and time.monotonic() < deadline, "the job ended" if job.poll() else "nothing happened"
        time.sleep(0.1)


# ---- what is wrong is said once ----


@pytest.mark.slow
def test_a_refusal_is_said_by_one_rank(small_config: dict[str, Any], picture_folders: Path, tmp_path: Path) -> None:
    values = config(small_config, picture_folders)
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(values | {"data_root": "nowhere"}))
    command = torchrun(2, "-m", "munit_fast", "train", "--config", path, "--output_path", tmp_path, "--device", "cpu")
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=120)
    assert done.returncode != 0
    assert done.stderr.count("munit-fast: ") == 1 and "nowhere" in done.stderr, done.stderr
    assert not (tmp_path / "outputs").exists()


@pytest.mark.slow
def test_a_run_that_only_another_rank_sees_is_not_begun_anew(
    small_config: dict[str, Any], picture_folders: Path, tmp_path: Path
) -> None:
    values = config(small_config, picture_folders, max_iter=2)
    alone(values, tmp_path / "host1", "MUNIT")
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(values))
    command = torchrun(2, SCRIPT, path, tmp_path / "host{rank}", "MUNIT")
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=120)
    assert done.returncode != 0
    assert re.search("RunDirectoryError: .*--output_path", done.stderr), done.stderr
    assert not (tmp_path / "host0").exists()


@pytest.mark.slow
def test_every_rank_dumps_its_part(small_config: dict[str, Any], picture_folders: Path, tmp_path: Path) -> None:
    """A learning rate that ruins the weights: both parts of the batch are there, and repeat it in one process."""
    values = config(small_config, picture_folders, lr=1e30, batch_size=2, ema_half_life=0)
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(values))
    command = torchrun(
        2, "-m", "munit_fast", "train", "--config", path, "--output_path", tmp_path, "--device", "cpu",
        "--patience", 3,
    )  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=120)
    assert done.returncode != 0 and "…_rank1.pt" in done.stderr, done.stderr
    (whole,) = (tmp_path / "outputs/small").glob("notfinite_????????.pt")
    dumps = [load_file(whole), load_file(whole.with_stem(f"{whole.stem}_rank1"))]
    assert "state" in dumps[0] and "state" not in dumps[1]
    names = [Path(name).name for dump in dumps for name in dump["images"]["a"]]
    assert sorted(names) == ["0.png", "1.png", "2.png", "3.png"]  # the global batch, each image once
    hp = make_config(values).hyperparameters()
    trainer = trainers.MUNIT_Trainer(hp)
    apply_state(trainer, dumps[0]["state"], whole)
    before = trainer.skipped_steps
    x_a, x_b = (torch.cat([dump[name] for dump in dumps]) for name in ("x_a", "x_b"))
    of_dis, of_gen = (
        [torch.cat(parts) for parts in zip(*(dump["noise"][kind] for dump in dumps))] for kind in ("dis", "gen")
    )
    trainer.update(x_a, x_b, hp, (of_dis, of_gen))
    assert trainer.skipped_steps > before


def test_what_is_left_of_a_run_is_seen(tmp_path: Path) -> None:
    folder = RunDirectory(tmp_path, "small")
    assert folder.status == RunStatus.EMPTY
    folder.checkpoints.mkdir(parents=True)
    assert folder.status == RunStatus.EMPTY
    folder.write_config(make_config({"max_iter": 1}), "MUNIT")
    assert folder.status == RunStatus.CONFIGURED
    (folder.checkpoints / "resume_00000001.pt").touch()
    assert folder.status == RunStatus.SAVED


def test_one_process_has_nobody_to_ask() -> None:
    ranks = Ranks()
    assert ranks.main and ranks.should_stop(True) and not ranks.should_stop(False)
    assert ranks.mean({"x": 1.5}) == {"x": 1.5} and ranks.max(3) == 3 and ranks.broadcast(b"abc") == b"abc"
    with pytest.raises(ValueError, match="mine"), ranks.main_first():
        raise ValueError("mine")


def test_what_cannot_be_distributed(small_config: dict[str, Any]) -> None:
    hp = make_config(small_config).hyperparameters()
    with pytest.raises(ValueError, match=r"^impl='reference' "):
        trainers.MUNIT_Trainer(hp, impl="reference").distribute()
    with pytest.raises(RuntimeError, match="torchrun"):
        trainers.MUNIT_Trainer(hp).distribute()


@pytest.fixture
def group() -> Iterator[None]:
    """A process group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("amp", ["off", "fp16"])
@pytest.mark.parametrize(
    ("kind", "gen", "dis"),
    [
        ("MUNIT_Trainer", {"n_res": 0}, {}),  # no AdaIN, so the MLP's parameters get no gradient
        ("UNIT_Trainer", {"n_res": 0, "activ": "prelu"}, {"norm": "in"}),
        ("MUNIT_Trainer", {}, {"norm": "sn"}),
    ],
)
def test_every_network_can_be_distributed(
    small_config: dict[str, Any],
    kind: str,
    gen: dict[str, Any],
    dis: dict[str, Any],
    amp: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two processes that have the same part of a batch, of which one is played."""
    parts = {"gen": small_config["gen"] | gen, "dis": small_config["dis"] | dis}
    hp = make_config(small_config | parts).hyperparameters()
    found = []
    for distributed in (False, True):
        torch.manual_seed(0)
        trainer: Any = getattr(trainers, kind)(hp, amp=amp)
        exchanged: list[torch.Tensor] = []
        if distributed:
            trainer.distribute()
            trainer._processes = 2
            monkeypatch.setattr(dist, "all_reduce", lambda t, into=exchanged: into.append(t.mul_(2)))
        for _ in range(3):
            trainer.update(*(torch.rand(2, 2, 3, 32, 32) * 2 - 1), hp)
        found.append(trainer.state_dict())
    assert len(exchanged) == 6 and len({t.data_ptr() for t in exchanged}) == 2  # a buffer for each of two updates
    assert list(found[0]) == list(found[1])
    for name, value in found[0].items():
        assert torch.allclose(value, found[1][name], rtol=1e-4, atol=1e-6), name


# ---- two hosts ----


def ip(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["ip", *arguments], capture_output=True, text=True)


@pytest.fixture
def hosts() -> Iterator[list[str]]:
    """Two network namespaces with a cable between them: 10.77.0.1 and 10.77.0.2."""
    if shutil.which("ip") is None:
        pytest.skip("no ip command (iproute2)")
    names = [f"munit{os.getpid()}{end}" for end in "ab"]
    if (refused := ip("netns", "add", names[0])).returncode:
        pytest.skip(f"no network namespaces here: {refused.stderr.strip()}")
    try:
        ip("netns", "add", names[1])
        ip("-n", names[0], "link", "add", "cable0", "type", "veth", "peer", "name", "cable1", "netns", names[1])
        for i, name in enumerate(names):
            ip("-n", name, "addr", "add", f"10.77.0.{i + 1}/24", "dev", f"cable{i}")
            for device in ("lo", f"cable{i}"):
                if (refused := ip("-n", name, "link", "set", device, "up")).returncode:
                    pytest.skip(f"no network between namespaces here: {refused.stderr.strip()}")
        yield names
    finally:
        for name in names:
            ip("netns", "del", name)


@pytest.mark.slow
def test_two_hosts(small_config: dict[str, Any], picture_folders: Path, tmp_path: Path, hosts: list[str]) -> None:
    """Each with two ranks, in a network of its own; one is lost, and the other one's ranks do not wait for it."""
    values = config(small_config, picture_folders, batch_size=1)
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(values))

    def start(host: int, *arguments: object) -> subprocess.Popen[str]:
        command = [
            "ip", "netns", "exec", hosts[host], sys.executable, "-m", "torch.distributed.run", "--nnodes", "2",
            "--nproc-per-node", "2", "--node-rank", str(host), "--master-addr", "10.77.0.1", "--master-port", "29577",
            *map(str, arguments),
        ]  # fmt: skip
        environment = ENVIRONMENT | {"GLOO_SOCKET_IFNAME": f"cable{host}"}
        return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)

    jobs = [start(host, SCRIPT, path, tmp_path / "two", "MUNIT") for host in (0, 1)]
    for job in jobs:
        _, text = job.communicate(timeout=120)
        assert job.returncode == 0, text[-3000:]
    compare(tmp_path / "two", alone(values | {"batch_size": 4}, tmp_path / "one", "MUNIT"))

    path.write_text(yaml.safe_dump(values | {"max_iter": 10**6}))
    jobs = [start(host, SCRIPT, path, tmp_path / "lost", "MUNIT") for host in (0, 1)]
    try:
        wait_for(lambda: lines(tmp_path / "lost/logs/small/losses.jsonl") >= 12, jobs[0])
        found = ranks_of(path)
        assert sorted(found) == [0, 1, 2, 3]
        for rank in (2, 3):
            os.kill(found[rank], signal.SIGKILL)
        for job in jobs:
            job.communicate(timeout=120)
            assert job.returncode != 0
        assert find_state(tmp_path / "lost/outputs/small/checkpoints").state["iterations"] >= 10
    finally:
        for job in jobs:
            job.kill()
        for number in ranks_of(path).values():
            os.kill(number, signal.SIGKILL)
