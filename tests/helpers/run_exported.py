"""Runs exported networks where munit_fast cannot be imported.

    python run_exported.py FILE...

Beside each FILE lies FILE.inputs.npz with the arguments of its calls, "CALL_ARGUMENT"; FILE.outputs.npz gets their
results, "CALL_RESULT". FILE is a .pt of torch.jit, a .pt2 of torch.export, a .package.pt2 of AOTInductor, an .onnx or
an .xml of OpenVINO.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

# No import of it, nor of what is in it, succeeds from here.
sys.modules["munit_fast"] = None  # type: ignore[assignment]

Arrays = Sequence[np.ndarray[Any, Any]]


def load(file: str) -> Callable[..., Arrays]:
    """The exported network, from arrays to arrays."""
    if file.endswith(".onnx"):
        import onnxruntime

        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        names = [node.name for node in session.get_inputs()]
        return lambda *arrays: session.run(None, dict(zip(names, arrays, strict=True)))

    if file.endswith(".xml"):
        import openvino

        compiled = openvino.Core().compile_model(file, "CPU", {"INFERENCE_PRECISION_HINT": openvino.Type.f32})
        return lambda *arrays: [np.array(y) for y in compiled(arrays).values()]

    import torch

    torch.set_num_threads(1)
    if file.endswith(".package.pt2"):
        network = torch._inductor.aoti_load_package(file)
    elif file.endswith(".pt2"):
        network = torch.export.load(file).module()
    else:
        network = torch.jit.load(file)

    def run(*arrays: Any) -> Arrays:
        with torch.no_grad():
            found = network(*map(torch.from_numpy, arrays))
        return [y.numpy() for y in (found if isinstance(found, (tuple, list)) else [found])]

    return run


def main() -> None:
    for file in sys.argv[1:]:
        network = load(file)
        results = {}
        with np.load(f"{file}.inputs.npz") as inputs:
            for call in sorted({name.split("_")[0] for name in inputs}):
                arguments = [inputs[f"{call}_{i}"] for i in range(sum(n.startswith(f"{call}_") for n in inputs))]
                results |= {f"{call}_{i}": y for i, y in enumerate(network(*arguments))}
        np.savez(f"{file}.outputs.npz", **results)


if __name__ == "__main__":
    main()
