"""The border of a phase convolution in Triton's interpreter, on the CPU; `test_interpreter.py` runs this file."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import triton.language as tl
from triton.runtime import interpreter

from helpers import border_cases as cases
from munit_fast.kernels import configs
from munit_fast.ops.backends import triton as backend


@pytest.fixture(autouse=True)
def _interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small tiles; and products of bfloat16, whose bits the interpreter multiplies as if they were integers."""
    monkeypatch.setattr(configs, "BORDER_TILE", configs.BorderTile(16, 16, 16, 4))
    plain = interpreter.InterpreterBuilder.create_dot

    def widened(t: Any) -> Any:
        if t.dtype.scalar != tl.bfloat16:
            return t
        return interpreter.TensorHandle((t.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    def dot(builder: Any, a: Any, b: Any, *rest: Any) -> Any:
        return plain(builder, widened(a), widened(b), *rest)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", dot)


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
@pytest.mark.parametrize(("shape", "out"), cases.SHAPES, ids=str)
def test_against_float64(shape: tuple[int, int, int, int], out: int, dtype: torch.dtype) -> None:
    weight_dtype = dtype if shape[0] == 2 else torch.float32
    case = cases.make_case(shape, out, dtype, weight_dtype, shape[2] % 2 == 0)
    cases.check(backend, case, rounds_factors=True)


def test_only_what_is_needed() -> None:
    cases.check_single_gradients(backend, cases.make_case((2, 5, 7, 20), 3, torch.float32, torch.float32))


def test_what_is_not_a_number() -> None:
    cases.check_not_a_number(backend, cases.make_case((2, 5, 7, 8), 3, torch.float32, torch.float32))


def test_a_weight_with_gaps() -> None:
    case = cases.make_case((1, 5, 4, 6), 3, torch.float32, torch.float32)
    room = torch.full((3, 5, 5, 10), float("nan"))
    room[..., ::2] = case.weight
    cases.check(backend, case._replace(weight=room[..., ::2]), rounds_factors=True)


def test_no_images() -> None:
    case = cases.make_case((0, 5, 4, 6), 3, torch.float32, torch.float32)
    grad_weight = torch.empty_like(case.weight)
    backend.phase_border(case.y, case.a, case.weight)
    backend.phase_border_backward(case.grad, case.a, case.weight, case.grad_a, grad_weight)
    assert not grad_weight.any()
