"""Exported graphs for the fuzzer."""

from __future__ import annotations

from pathlib import Path

from hypothesis import strategies as st

from helpers.fuzz_inputs import GENERATOR, Target, check_message, mutated
from munit_fast.config import make_config
from munit_fast.export import OnnxModel, export_model
from munit_fast.io.checkpoints import CheckpointError
from munit_fast.models.munit import MUNIT


def graph_inputs(folder: Path) -> st.SearchStrategy[bytes]:
    """Exported files with some bytes changed, anywhere or among the metadata alone."""
    import onnx

    model = MUNIT(make_config({"gen": GENERATOR}))
    export_model(model, folder / "seed.onnx", format="onnx", directions=("a2b",), verify=False)
    seeds = [(folder / f"seed-{name}.onnx").read_bytes() for name in ("a2b", "style-b")]
    proto = onnx.ModelProto.FromString(seeds[0])
    entries = {entry.key: entry.value for entry in proto.metadata_props}

    def redescribed(key: str, value: bytes) -> bytes:
        changed = onnx.ModelProto.FromString(seeds[0])
        del changed.metadata_props[:]
        for name, text in (entries | {key: value.decode(errors="replace")}).items():
            changed.metadata_props.add(key=name, value=text)
        return changed.SerializeToString()

    texts = mutated([value.encode() for value in entries.values()])
    return mutated(seeds) | st.builds(redescribed, st.sampled_from(sorted(entries)), texts)


def graph_target(folder: Path) -> Target:
    path = folder / "model-a2b.onnx"

    def run(data: bytes) -> None:
        path.write_bytes(data)
        try:
            model = OnnxModel(path, threads=1)
        except CheckpointError as error:
            check_message(error)
            message = str(error)
            assert message.isprintable(), ascii(message)
        else:
            assert model.direction in ("a2b", "b2a")
            assert model.config.gen.style_dim == GENERATOR["style_dim"]

    return run
