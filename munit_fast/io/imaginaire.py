"""Checkpoints of NVIDIA's imaginaire: its MUNIT and UNIT are other networks than the published ones.

Compared in float64 with shared weights, its style encoder, its AdaIN and a residual block without its last ReLU are
those of MUNIT to rounding. The rest is not, in any of its configurations: see `refusal`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_OWN = re.compile(r"(?:^|\.)content_encoder\.model\.\d+\.(?:conv_block_\d\.)?layers\.")
_RESIDUAL = re.compile(r"content_encoder\.model\.\d+\.conv_block_0\.layers\.(?:conv|norm)\.")
_ENCODER_NORM = re.compile(r"content_encoder\.model\.\d+\.(?:conv_block_\d\.)?layers\.norm\.(?:weight|bias)$")
_UPSAMPLING = re.compile(r"decoder\.decoder\.\d+\.layers\.norm\.(?:(fc)\w*|weight)\b")


def refusal(names: Iterable[str]) -> str | None:
    """Why a file of imaginaire's MUNIT or UNIT cannot be converted; None where the names are not imaginaire's.

    Args:
        names: of the tensors, in the order of the file.
    """
    names = list(names)
    if not any(map(_OWN.search, names)):
        return None
    trainer = "MUNIT" if any("style_encoder." in name for name in names) else "UNIT"
    reasons = []
    if any(map(_ENCODER_NORM.search, names)):
        reasons.append("the norms of its content encoder have weights and biases, here they have none")
    if block := [name for name in names if _RESIDUAL.search(name)]:
        before, after = "put norm and ReLU before the convolutions (pre_act)", "apply a ReLU before the sum"
        # A .safetensors file has the names sorted, in which the order of the layers is lost.
        order = f"{before} or {after}" if block == sorted(block) else before if ".norm." in block[0] else after
        reasons.append(f"its residual blocks {order}")
    if first := next(filter(None, map(_UPSAMPLING.search, names)), None):
        norm = "AdaIN" if first[1] else "instance or batch norm"
        reasons.append(f"it upsamples with {norm}, where layer norm is here")
    listed = "; ".join(f"({i}) {reason}" for i, reason in enumerate(reasons, 1)) or "its layers are of another order"
    return (
        f"a {trainer} of imaginaire, which computes something else than the published {trainer} and cannot be "
        f"converted: {listed}; translate with imaginaire itself, where munit_fast.accelerate(net_G) makes it faster"
    )
