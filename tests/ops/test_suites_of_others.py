"""The samples that torch and onnx bring for their own tests, run through munit_fast."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers import torch_samples
from munit_fast import functional as mf
from munit_fast import nn as mnn

OURS = {1: mnn.InstanceNorm1d, 2: mnn.InstanceNorm2d, 3: mnn.InstanceNorm3d}
DTYPE = pytest.mark.parametrize("dtype", torch_samples.DTYPES, ids=str)
LAYOUT = pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
# ONNX's names of the modes that bias_act has; "wrap" is not among them.
PAD_MODES = {"reflect": "reflect", "edge": "replicate", "constant": "zero"}


@pytest.fixture(scope="module")
def of_torch(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What helpers/torch_samples.py writes."""
    file = tmp_path_factory.mktemp("samples") / "samples.pt"
    subprocess.run([sys.executable, "-W", "ignore", torch_samples.__file__, str(file)], check=True)
    samples = torch.load(file, weights_only=True)
    if "missing" in samples:
        pytest.skip(f"torch.testing._internal cannot be imported: {samples['missing']}")
    return samples


@cache
def onnx_cases() -> list[Any]:
    """ONNX's cases of single operators."""
    loader = pytest.importorskip("onnx.backend.test.loader")
    with warnings.catch_warnings():  # numpy's, of overflows that other operators' cases are about
        warnings.simplefilter("ignore")
        return loader.load_model_tests(kind="node")


def cases_of(operator: str) -> Iterator[tuple[str, dict[str, Any], dict[str, Tensor], Tensor]]:
    """Name, attributes, inputs by name and expected result of each case that is one node of `operator`."""
    onnx = pytest.importorskip("onnx")
    for case in onnx_cases():
        nodes = case.model.graph.node
        if [node.op_type for node in nodes] != [operator]:
            continue
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in nodes[0].attribute}
        for inputs, (expected,) in case.data_sets:
            named = dict(zip(nodes[0].input, (torch.as_tensor(value) for value in inputs), strict=True))
            yield case.name, attributes, named, torch.as_tensor(expected)


def lay_out(x: Tensor, layout: str) -> Tensor:
    """A copy; "channels_last": with dimension 1 last in memory, or dimension 0 of a line without a batch."""
    if layout == "contiguous":
        return x.clone(memory_format=torch.contiguous_format)
    channel = 0 if x.dim() == 2 else 1
    return x.movedim(channel, -1).contiguous().movedim(-1, channel)


