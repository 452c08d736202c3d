"""Runs the tests of `interpreted/` in a process in which Triton interprets kernels instead of compiling them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.interpreter import interpreter_unsupported_reason

FOLDER = Path(__file__).parent / "interpreted"


@pytest.mark.skipif(bool(interpreter_unsupported_reason()), reason=interpreter_unsupported_reason() or "")
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="this process interprets already")
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("file", sorted(path.name for path in FOLDER.glob("test_*.py")))
def test_kernels_in_the_interpreter(file: str) -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "--no-header", "--tb=short", "-p", "no:cacheprovider"]
    done = subprocess.run([*command, str(FOLDER / file)], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"\n{done.stdout[-20000:]}\n{done.stderr[-5000:]}"
