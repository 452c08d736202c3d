"""The graphs that are exported: the model's own results, at any size, by fewer multiplications."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import munit_fast as mf
from munit_fast.export.graphs import Graph, make_graphs
from munit_fast.export.metadata import parse
from munit_fast.export.phase_conv import PhaseConv
from munit_fast.reference.layers import Conv2dBlock, LayerNorm

SMALL = {"dim": 4, "style_dim": 3, "n_downsample": 2, "n_res": 1, "mlp_dim": 8}
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "one halving": {"n_downsample": 1},
    "no halving": {"n_downsample": 0},
    "four halvings, prelu, replicate": {"n_downsample": 4, "activ": "prelu", "pad_type": "replicate"},
    "five halvings, selu": {"n_downsample": 5, "activ": "selu"},
    "zero, lrelu": {"pad_type": "zero", "activ": "lrelu"},
}
# Images, styles, height, width: less than anything to mirror, a side to be padded and one that fits, many styles.
CALLS = ((1, 1, 1, 1), (2, 1, 5, 64), (1, 5, 47, 33), (3, 2, 16, 100))


def model_of(kind: type[Any], **gen: Any) -> Any:
    torch.manual_seed(0)
    model = kind({"gen": SMALL | gen, "input_dim_b": 1})
    for parameter in model.parameters():  # biases and the norms' too
        nn.init.normal_(parameter, std=0.3 if parameter.dim() < 2 else 0.1)
    return model.eval()


def inputs_of(graph: Graph, n: int, styles: int, height: int, width: int) -> tuple[Tensor, ...]:
    noise = torch.Generator().manual_seed(n + height)
    image = torch.rand(n, graph.inputs["image"].shape[1], height, width, generator=noise) * 2 - 1
    return image, *([torch.randn(n, styles, 3, generator=noise)] if "style" in graph.inputs else [])


def expected(model: Any, graph: Graph, inputs: tuple[Tensor, ...]) -> Tensor:
    if graph.output == "style":
        return model.encode_style(inputs[0], graph.name[-1])
    return model.translate(inputs[0], graph.name, **({"style": inputs[1]} if len(inputs) > 1 else {}))


@pytest.mark.parametrize("kind", [mf.MUNIT, mf.UNIT], ids=["MUNIT", "UNIT"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_graphs_are_the_model(kind: type[Any], variant: str) -> None:
    model = model_of(kind, **VARIANTS[variant])
    graphs = make_graphs(model)
    assert [g.name for g in graphs] == (["a2b", "style-b", "b2a", "style-a"] if kind is mf.MUNIT else ["a2b", "b2a"])
    model.double()
    for graph in graphs:
        graph.module.double()
        for call in CALLS:
            inputs = tuple(x.double() for x in inputs_of(graph, *call))
            with torch.no_grad():
                found = graph.module(*inputs)
            # The phases' weights were summed in float32; for sums in float64 see below.
            torch.testing.assert_close(found, expected(model, graph, inputs), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "variant"),
    [(mf.MUNIT, "default"), (mf.MUNIT, "five halvings, selu"), (mf.MUNIT, "no halving"), (mf.UNIT, "zero, lrelu")],
)
def test_programs_take_every_size(kind: type[Any], variant: str) -> None:
    model = model_of(kind, **VARIANTS[variant])
    for graph in make_graphs(model, ("b2a",)):
        program = graph.program()
        assert not any(node.meta.get("stack_trace") for node in program.graph.nodes)
        run = program.module()
        for call in CALLS:
            inputs = inputs_of(graph, *call)
            with torch.no_grad():
                found = run(*inputs)
            torch.testing.assert_close(found, expected(model, graph, inputs), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", [mf.MUNIT, mf.UNIT], ids=["MUNIT", "UNIT"])
def test_half_precision_is_of_convolutions_only(kind: type[Any]) -> None:
    model = model_of(kind)
    for graph in make_graphs(model, dtype="fp16"):
        dtypes = {name: value.dtype for name, value in graph.module.state_dict().items()}
        halves = {name for name, dtype in dtypes.items() if dtype is torch.float16}
        assert any(name.endswith("conv.weight") for name in halves)
        assert not any(part in name for name in halves for part in ("mlp", "linear", "gamma", "beta"))
        for call in CALLS:
            inputs = inputs_of(graph, *call)
            with torch.no_grad():
                found = graph.module(*inputs)
            assert found.dtype == torch.float32
            assert (found - expected(model, graph, inputs)).abs().mean() < 4e-3
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}  # the model's own


@pytest.mark.parametrize("pad_type", ["reflect", "replicate", "zero"])
@pytest.mark.parametrize("size", [(2, 2), (2, 5), (7, 4)])
def test_phase_convolutions(pad_type: str, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    block = Conv2dBlock(3, 5, 5, 1, 2, norm="ln", activation="lrelu", pad_type=pad_type).double()
    plain = nn.Sequential(nn.Upsample(scale_factor=2), block)
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    torch.testing.assert_close(PhaseConv(block, pad_type)(x), plain(x), rtol=1e-12, atol=1e-12)


def test_every_upsampling_is_one() -> None:
    [graph, *_] = make_graphs(model_of(mf.MUNIT))
    modules = list(graph.module.modules())
    assert sum(isinstance(m, PhaseConv) for m in modules) == 2
    assert not any(isinstance(m, nn.Upsample) for m in modules)
    assert sum(isinstance(m, LayerNorm) for m in modules) == 2


def test_metadata_says_what_the_graph_is() -> None:
    model = model_of(mf.MUNIT)
    model.about = {"licence": "CC0"}
    for graph in make_graphs(model, ("b2a",), notes={"attribution": "two\nlines"}):
        found = parse("x.onnx", graph.metadata)
        assert (found.trainer, found.role, found.place) == (
            "MUNIT",
            *(("translation", "b2a") if graph.name == "b2a" else ("style", "a")),
        )
        assert found.config.gen == model.config.gen and found.config.input_dim_b == 1
        assert dict(found.about) == {"licence": "CC0", "attribution": "two lines"}
        assert graph.metadata["size_multiple"] == ("4" if graph.name == "b2a" else "1")
        assert graph.metadata["smallest_size"] == "16"
        assert graph.metadata["value_range"] == "-1 to 1" and graph.metadata["version"] == mf.__version__


def test_notes_do_not_replace_what_is_known() -> None:
    [graph, *_] = make_graphs(model_of(mf.UNIT), notes={"config": "other", "version": "2.0 of the weights"})
    found = parse("x.onnx", graph.metadata)
    assert graph.metadata["version"] == mf.__version__ and found.config.input_dim_b == 1
    assert dict(found.about) == {"note_config": "other", "note_version": "2.0 of the weights"}


def test_graphs_of_one_model_know_each_other() -> None:
    model = model_of(mf.MUNIT)
    marks = {graph.metadata["weights"] for dtype in ("fp32", "fp16") for graph in make_graphs(model, dtype=dtype)}
    assert len(marks) == 1
    with torch.no_grad():
        model.gen_a.mlp.model[0].fc.bias[0] += 1e-6
    assert make_graphs(model, ("a2b",))[0].metadata["weights"] not in marks
