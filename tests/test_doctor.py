"""`munit-fast doctor`: what it says of a machine, and that its self-test finds kernels that are wrong."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console

from munit_fast import cli, doctor, functional
from munit_fast.doctor import report, trials
from munit_fast.ops import backends, conv_plans, native, winograd
from munit_fast.ops.cases import selftest_cases
from munit_fast.ops.spec import ACTIVATIONS, NORMS, PAD_MODES

ISAS = native.module.available_isas() if native.module is not None else []


def with_winograd() -> list[str]:
    before = native.module.isa() if ISAS else None
    found = []
    for isa in ISAS:
        native.module.set_isa(isa)
        found += [isa] if winograd.available() else []
    if before is not None:
        native.module.set_isa(before)
    return found


WINOGRAD_ISAS = with_winograd()
needs_native = pytest.mark.skipif(not ISAS, reason="the compiled part is missing")

# Runs the command in a process where neither the compiled part nor triton can be imported.
BARE = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "triton" or name == "munit_fast._C":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocked())
from munit_fast import cli
sys.argv = ["munit-fast", "doctor", *sys.argv[1:]]
cli.main()
"""


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str, str]]:
    """Exit code, standard output and standard error of `munit-fast doctor ARGUMENTS`."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["munit-fast", "doctor", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        code = ended.value.code
        return (code if isinstance(code, int) else 0, *capsys.readouterr())

    return run


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer dtypes."""
    monkeypatch.setattr(trials, "DTYPES", (torch.float32, torch.bfloat16))


def printed(found: doctor.Examination, width: int = 80) -> str:
    file = io.StringIO()
    doctor.show(found, Console(file=file, width=width))
    return file.getvalue()


def test_what_is_printed_is_complete_and_fits() -> None:
    found = doctor.examine()
    for width in (60, 80, 200):
        text = printed(found, width)
        assert max(map(len, text.splitlines())) <= width
        assert "…" not in text
        assert "\x1b" not in text  # piped: no colours
        squeezed = "".join(text.split())
        for service in found.services:
            assert service.backend in squeezed
            assert service.unsupported_reason is None or text.count(service.unsupported_reason.split()[0]) > 0
    wide = " ".join(printed(found, 400).split())
    for service in found.services:
        assert service.unsupported_reason is None or service.unsupported_reason in wide
    for text in (torch.__version__, found.cpu["model"], "instance_norm", 'impl="auto"'):
        assert text.lower() in wide.lower()
    for isa in ISAS:
        assert isa in wide


def test_what_is_found() -> None:
    found = doctor.examine()
    assert found.versions["torch"] == torch.__version__
    assert found.cpu["torch threads"] == torch.get_num_threads()
    # Of a convolution the table of plans says more.
    assert {s.op for s in found.services} == set(doctor.OPS) == set(functional.__all__) - {"norm_act_conv2d"}
    assert {s.backend for s in found.services} == set(backends.BACKENDS)
    for s in found.services:
        dtype, device = getattr(torch, s.dtype), torch.device(s.device)
        assert s.unsupported_reason == backends.unsupported_reason(s.backend, device, dtype)
        assert s.auto == (backends.choose("auto", device, dtype) is backends.BACKENDS[s.backend])


def test_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("MUNIT_FAST_") or name in report.VARIABLES:
            monkeypatch.delenv(name)
    assert doctor.examine().environment == {}
    monkeypatch.setenv("MUNIT_FAST_MAX_PIXELS", "123")
    monkeypatch.setenv("HOME_OF_SECRETS", "hidden")
    assert doctor.examine().environment == {"MUNIT_FAST_MAX_PIXELS": "123"}


