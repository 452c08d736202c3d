"""Writes the inputs with which torch tests its own instance and group norms: `python torch_samples.py FILE`.

In a process of its own, since the import of torch.testing._internal forbids the process to change torch's flags.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import nn

DTYPES = (torch.float64, torch.float32)


def of_function(name: str, *arguments: str) -> dict[torch.dtype, list[dict[str, Any]]]:
    """The OpInfo samples of a function in nn.functional by keyword; `arguments`: the names of positional ones."""
    from torch.testing._internal.common_methods_invocations import op_db

    (info,) = (op for op in op_db if op.name == f"nn.functional.{name}")
    found: dict[torch.dtype, list[dict[str, Any]]] = {}
    for dtype in DTYPES:
        samples = list(info.sample_inputs("cpu", dtype, requires_grad=True))
        found[dtype] = [
            {"input": sample.input.detach()} | dict(zip(arguments, sample.args, strict=True)) | _detached(sample.kwargs)
            for sample in samples
        ]
    return found


def of_modules() -> dict[tuple[str, torch.dtype, bool], list[tuple[Any, ...]]]:
    """The ModuleInfo samples: (args, kwargs) of the constructor and x, by name, dtype and training."""
    from torch.testing._internal.common_modules import module_db

    found: dict[tuple[str, torch.dtype, bool], list[tuple[Any, ...]]] = {}
    for cls in (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d, nn.GroupNorm):
        (info,) = (info for info in module_db if info.module_cls is cls)
        for dtype in DTYPES:
            for training in (True, False):
                inputs = info.module_inputs_func(info, "cpu", dtype, True, training)
                found[cls.__name__, dtype, training] = [
                    (i.constructor_input.args, i.constructor_input.kwargs, *(x.detach() for x in i.forward_input.args))
                    for i in inputs
                ]
    return found


def _detached(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value.detach() if isinstance(value, torch.Tensor) else value for name, value in values.items()}


if __name__ == "__main__":
    try:
        content: Any = {
            "instance_norm": of_function("instance_norm"),
            "group_norm": of_function("group_norm", "num_groups"),
            "modules": of_modules(),
        }
    except ImportError as error:
        content = {"missing": str(error)}
    torch.save(content, sys.argv[1])
