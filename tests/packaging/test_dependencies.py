"""The library without what only the commands need: torch and numpy are enough for the operators and the networks."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import requires

from packaging.requirements import Requirement

# Blocks modules before anything is imported, then uses each public part that must do without them.
CODE = """
import sys
for name in sys.argv[1:]:
    sys.modules[name] = None
import torch
import munit_fast as mf
x = torch.randn(1, 4, 8, 8, requires_grad=True)
mf.functional.instance_norm(x, act="relu", pad=1).sum().backward()
assert mf.nn.LayerNorm2d(4)(x).shape == x.shape
model = torch.nn.Sequential(torch.nn.Conv2d(4, 4, 3), torch.nn.InstanceNorm2d(4), torch.nn.ReLU())
mf.accelerate(model)
model(x)
sizes = {"dim": 4, "style_dim": 3, "n_downsample": 1, "n_res": 1, "mlp_dim": 4}
for networks in (mf.networks, mf.reference):
    networks.AdaINGen(3, sizes | {"activ": "relu", "pad_type": "reflect"}).encode(torch.randn(1, 3, 32, 32))
mf.MUNIT_Trainer, mf.UNIT_Trainer
"""


def test_the_library_needs_torch_and_numpy_only() -> None:
    needed = {Requirement(line).name.lower() for line in requires("munit-fast") or () if "extra" not in line}
    modules = {"pillow": "PIL", "pyyaml": "yaml"}  # where the name differs
    blocked = [modules.get(name, name) for name in needed - {"torch", "numpy"}]
    assert {"PIL", "jinja2", "pydantic", "rich", "tensorboard", "typer", "yaml"} <= set(blocked)
    done = subprocess.run([sys.executable, "-c", CODE, *blocked], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
