"""What `impl` may be on a CPU: the reference, and the compiled kernels with each instruction set of this machine."""

from __future__ import annotations

from munit_fast.ops import native

ISAS = native.module.available_isas() if native.module is not None else []
BACKENDS = ["reference", *(f"cpu-{isa}" for isa in ISAS)]
WINOGRAD_ISAS = [isa for isa in ISAS if isa.startswith("avx")]
