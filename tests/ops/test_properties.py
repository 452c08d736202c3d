"""Whatever the shape: every backend against the specification, with shapes and options drawn by hypothesis."""

from __future__ import annotations

import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from helpers.oracle import DTYPES, check, run
from helpers.tolerances import tolerance
from munit_fast import functional as mf
from munit_fast.ops.cases import LAYOUTS, OPS, EpilogueCase, block_of, lay_out, make_tensors
from munit_fast.ops.spec import ACTIVATIONS, PAD_MODES

# The same examples in every run; the fixture (which backend) does not change between them.
FIXED = settings(
    derandomize=True,
    deadline=None,
    max_examples=120,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.filter_too_much, HealthCheck.too_slow],
)


@st.composite
def cases(draw: st.DrawFn) -> EpilogueCase:
    op = draw(st.sampled_from(OPS))
    block = block_of(op)
    n, h, w = draw(st.integers(1, 3)), draw(st.integers(1, 20)), draw(st.integers(1, 20))
    c = draw(st.integers(1, 70 // block**2)) * block**2
    # A plane of one value has no spread, one of two only a sign.
    assume(op == "bias_act" or h * w > 2)
    mode = draw(st.sampled_from(PAD_MODES))
    pad = draw(st.integers(0, min(6, block * min(h, w) - 1) if mode == "reflect" else 6))
    return EpilogueCase(
        op,
        (n, c, h, w),
        draw(st.sampled_from(DTYPES)),
        draw(st.sampled_from(LAYOUTS)),
        draw(st.sampled_from(ACTIVATIONS)),
        pad,
        mode,
        residual=draw(st.booleans()),
        mean=draw(st.sampled_from((0.0, 0.5, -20.0))),
        std=draw(st.sampled_from((0.1, 1.0, 10.0))),
        shared_slope=draw(st.booleans()),
        seed=draw(st.integers(0, 1000)),
    )


@FIXED
@given(case=cases())
def test_epilogues(backend: str, case: EpilogueCase) -> None:
    check(case, backend)


@FIXED
@given(case=cases())
def test_layouts_give_the_same_numbers(backend: str, case: EpilogueCase) -> None:
    """The layout of x decides the order of the sums and nothing else."""
    inputs = make_tensors(case)
    y = run(case, inputs, backend)
    for layout, order in (("nchw", torch.contiguous_format), ("channels_last", torch.channels_last)):
        other = run(case, inputs._replace(x=lay_out(inputs.x.detach(), layout)), backend)
        assert other.is_contiguous(memory_format=order)
        limit = 2 * tolerance(case.dtype, "result", y.numel(), y.numel(), 20 / 0.1)
        assert (y.double() - other.double()).norm() <= limit * y.double().norm()


@FIXED
@given(case=cases(), shift=st.floats(-3, 3, width=16), scale=st.floats(0.25, 4, width=16))
def test_norms_do_not_see_an_affine_change_of_their_input(
    backend: str, case: EpilogueCase, shift: float, scale: float
) -> None:
    assume(case.norm != "none" and case.dtype == torch.float64 and case.act != "selu")
    inputs = make_tensors(case)
    x = inputs.x.detach()
    function = {"instance": mf.instance_norm, "layer": mf.layer_norm2d, "group": mf.group_norm}[case.norm]
    options = {"num_groups": case.groups} if case.norm == "group" else {}
    options |= {"act": "tanh", "pad": case.pad, "pad_mode": "replicate", "impl": backend}
    torch.testing.assert_close(
        function(x * scale + shift, eps=0.0, **options), function(x, eps=0.0, **options), rtol=1e-6, atol=1e-6
    )


@FIXED
@given(
    sizes=st.lists(st.integers(1, 3000), min_size=1, max_size=5),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 1000),
    target=st.sampled_from((0.0, 1.0, 0.9)),
)
def test_losses(backend: str, sizes: list[int], dtype: torch.dtype, seed: int, target: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    first, second = ([torch.randn(size, generator=generator).to(dtype) for size in sizes] for _ in range(2))
    values = mf.l1_losses(zip(first, second), impl=backend)
    expected = torch.stack([(a.double() - b.double()).abs().mean() for a, b in zip(first, second)])
    limit = tolerance(dtype, "loss", 1, max(sizes), stored=values.dtype)
    assert ((values - expected).abs() <= limit * (expected + 1e-3)).all()
    value = mf.lsgan_loss(first, target, impl=backend)
    wanted = sum((a.double() - target).square().mean() for a in first)
    assert (value - wanted).abs() <= limit * (wanted + 1e-3)