def gradients(y: Tensor, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    """For one random gradient of y, in contiguous memory: others torch's instance norm gets wrong at batch 1."""
    upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(y.dtype)
    return torch.autograd.grad(y, inputs, upstream)


def assert_same(got: Any, expected: Any) -> None:
    torch.testing.assert_close(got, expected, check_stride=False)


@DTYPE
@LAYOUT
def test_opinfo_samples_of_instance_norm(of_torch: dict[str, Any], impl: str, dtype: torch.dtype, layout: str) -> None:
    compared = {"function": 0, "module": 0}
    for sample in of_torch["instance_norm"][dtype]:
        options = dict(sample)
        if not options.pop("use_input_stats", True):
            continue  # a scale and a shift: test_moduleinfo_samples has them as modules in evaluation
        tensors = {"x": options.pop("input"), "weight": options.pop("weight", None), "bias": options.pop("bias", None)}
        tensors = {
            name: lay_out(t, layout if name == "x" else "contiguous").requires_grad_()
            for name, t in tensors.items()
            if t is not None
        }
        running = {name: options.pop(name, None) for name in ("running_mean", "running_var")}
        running = {name: t.clone() for name, t in running.items() if t is not None}
        theirs_running = {name: t.clone() for name, t in running.items()}
        x, parameters = tensors["x"], {name: t for name, t in tensors.items() if name != "x"}
        expected = F.instance_norm(x, **theirs_running, **parameters, **options)
        inputs = list(tensors.values())
        if running:
            norm = OURS[x.dim() - 2](
                x.shape[1],
                **options,
                affine="weight" in parameters,
                bias="bias" in parameters,
                track_running_stats=True,
                dtype=dtype,
                impl=impl,
            )
            norm.load_state_dict({**norm.state_dict(), **running, **parameters})
            y = norm(x)
            inputs_of_ours = [x, *(getattr(norm, name) for name in parameters)]
            assert_same({name: getattr(norm, name) for name in running}, theirs_running)
        else:
            options.pop("momentum", None)
            y, inputs_of_ours = mf.instance_norm(x, **parameters, **options, impl=impl), inputs
        assert_same(y, expected)
        for got, want in zip(gradients(y, inputs_of_ours), gradients(expected, inputs), strict=True):
            assert_same(got, want)
        # Without running statistics the function must give the same, whatever the momentum.
        options.pop("momentum", None)
        assert_same(mf.instance_norm(x, **parameters, **options, impl=impl), expected)
        compared["module" if running else "function"] += 1
    assert compared["module"] >= 8 and compared["function"] >= 1, compared


@DTYPE
@LAYOUT
def test_opinfo_samples_of_group_norm(of_torch: dict[str, Any], impl: str, dtype: torch.dtype, layout: str) -> None:
    refused, compared = 0, 0
    for sample in map(dict, of_torch["group_norm"][dtype]):
        x = lay_out(sample.pop("input"), layout).requires_grad_()
        parameters = {n: sample.pop(n).requires_grad_() for n in ("weight", "bias") if sample.get(n) is not None}
        sample = {name: value for name, value in sample.items() if value is not None}
        if x.numel() == 0:  # an empty batch or image is a mistake of the caller here
            with pytest.raises(ValueError, match=r"^x must not be empty"):
                mf.group_norm(x, **parameters, **sample, impl=impl)
            refused += 1
            continue
        if sample.get("eps", 0) < 0:  # of which torch takes the root where the variance is larger
            with pytest.raises(ValueError, match=r"^eps must be"):
                mf.group_norm(x, **parameters, **sample, impl=impl)
            refused += 1
            continue
        y, expected = mf.group_norm(x, **parameters, **sample, impl=impl), F.group_norm(x, **parameters, **sample)
        assert_same(y, expected)
        inputs = [x, *parameters.values()]
        for got, want in zip(gradients(y, inputs), gradients(expected, inputs), strict=True):
            assert_same(got, want)
        compared += 1
    assert compared >= 10, (compared, refused)


MODULES = [*(f"InstanceNorm{spatial}d" for spatial in OURS), "GroupNorm"]


@pytest.mark.parametrize("module", MODULES)
@DTYPE
@LAYOUT
@pytest.mark.parametrize("training", [True, False])
def test_moduleinfo_samples(
    of_torch: dict[str, Any], impl: str, module: str, dtype: torch.dtype, layout: str, training: bool
) -> None:
    theirs_class = getattr(nn, module)
    compared = []
    for arguments, options, given in of_torch["modules"][module, dtype, training]:
        theirs = theirs_class(*arguments, **options, dtype=dtype).train(training)
        ours = getattr(mnn, module)(*arguments, **options, dtype=dtype, impl=impl).train(training)
        assert isinstance(ours, theirs_class)
        with torch.no_grad():
            for t in theirs.state_dict().values():
                if t.is_floating_point():
                    t.uniform_(0.5, 2)
        ours.load_state_dict(theirs.state_dict())
        x = lay_out(given, layout).requires_grad_()
        y, expected = ours(x), theirs(x)
        assert_same(y, expected)
        assert_same(dict(ours.state_dict()), dict(theirs.state_dict()))
        assert list(ours.state_dict()) == list(theirs.state_dict())  # in this order
        pairs = gradients(y, [x, *ours.parameters()]), gradients(expected, [x, *theirs.parameters()])
        for got, want in zip(*pairs, strict=True):
            assert_same(got, want)
        theirs.load_state_dict(ours.state_dict())
        tracked = getattr(ours, "track_running_stats", None)
        compared.append((tracked is None or x.dim() == int(module[-2]) + 2, tracked, ours.affine))
    if module == "GroupNorm":
        assert len(compared) >= 4 and {affine for *_, affine in compared} == {True, False}
        return
    assert len(compared) >= 5
    assert {(True, False, False), (True, True, False), (False, False, False), (False, True, False)} <= set(compared)
    assert any(affine for *_, affine in compared)


# What munit_fast refuses on purpose, and whether torch does too: torch's modules return nothing for nothing, where here
# an empty batch or image is a mistake of the caller; of a plane of one number the variance is zero by definition, in
# evaluation as in training.
REFUSED = {"no images": ((0, 3, 4, 4), False), "no pixels": ((2, 3, 0, 4), False), "one number": ((2, 3, 1, 1), True)}


@pytest.mark.parametrize("what", REFUSED)
@pytest.mark.parametrize("training", [True, False])
def test_what_is_refused_on_purpose(impl: str, training: bool, what: str) -> None:
    shape, by_torch = REFUSED[what]
    theirs = nn.InstanceNorm2d(3).train(training)
    if by_torch:
        with pytest.raises(ValueError, match="spatial element"):
            theirs(torch.ones(shape))
    else:
        assert theirs(torch.ones(shape)).shape == shape
    with pytest.raises(ValueError, match=r"^x must "):
        mnn.InstanceNorm2d(3, impl=impl).train(training)(torch.ones(shape))


@DTYPE
def test_onnx_instance_normalization(impl: str, dtype: torch.dtype) -> None:
    compared = 0
    for _, attributes, inputs, expected in cases_of("InstanceNormalization"):
        x, weight, bias = (t.to(dtype) for t in inputs.values())
        y = mf.instance_norm(x, weight, bias, eps=attributes.get("epsilon", 1e-5), impl=impl)
        assert_same(y.float(), expected)
        compared += 1
    assert compared >= 2


@DTYPE
def test_onnx_group_normalization(impl: str, dtype: torch.dtype) -> None:
    compared = 0
    for _, attributes, inputs, expected in cases_of("GroupNormalization"):
        x, weight, bias = (t.to(dtype) for t in inputs.values())
        y = mf.group_norm(x, attributes["num_groups"], weight, bias, eps=attributes.get("epsilon", 1e-5), impl=impl)
        assert_same(y.float(), expected)
        compared += 1
    assert compared >= 2


def pad_arguments(attributes: dict[str, Any], inputs: dict[str, Tensor]) -> dict[str, Any] | str:
    """The arguments of bias_act for a case of Pad; or why there are none."""
    x, mode = inputs["x"], attributes.get("mode", b"constant").decode()
    if mode not in PAD_MODES:
        return f"mode {mode}"
    if x.dim() != 4:
        return "not an image"
    if inputs.get("value", torch.tensor(0)).item() != 0:
        return "a constant that is not zero"
    axes = [int(axis) % 4 for axis in inputs.get("axes", torch.arange(4))]
    begins, ends = inputs["pads"].view(2, -1).tolist()
    pads = {axis: (begin, end) for axis, begin, end in zip(axes, begins, ends, strict=True)}
    rows, columns = pads.get(2, (0, 0)), pads.get(3, (0, 0))
    if any(pads.get(axis, (0, 0)) != (0, 0) for axis in (0, 1)) or len({*rows, *columns}) != 1 or rows[0] < 0:
        return "not the same number of pixels on the four sides"
    return {"pad": rows[0], "pad_mode": PAD_MODES[mode]}


@DTYPE
@LAYOUT
def test_onnx_pad(impl: str, dtype: torch.dtype, layout: str) -> None:
    compared, skipped = [], {}
    for name, attributes, inputs, expected in cases_of("Pad"):
        arguments = pad_arguments(attributes, inputs)
        if isinstance(arguments, str):
            skipped[name] = arguments
            continue
        x = lay_out(inputs["x"].to(dtype), layout)  # whole numbers in some cases, which stay exact
        assert torch.equal(mf.bias_act(x, **arguments, impl=impl), expected.to(dtype)), name
        compared.append(arguments["pad_mode"])
    assert {"reflect", "replicate"} <= set(compared), (compared, skipped)
    assert set(skipped.values()) <= {"mode wrap", "a constant that is not zero"}, skipped


def test_onnx_pad_of_zeros(impl: str) -> None:
    """No case of ONNX pads four sides alike with zero, so one is made of a case by the rule above."""
    rule = {"mode": b"constant"}, {"x": torch.randn(1, 3, 4, 5), "pads": torch.tensor([0, 0, 2, 2, 0, 0, 2, 2])}
    arguments = pad_arguments(*rule)
    assert arguments == {"pad": 2, "pad_mode": "zero"}
    assert isinstance(pad_arguments(rule[0], rule[1] | {"pads": torch.tensor([0, 1, 2, 2, 0, 0, 2, 2])}), str)
    assert torch.equal(mf.bias_act(rule[1]["x"], **arguments, impl=impl), F.pad(rule[1]["x"], (2,) * 4))
