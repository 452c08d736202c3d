"""What a training iteration launches on a GPU, counted without one."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from munit_fast import make_config
from munit_fast.cli import app
from munit_fast.ops import backends
from munit_fast.train import losses, trace
from munit_fast.train.trace import Trace, _foreach_launches, multi_tensor_launches, trace_iteration, written_pointers

# Launches of an iteration of the published configuration in bf16, batch 1.
MOST_LAUNCHES = 1450


def traced(trainer: str = "MUNIT", amp: str = "bf16", checkpointing: bool = False, **over: Any) -> Trace:
    return trace_iteration(make_config(over).hyperparameters(), trainer, amp, checkpointing=checkpointing)


@pytest.fixture(scope="module")
def published() -> Trace:
    return traced()


def test_launches_of_the_published_configuration(published: Trace) -> None:
    assert published.launches <= MOST_LAUNCHES, published.by_name().most_common(30)
    assert published.parameter_casts == []
    kinds = published.by_kind()
    assert kinds["convolution"][0] == 440 and kinds["fill"][0] <= 8, published.by_name()
    assert kinds["multi-tensor"][0] <= 30


def test_no_gradient_is_copied_into_another_layout(published: Trace) -> None:
    """Nothing of a weight's size is copied by itself, apart from the sums that make the phases."""
    weights = {(256, 256, 3, 3), (128, 64, 4, 4), (256, 128, 4, 4), (64, 3, 7, 7), (512, 256, 4, 4)}
    copies = [o for o in published.operations if o.kind == "cast or copy" and o.sizes in weights]
    assert copies == []


def test_the_border_is_one_launch(published: Trace) -> None:
    names = Counter(o.name for o in published.operations if "border" in o.name)
    assert 0 < sum(names.values()) <= 40, names


CONFIGURATIONS: list[dict[str, Any]] = [
    {},
    {"trainer": "UNIT"},
    {"amp": "fp16"},
    {"amp": "off"},
    {"checkpointing": True},
    {"vgg_w": 1},
    {"dis": {"gan_type": "nsgan"}},
    {"dis": {"gan_type": "hinge"}},
    {"mode_seeking_w": 1, "diversity_w": 1, "feature_matching_w": 1},
    {"dis": {"norm": "sn"}},
    {"dis": {"norm": "bn"}},
    {"dis": {"norm": "in"}},
    {"dis": {"arch": "residual"}},
    {"gen": {"weight_norm": "spectral"}, "dis": {"weight_norm": "spectral"}},
    {"trainer": "UNIT", "gen": {"weight_norm": "spectral"}, "dis": {"weight_norm": "spectral", "arch": "residual"}},
    {"batch_size": 2, "accumulation": 2},
    {"recon_x_cyc_w": 10, "ema_half_life": 1000},
    {"gen": {"pad_type": "zero"}},
    {"gen": {"pad_type": "replicate"}},
    {"gen": {"activ": "prelu"}},
    {"gen": {"n_res": 0}},
    {"diffaugment": ["color", "translation", "cutout"]},
    {"ada_target": 0.6, "ada_iter": 1},
]


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("configuration", CONFIGURATIONS, ids=str)
def test_every_configuration_can_be_captured(configuration: dict[str, Any]) -> None:
    """No constant comes from the host, and nothing is read back."""
    found = traced(**configuration)
    assert found.blocking == [] and found.host_bytes == 0
    assert found.noise_bytes <= 4096
    if configuration.get("dis", {}).get("norm") not in ("sn", "bn") and "vgg_w" not in configuration:
        assert found.parameter_casts == []
    assert len(found.triton) > 300


@pytest.mark.parametrize("amp", ["bf16", "off"])
def test_an_iteration_with_the_gradient_penalty(amp: str) -> None:
    """It launches kernels that others do not: warm-ups know of them."""
    hp = make_config({"gen": {"dim": 8}, "dis": {"dim": 8}, "r1_w": 1, "r1_iter": 5}).hyperparameters()
    without, penalised, again = (trace_iteration(hp, amp=amp, iteration=i) for i in (1, 5, 6))
    assert penalised.launches > without.launches == again.launches
    assert penalised.blocking == [] and penalised.host_bytes == 0 and penalised.parameter_casts == []
    ceiling = 1300 if amp == "bf16" else 1400
    assert penalised.launches - without.launches <= ceiling


def test_what_keeps_a_graph_from_capturing_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    total = losses.munit_total

    def reading(of: Any, hp: Any) -> Any:
        constant = torch.tensor([2.0], device="cpu").to(of["loss_gen_adv_a"].device)
        return total(of, hp) * constant[0] * float(of["loss_gen_adv_a"].detach())

    monkeypatch.setattr(losses, "munit_total", reading)
    found = traced(gen={"dim": 8}, dis={"dim": 8})
    assert any("reads a value back" in reason for reason in found.blocking)
    assert any("memory of the host" in reason for reason in found.blocking) and found.host_bytes == 4