@pytest.mark.parametrize("wrong", [False, True])
def test_a_torch_whose_instance_norm_has_wrong_gradients(wrong: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The installed one may be either."""

    class Norm(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            ctx.save_for_backward(x)
            return torch.instance_norm(x, None, None, None, None, True, 0.1, 1e-5, False)

        @staticmethod
        def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
            with torch.enable_grad():
                x = ctx.saved_tensors[0].detach().requires_grad_()
                y = torch.instance_norm(x, None, None, None, None, True, 0.1, 1e-5, False)
                shuffled = grad.permute(0, 2, 3, 1).reshape(grad.shape)
                return torch.autograd.grad(y, x, shuffled if wrong else grad.contiguous())[0]

    monkeypatch.setattr(torch.nn.functional, "instance_norm", Norm.apply)
    found = doctor.examine()
    assert len(found.torch_bugs) == wrong
    text = " ".join(printed(found, 300).split())
    assert text.count("troubleshooting") == wrong
    assert all(torch.__version__ in bug and bug in text for bug in found.torch_bugs)


def test_the_installed_torch_is_measured() -> None:
    x = torch.randn(1, 3, 5, 6, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn_like(x)
    in_each = [
        torch.autograd.grad(torch.nn.functional.instance_norm(x), x, upstream.contiguous(memory_format=layout))[0]
        for layout in (torch.contiguous_format, torch.channels_last)
    ]
    assert bool(doctor.examine().torch_bugs) != torch.allclose(*in_each)


def test_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its facts, told from a stand-in; with a real one too, where there is one."""
    properties = SimpleNamespace(name="Model [X]", major=9, minor=0, total_memory=80 * 2**30, multi_processor_count=132)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    monkeypatch.setattr(
        backends.triton, "unsupported_reason", lambda device, dtype: None if dtype != torch.float64 else "no f64"
    )
    found = doctor.examine()
    text = " ".join(printed(found, 300).split())
    assert re.search(r"cuda:0 Model \[X\].* 9\.0,.* 80\.0 GiB,.* 132,.*driver", text)
    assert found.no_gpu is None
    assert "cuda:0 triton float32*, bfloat16*, float16* float64: no f64" in text
    assert "cuda:0 reference float32, bfloat16, float16, float64*" in text


def test_json(call: Callable[..., tuple[int, str, str]]) -> None:
    code, out, err = call("--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert set(found) == {field.name for field in fields(doctor.Examination)}
    assert [row["plan"] for row in found["convolutions"]] == [row.plan for row in conv_plans.rules()]
    assert {"op", "device", "dtype", "backend", "why_not", "auto"} == set(found["services"][0])
    assert len(found["services"]) >= len(doctor.OPS) * len(doctor.DTYPES) * len(backends.BACKENDS)
    code, out, _ = call("--json", "--selftest")
    rows = json.loads(out)["selftest"]
    assert code == 0
    assert all(trial["passed"] and trial["error"] <= trial["tolerance"] for trial in rows)


def test_the_selftest_tries_everything() -> None:
    before = native.module.isa() if native.module is not None else None
    found = doctor.selftest()
    assert all(trial.passed for trial in found)
    expected = ["reference", *(f"cpu {isa}" for isa in ISAS)]
    on_cpu = {(t.op, t.backend, t.dtype) for t in found if t.device == "cpu"}
    names = [str(dtype).removeprefix("torch.") for dtype in doctor.DTYPES]
    convolutions = {(doctor.CONVOLUTION, f"cpu {isa}", "float32") for isa in WINOGRAD_ISAS}
    borders = {(doctor.BORDER, "reference", dtype) for dtype in names}
    everything = {(op, b, dtype) for op in doctor.OPS for b in expected for dtype in names}
    assert on_cpu == convolutions | borders | everything
    assert before is None or native.module.isa() == before
    # A bound that is far above what right kernels show would let wrong ones pass. The border's formulas round after
    # every step.
    kernels = [t for t in found if t.op != doctor.BORDER]
    for dtype in doctor.DTYPES:
        worst = max(t.error or 0 for t in kernels if t.dtype == str(dtype).removeprefix("torch."))
        assert doctor.tolerance(dtype) / 60 < worst < doctor.tolerance(dtype) / 1.5


def test_the_cases_cover_every_choice() -> None:
    cases = selftest_cases()
    assert {case.act for case in cases} == set(ACTIVATIONS)
    assert {case.norm for case in cases} == set(NORMS)
    assert {case.pad_mode for case in cases if case.pad} == set(PAD_MODES)
    assert {case.function for case in cases} == EPILOGUES


def _scale(*tensors: torch.Tensor | None, factor: float = 1.01) -> None:
    for t in tensors:
        if t is not None:
            t.mul_(factor)


def _raise() -> None:
    raise RuntimeError("no such kernel\nsecond line")


NORMED = {"instance_norm", "adain", "layer_norm2d", "group_norm"}
EPILOGUES = NORMED | {"bias_act", "scale_bias_act"}
# A function of a backend, what is done to its arguments when it is through with them, the operators that are then
# wrong, and how the report names the tensor.
BREAKS: dict[str, tuple[str, Callable[..., Any], set[str], str]] = {
    "values": ("epilogue_forward", lambda spec, inputs, y, *_, **k: _scale(y), EPILOGUES, "of result"),
    "one pixel": (
        "epilogue_forward",
        lambda spec, inputs, y, *_, **k: y[-1, -1, -1, -1].add_(0.5),
        EPILOGUES,
        "of result",
    ),
    "gradient of x": ("epilogue_backward", lambda *a: _scale(a[-1].x), EPILOGUES, "of gradient of x"),
    "sums": ("epilogue_backward", lambda *a: _scale(a[-1].sums), EPILOGUES, "of gradient of"),
    "gradient of the residual": (
        "epilogue_backward",
        lambda *a: _scale(a[-1].residual),
        NORMED | {"scale_bias_act"},
        "of gradient of residual",
    ),
    "not finite": (
        "epilogue_forward",
        lambda spec, inputs, y, *_, **k: y[0, 0, 0, 0].fill_(float("nan")),
        EPILOGUES,
        "result, NCHW is not",
    ),
    "an exception": ("epilogue_backward", lambda *a: _raise(), EPILOGUES, "RuntimeError: no such kernel"),
    "l1 gradient": (
        "l1_losses_backward",
        lambda grad, first, second, out: _scale(*out[: len(first)]),
        {"l1_loss", "l1_losses"},
        "of gradient of first_",
    ),
    "lsgan gradient": ("lsgan_loss_backward", lambda *a: _scale(*a[-1]), {"lsgan_loss"}, "of gradient of first_"),
}
BREAKS |= {
    "border": ("phase_border", lambda y, *_: _scale(y), {doctor.BORDER}, "of result"),
    "border's input": ("phase_border_backward", lambda *a: _scale(a[3]), {doctor.BORDER}, "of gradient of x"),
    "border's weight": ("phase_border_backward", lambda *a: _scale(a[4]), {doctor.BORDER}, "of gradient of weight"),
}
# The losses return their values.
BROKEN_VALUES = {"l1": ("l1_losses", {"l1_loss", "l1_losses"}), "lsgan": ("lsgan_loss", {"lsgan_loss"})}


@pytest.mark.parametrize("name", BROKEN_VALUES)
def test_a_broken_loss_is_found(name: str, quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    function, ops = BROKEN_VALUES[name]
    right = getattr(backends.reference, function)
    monkeypatch.setattr(backends.reference, function, lambda *a: right(*a) * 1.01)
    failed = [trial for trial in doctor.selftest() if not trial.passed]
    assert {(t.op, t.backend, t.dtype) for t in failed} == {
        (op, "reference", dtype) for op in ops for dtype in ("float32", "bfloat16")
    }
    assert all("of result" in doctor.describe(t) for t in failed)


@pytest.mark.parametrize("name", BREAKS)
def test_a_broken_kernel_is_found(
    name: str, quick: None, monkeypatch: pytest.MonkeyPatch, call: Callable[..., tuple[int, str, str]]
) -> None:
    function, wrong, ops, words = BREAKS[name]
    right = getattr(backends.reference, function)

    def broken(*arguments: Any, **keywords: Any) -> None:
        right(*arguments, **keywords)
        wrong(*arguments, **keywords)

    monkeypatch.setattr(backends.reference, function, broken)
    failed = [trial for trial in doctor.selftest() if not trial.passed]
    assert {(t.op, t.backend) for t in failed} == {(op, "reference") for op in ops}
    assert {t.dtype for t in failed} == {"float32", "bfloat16"}
    assert all(words in doctor.describe(t) for t in failed)
    assert all("\n" not in doctor.describe(t) for t in failed)
    if name in ("values", "not finite"):
        code, out, err = call("--selftest")
        assert code == 1
        assert err.count("\n") == 1
        assert re.match(rf"munit-fast: .*\b{len(failed)} of \d+", err)
        assert "FAIL" in out and doctor.describe(failed[0]) in out
        code, out, err = call("--json", "--selftest")
        assert code == 1
        json.loads(out, parse_constant=pytest.fail)  # NaN is no JSON


@needs_native
@pytest.mark.parametrize("where", ["one instruction set", "channels_last", "float16"])
def test_a_kernel_broken_in_one_place_only(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = backends.cpu.epilogue
    before = native.module.isa()

    def wrong(spec: Any, x: torch.Tensor, *rest: Any) -> tuple[torch.Tensor, torch.Tensor]:
        y, stats = right(spec, x, *rest)
        broken = {
            "one instruction set": native.module.isa() == ISAS[-1],
            "channels_last": not x.is_contiguous(),
            "float16": x.dtype == torch.float16,
        }
        if broken[where]:
            y.mul_(1.02)
        return y, stats

    monkeypatch.setattr(backends.cpu, "epilogue", wrong)
    failed = [trial for trial in doctor.selftest() if not trial.passed]
    assert failed
    assert {t.backend for t in failed} == {f"cpu {isa}" for isa in (ISAS[-1:] if where[0] == "o" else ISAS)}
    assert where != "float16" or {t.dtype for t in failed} == {"float16"}
    assert where != "channels_last" or all("channels_last" in t.worst for t in failed)
    assert native.module.isa() == before


@pytest.mark.skipif(not WINOGRAD_ISAS, reason="no instruction set has such convolutions")
@pytest.mark.parametrize("function", ["conv", "input_gradient", "weight_gradient"])
def test_a_broken_convolution_is_found(function: str, quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    right = getattr(winograd, function)

    def broken(*arguments: Any) -> Any:
        made = right(*arguments)
        _scale(made[0] if isinstance(made, tuple) else made)
        return made

    monkeypatch.setattr(winograd, function, broken)
    failed = [trial for trial in doctor.selftest() if not trial.passed]
    assert {(t.op, t.backend, t.dtype) for t in failed} == {
        (doctor.CONVOLUTION, f"cpu {isa}", "float32") for isa in WINOGRAD_ISAS
    }
    where = {"conv": "result", "input_gradient": "gradient of x", "weight_gradient": "gradient of weight"}
    assert all(f"of {where[function]}" in doctor.describe(t) for t in failed)


@needs_native
def test_the_instruction_set_is_put_back_after_an_exception(monkeypatch: pytest.MonkeyPatch) -> None:
    before = native.module.isa()

    def interrupted(*arguments: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(backends.cpu, "l1_losses", interrupted)
    with pytest.raises(KeyboardInterrupt):
        doctor.selftest()
    assert native.module.isa() == before


@pytest.fixture(scope="module")
def bare() -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "MUNIT_FAST_CPU_ISA")}
    return subprocess.run(
        [sys.executable, "-c", BARE, "--selftest"], env=environment, capture_output=True, text=True, check=False
    )


def test_without_the_compiled_part_and_triton(bare: subprocess.CompletedProcess[str]) -> None:
    assert (bare.returncode, bare.stderr) == (0, "")
    text = " ".join(bare.stdout.split())
    assert "triton" in text and "munit_fast._C" in text
    assert "python setup.py build_ext --inplace" in text
    assert max(map(len, bare.stdout.splitlines())) <= 80
    assert "cpu avx" not in text and "cpu sse" not in text
    assert "FAIL" not in text and "cpu reference" in text


@needs_native
def test_the_instruction_set_in_use() -> None:
    before = native.module.isa()
    native.module.set_isa(ISAS[-1])
    try:
        assert re.search(rf"\b{ISAS[-1]} \(in use\).*MUNIT_FAST_CPU_ISA=NAME", printed(doctor.examine(), 200))
    finally:
        native.module.set_isa(before)


@pytest.fixture
def isa_in_use() -> Iterator[Callable[[str], None]]:
    """Sets the instruction set until the test ends."""
    before = native.module.isa()
    yield native.module.set_isa
    native.module.set_isa(before)


@needs_native
@pytest.mark.parametrize("isa", ISAS)
def test_which_way_convolutions_go(
    isa: str, isa_in_use: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    rule = conv_plans.ConvRule(
        (isa,), (torch.float32, torch.float16), 3, 1, 17, 29, 5, 7, "f23", "as [fast] as measured"
    )
    monkeypatch.setattr(conv_plans, "TABLE", [rule, rule._replace(isas=("abacus",), plan="f42")])
    monkeypatch.delenv("MUNIT_FAST_CONV", raising=False)
    isa_in_use(isa)
    found = doctor.examine()
    text = " ".join(printed(found, 200).split())
    assert found.conv == "auto"
    if isa in WINOGRAD_ISAS:
        assert [row["plan"] for row in found.convolutions] == ["f23"]
        assert re.search(r"3×3.*float32, float16.*f23.*17.*29.*5.*7.*as \[fast\] as measured", text)
    else:
        assert found.convolutions == [] and re.search(rf"MUNIT_FAST_CONV=auto: .*{isa}", text)
    monkeypatch.setenv("MUNIT_FAST_CONV", "direct")
    text = printed(doctor.examine(), 200)
    assert "MUNIT_FAST_CONV=direct" in text and "f23" not in text


@needs_native
def test_an_instruction_set_that_is_not_here() -> None:
    program = "import sys; from munit_fast import cli; sys.argv = ['munit-fast', 'doctor']; cli.main()"
    environment = os.environ | {"MUNIT_FAST_CPU_ISA": "abacus"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert re.match(rf"munit-fast: .*MUNIT_FAST_CPU_ISA: .*{ISAS[-1]}.*'abacus'", done.stderr)