def test_a_cast_of_a_parameter_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from munit_fast.models.step_weights import StepWeights

    before = traced(gen={"dim": 8}, dis={"dim": 8})
    monkeypatch.setattr(StepWeights, "get", lambda self, parameter, dtype: None)
    after = traced(gen={"dim": 8}, dis={"dim": 8})
    assert before.parameter_casts == []
    assert "gen_a.enc_content.model.0.conv.weight" in after.parameter_casts and after.launches > before.launches + 200


def test_nothing_stays_replaced(published: Trace) -> None:
    assert not torch.is_autocast_enabled("cpu")
    meta = torch.device("meta")
    assert backends.choose("auto", meta, torch.bfloat16) is backends.reference


def test_multi_tensor_launches() -> None:
    chunk, blocks = 65536, 320
    for sizes, lists, expected in [
        ([1] * 110, 1, 1),
        ([1] * 111, 1, 2),
        ([1] * 64, 2, 1),
        ([1] * 65, 2, 2),
        ([0] * 500, 2, 0),
        ([chunk * blocks], 1, 1),
        ([chunk * blocks + 1], 1, 2),
        ([chunk * (blocks - 1), 1, 1], 2, 2),
    ]:
        assert multi_tensor_launches(sizes, lists) == expected, (sizes[:3], lists)


def test_lists_of_several_dtypes_or_layouts_are_launched_one_by_one() -> None:
    image = torch.empty(4, 3, 2, 2)
    other = image.contiguous(memory_format=torch.channels_last)
    for name, lists, expected in [
        ("_foreach_copy_", ([image] * 9, [image] * 9), 1),
        ("_foreach_copy_", ([image] * 9, [image.half()] * 9), 1),
        ("_foreach_add_", ([image] * 9, [image.half()] * 9), 9),
        ("_foreach_copy_", ([image] * 9, [image.half(), *[image] * 8]), 9),
        ("_foreach_copy_", ([image] * 9, [*[image] * 8, other]), 9),
        ("_foreach_add_", ([image, image[:0]], [other, other[:0]]), 1),
    ]:
        assert _foreach_launches(name, lists) == expected, name


def test_images_of_one_channel_take_the_fast_ways_too(published: Trace) -> None:
    """Whose first weights have strides that two layouts share."""
    grey = traced(input_dim_a=1, input_dim_b=1)
    assert grey.by_kind()["multi-tensor"][0] <= published.by_kind()["multi-tensor"][0]


def test_what_a_kernel_writes_is_read_off_its_source() -> None:
    from munit_fast.kernels import epilogue_backward, epilogue_forward

    assert "p_y" in written_pointers(epilogue_forward.epilogue_fwd_kernel)
    assert not {"p_x", "p_weight"} & written_pointers(epilogue_forward.epilogue_fwd_kernel)
    assert {"p_grad_x", "p_grad_residual", "p_partial"} <= written_pointers(epilogue_backward.epilogue_bwd_kernel)
    assert not {"p_x", "p_grad"} & written_pointers(epilogue_backward.epilogue_bwd_kernel)


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    app(["trace", "--json", "--batch", "2", "--amp", "off"], standalone_mode=False)
    found = json.loads(capsys.readouterr().out)
    assert found["kinds_of_iterations"] == []
    assert found["launches"] == sum(kind["launches"] for kind in found["kinds"].values()) > 1000
    app(["trace", "--top", "3"], standalone_mode=False)
    assert "epilogue_fwd_kernel" in capsys.readouterr().out


def test_the_command_shows_each_kind_of_iteration(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """What R1 and the move of ADA's probability add is that of the iterations that compute them."""
    small = {"gen": {"dim": 8}, "dis": {"dim": 8}, "r1_w": 1, "r1_iter": 6, "ada_target": 0.6, "ada_iter": 4}
    path = tmp_path / "c.yaml"
    path.write_text(json.dumps(small))
    hp = make_config(small).hyperparameters()
    launches = {i: trace_iteration(hp, iteration=i).launches for i in (1, 4, 6, 12)}
    assert launches[1] < launches[4] < launches[6] < launches[12]
    app(["trace", "--config", str(path), "--trainer", "MUNIT", "--json"], standalone_mode=False)
    found = json.loads(capsys.readouterr().out)
    assert found["launches"] == launches[1]
    kinds = [(kind["every"], kind["computes"], kind["launches"]) for kind in found["kinds_of_iterations"]]
    computes = {4: ["ada_target"], 6: ["r1_w"], 12: ["ada_target", "r1_w"]}
    assert kinds == [(i, keys, launches[i]) for i, keys in computes.items()]
    app(["trace", "--config", str(path), "--trainer", "MUNIT", "--top", "0"], standalone_mode=False)
    shown = capsys.readouterr().out
    more = launches[6] - launches[1]
    assert f"iterations 6, 12, … (r1_w) launch {more:,} more: {launches[6]:,};" in shown


def test_bad_arguments_and_a_missing_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    hp = make_config({}).hyperparameters()
    for name, value in {"amp": "auto", "trainer": "GAN", "batch": 0}.items():
        with pytest.raises(ValueError, match=name):
            trace_iteration(hp, **{name: value})  # type: ignore[arg-type]
    monkeypatch.setattr(trace.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match="install triton"):
        trace_iteration(hp)
