"""Hostile configurations, lists, models, images, styles …: each is read, or refused by an error of munit_fast.

`make fuzz` gives each loader FUZZ_INPUTS inputs in a process of its own, so that a crash of native code is seen too;
the input at hand then lies in the folder that is printed. `test_security.py` runs a few of them.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import faulthandler
import functools
import gzip
import io
import json
import os
import pickle
import resource
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import torch
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save
from torch.optim.swa_utils import AveragedModel

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the tests, when run as a script

from helpers.fuzz_readers import frames_seeds, netpbm_seeds, png_seeds, reader_target, tiff_seeds, tiff_tags
from munit_fast.app.translation import STYLE_FORMAT, Limits, Translator, UserError, style_json
from munit_fast.config import Config, ConfigError, GeneratorConfig, load_config, make_config
from munit_fast.data import FileSource, ImageError, ImageSource, PixelFormat, decode_image, open_source, read_list
from munit_fast.data.sources import DatasetSource
from munit_fast.data.sources.hub import parse
from munit_fast.export import OnnxModel, export_model
from munit_fast.io.checkpoints import CheckpointError, load_file, load_states
from munit_fast.models import networks
from munit_fast.models.munit import MUNIT, from_pretrained
from munit_fast.models.portable import write_portable
from munit_fast.tiles.slides import MAX_SIDE, open_slide
from munit_fast.train.run_state import apply_state, checksum, find_state, run_state
from munit_fast.train.trainer import MUNIT_Trainer

PIXELS = 2**16
SECONDS = 10.0  # of processor time for one input
ROOT = Path(__file__).parents[2]
GENERATOR = {
    "dim": 2,
    "mlp_dim": 4,
    "style_dim": 2,
    "n_res": 1,
    "n_downsample": 1,
    "activ": "relu",
    "pad_type": "reflect",
}
Target = Callable[[bytes], None]


# ---- inputs

_TOKENS = [
    b"\0",
    b"\xff" * 8,
    b"-1",
    b"\x80\x02",
    b"9" * 30,
    b"&a [*a]",
    b"<<: *a",
    b"!!python/name:os.system ",
    b"../",
    b"\n",
]
_step = st.tuples(
    st.sampled_from(["flip", "set", "insert", "cut", "drop", "copy", "token", "grow"]),
    st.floats(0, 1, exclude_max=True),
    st.integers(0, 255),
    st.integers(1, 64),
)


def mutate(data: bytes, steps: list[tuple[str, float, int, int]]) -> bytes:
    """Damage bytes a little: places are shares of the length, so that a step means the same for every input."""
    content = bytearray(data)
    for kind, place, value, length in steps:
        at = int(place * (len(content) + 1))
        if kind == "flip" and at < len(content):
            content[at] ^= 1 << value % 8
        elif kind == "set" and at < len(content):
            content[at] = value
        elif kind == "insert":
            content[at:at] = bytes([value]) * length
        elif kind == "cut":
            del content[at:]
        elif kind == "drop":
            del content[at : at + length]
        elif kind == "copy":
            content[at:at] = content[at // 2 : at // 2 + length]
        elif kind == "token":
            content[at:at] = _TOKENS[value % len(_TOKENS)]
        elif kind == "grow":
            content[at : at + 4] = int(value << 24 | length).to_bytes(4, "big" if value % 2 else "little")
    return bytes(content)


def mutated(seeds: list[bytes]) -> st.SearchStrategy[bytes]:
    return st.builds(mutate, st.sampled_from(seeds), st.lists(_step, max_size=6))


_scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.dates()
    | st.binary(max_size=8)
    | st.text(max_size=12)
    | st.sampled_from([2**63, 10**400, -0.0, "1e400", "0x", "1:1:1", "relu", "sn", "nsgan", "step", "~", "=", "<<"])
)
_values = st.recursive(
    _scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def config_inputs() -> st.SearchStrategy[bytes]:
    seeds = [path.read_bytes() for path in sorted((ROOT / "configs").glob("*.yaml"))]
    names = [
        *Config.model_fields,
        *(f"gen.{name}" for name in GeneratorConfig.model_fields),
        "dis.n_layer",
        "dis.num_scales",
    ]

    def dump(values: dict[str, Any]) -> bytes:
        nested: dict[str, Any] = {}
        for name, value in values.items():
            section, _, key = name.rpartition(".")
            (nested.setdefault(section, {}) if section and isinstance(nested.get(section, {}), dict) else nested)[
                key
            ] = value
        return yaml.safe_dump(nested, allow_unicode=True).encode("utf-8", "surrogatepass")

    structured = st.dictionaries(st.sampled_from(names), _values, max_size=5).map(dump)
    return mutated(seeds) | structured | st.builds(mutate, structured, st.lists(_step, max_size=3))


def list_inputs(root: Path) -> st.SearchStrategy[bytes]:
    lines = [
        "a.png",
        "sub/b.png",
        "sub/../a.png",
        "../secret.png",
        "link.png",
        "loop",
        "sub",
        "outside/secret.png",
        "a.png/x",
    ]
    lines += [
        str(root / "a.png"),
        str(root.parent / "secret.png"),
        "/etc/passwd",
        "./a.png",
        "",
        " ",
        "\0",
        "a" * 300,
        "é.png",
        "~/a.png",
    ]
    vocabulary = st.sampled_from(lines) | st.text(max_size=20)
    text = st.lists(vocabulary, max_size=6).map(lambda names: "\n".join(names).encode("utf-8", "surrogatepass"))
    return text | st.builds(mutate, text, st.lists(_step, max_size=4))


def checkpoint_inputs() -> st.SearchStrategy[bytes]:
    def saved(obj: Any, legacy: bool = False) -> bytes:
        buffer = io.BytesIO()
        torch.save(obj, buffer, _use_new_zipfile_serialization=not legacy)
        return buffer.getvalue()

    state = networks.AdaINGen(3, GENERATOR).state_dict()
    pair = {"a": state, "b": state}
    adam = {
        "state": {0: {"step": torch.tensor(1.0), "exp_avg": torch.zeros(2)}},
        "param_groups": [{"lr": 1e-4, "params": [0]}],
    }
    small = {"a": dict(list(state.items())[:2]), "b": {}}
    seeds = [
        saved(pair),
        saved(pair, legacy=True),
        saved({"gen": adam, "dis": adam}),
        saved(small),
        saved(small, legacy=True),
    ]
    seeds.append(pickle.dumps({"a": {}, "b": {}}))

    def strange(value: torch.Tensor, kind: str) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            makers: dict[str, Callable[[], Any]] = {
                "complex": lambda: value.to(torch.complex64),
                "int": lambda: value.to(torch.int8),
                "bool": lambda: value.bool(),
                "nan": lambda: value * torch.nan,
                "sparse": lambda: value.to_sparse(),
                "csr": lambda: torch.ones(2, 2).to_sparse_csr(),
                "meta": lambda: value.to("meta"),
                "quantized": lambda: torch.quantize_per_tensor(value.float(), 0.1, 0, torch.qint8),
                "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
                "stride0": lambda: (
                    torch.zeros(1).expand(value.numel()).reshape(value.shape) if value.numel() else value
                ),
                "half": lambda: value.half(),
                "empty": lambda: torch.empty(0),
                "scalar": lambda: torch.tensor(1.0),
                "huge": lambda: torch.zeros(1).expand(2**40),
                "transposed": lambda: value.mT.contiguous().mT if value.dim() > 1 else value,
                "number": lambda: 3,
                "text": lambda: "x",
                "none": lambda: None,
                "list": lambda: [value],
                "parameter": lambda: torch.nn.Parameter(value) if value.is_floating_point() else value,
            }
            return makers[kind]()

    kinds = st.sampled_from(
        ["complex", "int", "bool", "nan", "sparse", "csr", "meta", "quantized", "nested", "stride0", "half", "empty"]
    ) | st.sampled_from(
        ["scalar", "huge", "transposed", "number", "text", "none", "list", "parameter", "drop", "rename"]
    )

    def odd(changes: list[tuple[int, str, bool]], legacy: bool) -> bytes:
        changed: dict[Any, Any] = dict(state)
        for place, kind, _ in changes:
            name = list(state)[place % len(state)]
            if kind in ("drop", "rename"):
                value = changed.pop(name, None)
                if kind == "rename":
                    changed[place] = value
            else:
                changed[name] = strange(state[name], kind)
        try:
            return saved({"a": changed, "b": state}, legacy)
        except (RuntimeError, NotImplementedError):  # what cannot be saved cannot arrive
            return saved({"a": {}, "b": state}, legacy)

    structured = st.builds(
        odd, st.lists(st.tuples(st.integers(0, 200), kinds, st.booleans()), min_size=1, max_size=3), st.booleans()
    )
    return mutated(seeds) | structured | st.builds(mutate, structured, st.lists(_step, max_size=2)) | state_inputs()


def foreign_inputs() -> st.SearchStrategy[bytes]:
    """Checkpoints as other programs have them, some of them damaged: "p" and a .pt, or "s" and a .safetensors file."""
    trainer = small_trainer()
    parts: dict[str, Any] = {name: getattr(trainer, name).state_dict() for name in ("gen_a", "gen_b", "dis_a")}
    pieces = [*parts.values(), trainer.state_dict(), AveragedModel(trainer).state_dict(), trainer.gen_opt.state_dict()]
    pieces += [{}, [], 3, None, "x", torch.ones(2), {1: torch.ones(2)}, {"": {"": torch.ones(1)}}]
    names = ["a", "b", "gen_a", "gen_b", "genA", "netG_B", "gen_a_ema", "ema", "model", "state_dict", "net_G", "dis_a"]
    names += ["module", "_orig_mod", "module.gen_a", "n_averaged", "", ".", "a.b", "x\x1b]0;t\x07", "autoencoder_a"]
    names += ["content_encoder.model.0.layers.conv.weight", "enc_class_model.model.0.weight", "cnns.0.0.conv.weight"]

    def prefixed(prefix: str, value: Any) -> Any:
        if not isinstance(value, dict):
            return {prefix: value}
        return {f"{prefix}.{key}" if isinstance(key, str) else key: item for key, item in value.items()}

    name = st.sampled_from(names) | st.text(max_size=4)
    piece = st.sampled_from(pieces)
    nests = st.recursive(
        piece,
        lambda inner: (
            st.dictionaries(name, inner, max_size=3)
            | st.lists(inner, max_size=2)
            | st.builds(prefixed, name, inner)
            | st.builds(lambda a, b: {"a": a, "b": b}, inner, inner)
        ),
        max_leaves=6,
    )

    def endless(value: Any, width: int, depth: int) -> Any:
        for _ in range(depth):
            value = {f"k{i}": value for i in range(width)}
        return value

    def saved(value: Any) -> bytes:
        buffer = io.BytesIO()
        torch.save(value, buffer)
        return b"p" + buffer.getvalue()

    def flat(value: Any, prefix: str = "") -> dict[str, torch.Tensor]:
        if isinstance(value, torch.Tensor):
            return {prefix.removesuffix("."): value.detach().clone().contiguous()}
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        return {name: tensor for key, item in items for name, tensor in flat(item, f"{prefix}{key}.").items()}

    def tensors(value: Any) -> bytes:
        return b"s" + save(flat(value))

    wide = st.builds(endless, nests, st.integers(1, 9), st.integers(1, 45)).map(saved)
    encodable = nests.filter(lambda value: "\\ud" not in ascii(list(flat(value))))
    files = nests.map(saved) | encodable.map(tensors)
    damaged = st.builds(lambda data, steps: data[:1] + mutate(data[1:], steps), files, st.lists(_step, max_size=3))
    return st.integers(0, 15).flatmap(lambda turn: wide if turn == 0 else files if turn % 2 else damaged)


def small_trainer() -> MUNIT_Trainer:
    """A trainer with as few and small tensors as there can be, an average among them."""
    torch.manual_seed(0)
    dis = {"dim": 2, "n_layer": 1, "num_scales": 1}
    cfg = make_config({"gen": GENERATOR, "dis": dis, "display_size": 1, "ema_half_life": 2})
    trainer = MUNIT_Trainer(cfg.hyperparameters())
    for optimizer in (trainer.gen_opt, trainer.dis_opt):
        for parameter in (p for group in optimizer.param_groups for p in group["params"]):
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
    return trainer


def state_inputs() -> st.SearchStrategy[bytes]:
    """Whole states of a run with some of their values replaced, the checksum right or not."""
    state = run_state(small_trainer(), 1)
    values: list[Any] = [
        None,
        3,
        -1,
        10**30,
        1.5,
        "x",
        [],
        {},
        [1],
        {"a": 1},
        torch.zeros(2),
        torch.zeros(0),
        torch.ones(2, 2),
    ]
    values += [
        torch.ones(2).to_sparse(),
        torch.ones(2).to("meta"),
        torch.ones(2, dtype=torch.complex64),
        torch.tensor(torch.nan),
    ]

    def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []
        return [place for key in keys for place in [(*path, key), *places(value[key], (*path, key))]]

    every = places(state)

    def odd(changes: list[tuple[int, int, bool]], right: bool) -> bytes:
        changed = copy.deepcopy(state)
        for place, value, drop in changes:
            *path, last = every[place % len(every)]
            try:
                where = functools.reduce(lambda part, key: part[key], path, changed)
                if drop:
                    del where[last]
                else:
                    where[last] = values[value % len(values)]
            except (KeyError, IndexError, TypeError, RuntimeError):  # an earlier change took the place away
                continue
        if right:
            with contextlib.suppress(Exception):
                changed["checksum"] = checksum({key: value for key, value in changed.items() if key != "checksum"})
        buffer = io.BytesIO()
        torch.save(changed, buffer)
        return buffer.getvalue()

    change = st.tuples(st.integers(0, 10**6), st.integers(0, 99), st.booleans())
    return st.builds(odd, st.lists(change, min_size=1, max_size=3), st.sampled_from([True, True, True, False]))


def portable_inputs(folder: Path) -> st.SearchStrategy[bytes]:
    """Whole files with some bytes changed, and files whose header and tensors are of different minds."""
    model = MUNIT(make_config({"gen": GENERATOR}))
    write_portable(folder / "seed.safetensors", model)
    whole = (folder / "seed.safetensors").read_bytes()
    with safe_open(str(folder / "seed.safetensors"), framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata()

    def disagreeing(key: str, value: Any, dropped: str, tensor: torch.Tensor, name: str) -> bytes:
        config = yaml.safe_load(metadata["config"])
        config["gen"][key] = value
        kept = {k: v for k, v in tensors.items() if k != dropped} | {name: tensor}
        return save(kept, metadata | {"config": yaml.safe_dump(config)})

    sizes = st.sampled_from([0, 1, 2, 8, 2**16, 2**31, 10**12, -1, "relu", None])
    odd = st.sampled_from(
        [torch.zeros(3), torch.zeros(2, 3, 7, 7).to(torch.float8_e4m3fn), torch.zeros(0, dtype=torch.bool)]
    )
    names = st.sampled_from([*tensors, "a.enc_content.model.9.conv.weight", "c.x", "a", ""])
    return mutated([whole]) | st.builds(
        disagreeing, st.sampled_from(sorted(GENERATOR)), sizes, st.sampled_from(sorted(tensors)), odd, names
    )


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


def folder_inputs(folder: Path) -> st.SearchStrategy[bytes]:
    """config.json and model.safetensors, one after the other: either damaged, or of different minds."""
    MUNIT(make_config({"gen": GENERATOR})).save_pretrained(folder / "seed")
    config, weights = ((folder / "seed" / name).read_bytes() for name in ("config.json", "model.safetensors"))
    whole = json.loads(config)

    def changed(values: dict[str, Any], inner: dict[str, Any]) -> bytes:
        gen = whole["config"]["gen"] | inner
        return json.dumps(whole | {"config": whole["config"] | {"gen": gen}} | values, default=repr).encode()

    names = st.sampled_from(["library_name", "trainer", "config", "architectures", "_class_name", "x"])
    configs = mutated([config]) | st.builds(
        changed,
        st.dictionaries(names, _values, max_size=2),
        st.dictionaries(st.sampled_from([*sorted(GENERATOR), "x"]), _values, max_size=2),
    )
    files = st.tuples(configs, st.just(weights)) | st.tuples(st.just(config) | configs, mutated([weights]))
    return files.map(lambda pair: len(pair[0]).to_bytes(4, "big") + pair[0] + pair[1])


def image_inputs() -> st.SearchStrategy[bytes]:
    rng = np.random.default_rng(0)
    colour, grey = rng.integers(0, 256, (12, 17, 3), np.uint8), rng.integers(0, 256, (12, 17), np.uint8)
    pictures = [
        Image.fromarray(colour),
        Image.fromarray(grey),
        Image.fromarray(colour).convert("RGBA"),
        Image.fromarray(grey > 99),
    ]
    pictures += [Image.fromarray(colour).quantize(16), Image.fromarray(grey.astype(np.uint16) * 257)]
    seeds = []
    for picture in pictures:
        for options in (
            {"format": "PNG"},
            {"format": "PPM"},
            {"format": "BMP"},
            {"format": "GIF"},
            {"format": "JPEG", "progressive": True},
            {"format": "JPEG", "quality": 50},
            {"format": "WEBP", "lossless": True},
            {"format": "WEBP"},
            {"format": "TIFF", "compression": "tiff_lzw"},
            {"format": "TIFF", "compression": "tiff_adobe_deflate"},
            {"format": "TIFF"},
        ):
            buffer = io.BytesIO()
            try:
                picture.save(buffer, **options)
            except (OSError, ValueError):  # not every mode has every format
                continue
            seeds.append(buffer.getvalue())
    cmyk, animated = io.BytesIO(), io.BytesIO()
    pictures[0].convert("CMYK").save(cmyk, format="JPEG")
    pictures[0].save(animated, format="WEBP", save_all=True, append_images=[pictures[0].rotate(90)])
    seeds += [cmyk.getvalue(), animated.getvalue()]
    for array in (
        colour,
        grey,
        grey.astype(np.float32) / 255,
        colour.transpose(2, 0, 1).astype(np.float16) / 255,
        grey.astype(">u2"),
    ):
        buffer = io.BytesIO()
        np.save(buffer, array)
        seeds.append(buffer.getvalue())
    return mended(seeds)


def mended(seeds: list[bytes]) -> st.SearchStrategy[bytes]:
    """Damaged files, those of PNGs half of the time with the checksums of what they hold now."""
    return st.builds(lambda data, mend: with_checksums(data) if mend else data, mutated(seeds), st.booleans())


def array_inputs() -> st.SearchStrategy[bytes]:
    rng = np.random.default_rng(0)
    seeds = []
    for shape in ((9, 8), (9, 8, 4), (5, 9, 8), (2, 9, 8, 4)):
        for dtype in ("u1", ">u2", "<i4", "<f4", "<f8", "?"):
            array, file, archive = rng.integers(0, 2, shape).astype(dtype), io.BytesIO(), io.BytesIO()
            np.save(file, array if dtype != "<f8" else np.asfortranarray(array))
            (np.savez if dtype == "u1" else np.savez_compressed)(archive, a=array, label=np.arange(3), b=array[0])
            seeds += [file.getvalue(), archive.getvalue()]

    def stated(shape: tuple[int, ...], dtype: str, packed: bool) -> bytes:
        file, archive = io.BytesIO(), io.BytesIO()
        np.lib.format.write_array_header_2_0(file, {"descr": dtype, "fortran_order": packed, "shape": shape})
        file.write(bytes(300))
        if not packed:
            return file.getvalue()
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as members:
            members.writestr("a.npy", file.getvalue())
        return archive.getvalue()

    sizes = st.lists(st.sampled_from([-1, 0, 1, 2, 3, 7, 256, 2**16, 2**21, 2**40, 2**63]), max_size=5).map(tuple)
    kinds = st.sampled_from(["|u1", "<f4", "|O", "<c8", "|S5", "<f2", "|b1", "<M8[s]"])
    return mutated(seeds) | st.builds(stated, sizes, kinds, st.booleans())


def nifti_inputs() -> st.SearchStrategy[bytes]:
    """Volumes, damaged plainly, or before they are packed, most often in the header."""
    import nibabel as nib

    rng, seeds = np.random.default_rng(0), []
    for shape in ((6, 5), (6, 5, 4), (6, 5, 4, 2), (6, 5, 4, 1, 3)):
        for dtype in ("u1", "<i2", ">i2", "<f4", "<u4"):
            array = rng.integers(0, 99, shape).astype(dtype)
            for kind in (nib.Nifti1Image, nib.Nifti2Image):
                image = kind(array, np.eye(4), dtype=array.dtype)
                image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"a comment"))
                seeds.append(image.to_bytes())

    def packed(data: bytes) -> bytes:
        return gzip.compress(data, 1)

    def header_only(data: bytes, steps: list[tuple[str, float, int, int]]) -> bytes:
        return mutate(data[:352], steps) + data[352:]

    headers = st.builds(header_only, st.sampled_from(seeds), st.lists(_step, max_size=4))
    plain = mutated(seeds) | headers
    return plain | plain.map(packed) | st.builds(mutate, plain.map(packed), st.lists(_step, max_size=3))


def dicom_inputs() -> st.SearchStrategy[bytes]:
    import imagecodecs
    import pydicom
    from pydicom.encaps import encapsulate

    rng = np.random.default_rng(0)
    grey, colour = rng.integers(0, 4096, (2, 9, 8)).astype("<u2"), rng.integers(0, 256, (9, 8, 3), np.uint8)

    def file(pixels: np.ndarray, syntax: str, frames: list[bytes] | None = None, **elements: Any) -> bytes:
        data = pydicom.Dataset()
        data.SOPClassUID, data.SOPInstanceUID = pydicom.uid.CTImageStorage, "1.2.3"
        data.Rows, data.Columns, data.BitsAllocated = 9, 8, pixels.dtype.itemsize * 8
        data.SamplesPerPixel = 3 if pixels is colour else 1
        data.PhotometricInterpretation = "RGB" if pixels is colour else "MONOCHROME1"
        data.PlanarConfiguration, data.PixelRepresentation, data.BitsStored = 0, 0, 8 if pixels is colour else 12
        data.HighBit, data.NumberOfFrames = data.BitsStored - 1, 1 if pixels is colour else len(pixels)
        data.RescaleSlope, data.RescaleIntercept, data.ImagePositionPatient = "1", "-1024", [0.0, 1, 2]
        group = pydicom.Dataset()
        group.PixelValueTransformationSequence = [pydicom.Dataset()]
        group.PixelValueTransformationSequence[0].RescaleSlope = "2"
        data.SharedFunctionalGroupsSequence = [group]
        for name, value in elements.items():
            setattr(data, name, value)
        data.PixelData = pixels.tobytes() if frames is None else encapsulate(frames)
        data["PixelData"].VR = "OW" if frames is None else "OB"
        data.file_meta = pydicom.dataset.FileMetaDataset()
        data.file_meta.TransferSyntaxUID = syntax
        buffer = io.BytesIO()
        pydicom.dcmwrite(buffer, data, enforce_file_format=True)
        return buffer.getvalue()

    seeds = [file(x, syntax) for x in (grey, colour) for syntax in (pydicom.uid.ExplicitVRLittleEndian,)]
    seeds += [file(grey, pydicom.uid.ImplicitVRLittleEndian), file(grey, pydicom.uid.DeflatedExplicitVRLittleEndian)]
    seeds += [file(colour, pydicom.uid.ExplicitVRLittleEndian, PhotometricInterpretation="YBR_FULL")]
    for syntax, encode in (
        (pydicom.uid.JPEGLosslessSV1, lambda x: imagecodecs.jpeg8_encode(x, lossless=True)),
        (pydicom.uid.JPEGExtended12Bit, lambda x: imagecodecs.jpeg8_encode(x, bitspersample=12)),
        (pydicom.uid.JPEGLSLossless, imagecodecs.jpegls_encode),
        (pydicom.uid.JPEG2000Lossless, lambda x: imagecodecs.jpeg2k_encode(x, level=0, codecformat="J2K")),
        (pydicom.uid.HTJ2KLossless, imagecodecs.htj2k_encode),
    ):
        seeds.append(file(grey, syntax, [encode(frame) for frame in grey]))
    seeds.append(file(colour, pydicom.uid.JPEGBaseline8Bit, [imagecodecs.jpeg8_encode(colour)]))
    nested = b"\xfe\xff\x00\xe0\xff\xff\xff\xff" + b"\x40\x00\x75\x02SQ\0\0\xff\xff\xff\xff"
    deep = st.integers(1, 3000).map(lambda depth: seeds[0][:400] + b"\x40\x00\x75\x02SQ\0\0" + nested * depth)
    return mutated(seeds) | mutated(seeds) | deep


def _small_pictures() -> dict[str, bytes]:
    rng = np.random.default_rng(0)
    pictures: dict[str, bytes] = {}
    for i, kind in enumerate(("png", "jpg", "bmp")):
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (8, 9, 3), np.uint8)).save(buffer, {"jpg": "jpeg"}.get(kind, kind))
        pictures[f"set/{i}.{kind}"] = buffer.getvalue()
    return pictures


def zip_inputs() -> st.SearchStrategy[bytes]:
    seeds = []
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA):
        for zip64 in (False, True):
            buffer = io.BytesIO()
            bomb = {"x/bomb.png": bytes(2**20)} if method != zipfile.ZIP_STORED else {}
            with zipfile.ZipFile(buffer, "w", method) as archive:
                for name, content in {**_small_pictures(), "set/0.json": b"{}", **bomb}.items():
                    info = zipfile.ZipInfo(name)
                    info.compress_type = method
                    with archive.open(info, "w", force_zip64=zip64) as file:
                        file.write(content)
                archive.comment = b"a comment"
            seeds.append(buffer.getvalue())
    return mutated(seeds)


def tar_inputs() -> st.SearchStrategy[bytes]:
    seeds = []
    for layout in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=layout) as archive:
            for name, content in {**_small_pictures(), "set/0.cls": b"1"}.items():
                info = tarfile.TarInfo(name if layout == tarfile.USTAR_FORMAT else f"{'é' * 60}/{name}")
                info.size, info.mtime = len(content), 1.5 if layout == tarfile.PAX_FORMAT else 1
                archive.addfile(info, io.BytesIO(content))
            for kind in (tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.GNUTYPE_SPARSE, tarfile.DIRTYPE):
                info = tarfile.TarInfo(f"odd{kind.decode()}.png")
                info.type, info.linkname = kind, "set/0.png"
                archive.addfile(info)
        seeds.append(buffer.getvalue()[:12_000])
    # What moves the blocks leaves no header at its place.
    in_place = st.lists(_step.filter(lambda step: step[0] in ("flip", "set", "grow")), max_size=6)
    return mutated(seeds) | st.builds(mutate, st.sampled_from(seeds), in_place).map(with_header_sums)


def with_header_sums(data: bytes) -> bytes:
    """A tar archive with right checksums: tarfile would take a damaged header for the end otherwise."""
    out = bytearray(data)
    for at in range(0, len(out) - 511, 512):
        if out[at + 257 : at + 262] == b"ustar":
            out[at + 148 : at + 156] = b" " * 8
            out[at + 148 : at + 156] = b"%06o\0 " % (sum(out[at : at + 512]) % 8**6)
    return bytes(out)


def dataset_inputs() -> st.SearchStrategy[bytes]:
    """Rows: the path and the bytes of an image, each after its length."""
    paths = st.text(max_size=20) | st.sampled_from(
        [
            "",
            "0.png",
            "../x.png",
            "/etc/passwd",
            "/dev/zero",
            "hf://a/b.png",
            "zip://a::b",
            "\0.png",
            "a#1.gif",
            "?split=x",
        ]
    )
    row = st.tuples(paths, mutated([*_small_pictures().values(), b""]))

    def joined(rows: list[tuple[str, bytes]]) -> bytes:
        parts = [part for path, content in rows for part in (path.encode("utf-8", "surrogatepass"), content)]
        return b"".join(len(part).to_bytes(4, "big") + part for part in parts)

    return st.lists(row, min_size=1, max_size=4).map(joined)


def slide_inputs() -> st.SearchStrategy[bytes]:
    """TIFF files of every layout that is read by regions, with some bytes changed."""
    rng = np.random.default_rng(0)
    colour, grey = rng.integers(0, 256, (40, 50, 3), np.uint8), rng.integers(0, 65536, (40, 50), np.uint16)
    rgba = np.concatenate([colour, colour[:, :, :1]], axis=2)
    layouts: list[dict[str, Any]] = [
        {},
        {"rowsperstrip": 7},
        {"rowsperstrip": 7, "compression": "lzw", "predictor": True},
        {"tile": (16, 32)},
        {"tile": (16, 32), "compression": "zlib", "predictor": True},
        {"tile": (32, 32), "compression": "packbits"},
    ]
    pictures: list[tuple[Any, dict[str, Any]]] = [
        (colour, {"photometric": "rgb"}),
        (np.ascontiguousarray(colour.transpose(2, 0, 1)), {"photometric": "rgb", "planarconfig": "separate"}),
        (rgba, {"photometric": "rgb", "extrasamples": ["unassalpha"]}),
        (grey, {"photometric": "minisblack"}),
    ]
    pictures.append((grey.astype(np.float32) / 65535, {"photometric": "minisblack"}))
    cases = [(pixels, options | layout) for pixels, options in pictures for layout in layouts]
    cases.append((colour, {"photometric": "rgb", "tile": (16, 16), "compression": "jpeg"}))
    seeds = []
    for i, (pixels, options) in enumerate(cases):
        buffer = io.BytesIO()
        with tifffile.TiffWriter(buffer, bigtiff=i % 3 == 0, byteorder="<>"[i % 2]) as writer:
            writer.write(pixels, metadata=None, subifds=i % 2, **options)
            if i % 2:
                writer.write(pixels, metadata=None, subfiletype=1, **options)
        seeds.append(buffer.getvalue())

    # Offsets and tags lie in few bytes: changes at the beginning and at the end reach them more often.
    def changed(data: bytes, at: int, value: bytes, from_end: bool) -> bytes:
        at = len(data) - at if from_end else at
        return data[:at] + value + data[at + len(value) :]

    places = st.integers(4, 300), st.binary(min_size=1, max_size=4), st.booleans()
    heads = st.builds(changed, st.sampled_from(seeds), *places)
    return mutated(seeds) | heads


def style_inputs() -> st.SearchStrategy[bytes]:
    """Style files of the page: whole ones with some bytes changed, and ones with other values."""
    good = {"format": STYLE_FORMAT, "model": "m", "direction": "a2b", "seed": 1, "code": [0.5, -1.25]}
    numbers = st.floats() | st.integers() | _values
    odd = st.dictionaries(
        st.sampled_from([*good, "x"]), _values.filter(_is_json) | st.lists(numbers.filter(_is_json), max_size=3)
    )
    structured = odd.map(lambda changes: json.dumps(good | changes).encode("utf-8", "surrogatepass"))
    return (
        mutated([json.dumps(good).encode()]) | structured | st.builds(mutate, structured, st.lists(_step, max_size=3))
    )


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True


def with_checksums(data: bytes) -> bytes:
    """A PNG with right chunk checksums: damage behind them would never reach the decoder otherwise."""
    if data[:8] != b"\x89PNG\r\n\x1a\n":
        return data
    out, at = bytearray(data[:8]), 8
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        body = data[at + 4 : at + 8 + length]
        if len(body) < 4 + length:
            break
        out += data[at : at + 4] + body + zlib.crc32(body).to_bytes(4, "big")
        at += 12 + length
    return bytes(out + data[at:])


# ---- loaders


def check_message(error: Exception, never: str = "\0") -> None:
    text = str(error)
    assert 0 < len(text) < 20_000, f"a message of {len(text)} characters"
    assert never not in text, text


def config_target(folder: Path) -> Target:
    path = folder / "config.yaml"

    def run(data: bytes) -> None:
        path.write_bytes(data)
        try:
            cfg = load_config(path)
        except ConfigError as error:
            check_message(error)
        else:
            assert cfg.hyperparameters()["gen"]["dim"] >= 1

    return run


def list_target(folder: Path) -> Target:
    root, path = folder / "root", folder / "list.txt"
    (root / "sub").mkdir(parents=True)
    for place in (root / "a.png", root / "sub" / "b.png", folder / "secret.png", root / "é.png"):
        place.write_bytes(b"x")
    (root / "link.png").symlink_to(folder / "secret.png")
    (root / "outside").symlink_to(folder)
    (root / "loop").symlink_to("loop")
    inside = os.path.realpath(root) + os.sep

    def run(data: bytes) -> None:
        path.write_bytes(data)
        try:
            found = read_list(path, root)
        except ImageError as error:
            check_message(error)
        else:
            assert found
            for image in found:
                assert os.path.realpath(image).startswith(inside)
                assert image.is_file()

    return run


def checkpoint_target(folder: Path) -> Target:
    path, nets = folder / "gen_00000001.pt", [networks.AdaINGen(3, GENERATOR) for _ in range(2)]
    (folder / "run").mkdir()
    trainer = small_trainer()

    def weights() -> torch.Tensor:
        return torch.cat([value.flatten() for net in nets for value in net.state_dict().values()]).clone()

    def run(data: bytes) -> None:
        path.write_bytes(data)
        before = weights()
        try:
            load_states(path, load_file(path), *nets)
        except CheckpointError as error:
            check_message(error)
            assert torch.equal(before.nan_to_num(), weights().nan_to_num()), "half a checkpoint was loaded"
        try:
            load_file(path)
        except CheckpointError as error:
            check_message(error)
        for names in (
            ["resume_00000001.pt"],
            ["gen_00000001.pt", "dis_00000001.pt", "ema_00000001.pt", "optimizer.pt"],
        ):
            for name in names:
                (folder / "run" / name).write_bytes(data)
            try:
                loaded = find_state(folder / "run")
                apply_state(trainer, loaded.state, loaded.source)
            except CheckpointError as error:
                check_message(error)
            for name in names:
                (folder / "run" / name).unlink()

    return run


def foreign_target(folder: Path) -> Target:
    cfg = make_config({"gen": GENERATOR})
    model, bare = MUNIT(cfg), folder / "bare.pt"
    torch.save(networks.AdaINGen(3, GENERATOR).state_dict(), bare)

    def weights() -> torch.Tensor:
        return torch.cat([value.flatten() for value in model.state_dict().values()]).clone()

    def run(data: bytes) -> None:
        path = folder / ("x.safetensors" if data[:1] == b"s" else "x.pt")
        path.write_bytes(data[1:])
        ways: list[tuple[Any, bool]] = [(path, True), (path, False), ([bare, path], True), ([path, bare], True)]
        files, average = ways[zlib.crc32(data) % len(ways)]
        before = weights()
        try:
            model.load(files, average)
        except CheckpointError as error:
            check_message(error)
            message = str(error)
            assert message.isprintable(), ascii(message)
            assert torch.equal(before.nan_to_num(), weights().nan_to_num()), "half a checkpoint was loaded"
        else:
            assert all(note.isprintable() and len(note) < 2000 for note in model.notes), model.notes

    return run


def portable_target(folder: Path) -> Target:
    path = folder / "model.safetensors"

    def run(data: bytes) -> None:
        path.write_bytes(data)
        try:
            model = from_pretrained(path)
        except CheckpointError as error:
            check_message(error)
        else:
            assert sum(p.numel() for p in model.parameters()) <= len(data)  # two bytes a parameter; one in some dtypes

    return run


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


def folder_target(folder: Path) -> Target:
    saved = folder / "saved"
    saved.mkdir()

    def run(data: bytes) -> None:
        at = 4 + int.from_bytes(data[:4], "big")
        (saved / "config.json").write_bytes(data[4:at])
        (saved / "model.safetensors").write_bytes(data[at:])
        try:
            model = from_pretrained(saved)
        except CheckpointError as error:
            check_message(error)
            message = str(error)
            assert message.isprintable(), ascii(message)
        else:
            said = json.loads(data[4:at])
            assert said["library_name"] == "munit-fast" and said["trainer"] == "MUNIT"
            assert sum(p.numel() for p in model.parameters()) <= len(data) - at

    return run


def image_target(folder: Path) -> Target:
    turn = 0

    def run(data: bytes) -> None:
        nonlocal turn
        turn += 1
        path = folder / ("image.npy" if data[:6] == b"\x93NUMPY" else "image.png")
        path.write_bytes(data)
        channels = 1 if turn % 2 else 3
        try:
            array = decode_image(path, channels)
        except ImageError as error:
            check_message(error, never="memory")
        else:
            assert array.ndim == 3 and array.shape[2] == channels and 0 < array.shape[0] * array.shape[1] <= PIXELS
            assert array.dtype in (np.uint8, np.uint16, np.float32)

    return run


def stack_target(folder: Path, names: Callable[[bytes], str]) -> Target:
    """Files of several images: the first and the last of them, as they are and within limits."""
    turn = 0

    def run(data: bytes) -> None:
        nonlocal turn
        turn += 1
        path = folder / names(data)
        path.write_bytes(data)
        try:
            source = FileSource([path], axis=turn % 3)
        except ImageError as error:
            check_message(error, never="memory")
            return
        for number, limits in ((0, None), (len(source) - 1, (-1000.0, 3000.0))):
            try:
                picture = source.read(number)
                array = PixelFormat(picture.pixels.shape[2], limits).apply(picture)
            except ImageError as error:
                check_message(error, never="memory")
            else:
                assert array.ndim == 3 and 0 < array.shape[0] * array.shape[1] <= PIXELS
                assert array.dtype in (np.uint8, np.uint16, np.float32)


def check_source(source: ImageSource) -> None:
    names = [source.name(i) for i in range(len(source))]
    assert names and len(set(names)) == len(names)
    for i, name in enumerate(names[:20]):
        assert not name.startswith("/") and ".." not in name.split("/"), name
        try:
            pixels = source.read(i).pixels
        except ImageError as error:
            check_message(error)
        else:
            assert 0 < pixels.shape[0] * pixels.shape[1] <= PIXELS
    for line in source.notes():
        assert line.isprintable() and len(line) < 2000


def archive_target(folder: Path, suffix: str) -> Target:
    path = folder / f"archive{suffix}"

    def run(data: bytes) -> None:
        path.write_bytes(data)
        try:
            source = open_source(path)
        except ImageError as error:
            check_message(error)
        else:
            check_source(source)
        assert [other.name for other in folder.iterdir()] == [path.name]

    return run


def dataset_target(folder: Path) -> Target:
    import datasets

    features = datasets.Features({"image": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}})

    def run(data: bytes) -> None:
        parts = []
        while data:
            length = int.from_bytes(data[:4], "big")
            parts.append(data[4 : 4 + length])
            data = data[4 + length :]
        texts = [path.decode(errors="replace") for path in parts[::2]]
        rows = [{"path": path or None, "bytes": content or None} for path, content in zip(texts, parts[1::2])]
        table = datasets.Dataset.from_dict({"image": rows}, features=features)
        try:
            check_source(DatasetSource(table, "x", "image", roots=[folder]))
        except ImageError as error:
            check_message(error)
        with contextlib.suppress(ImageError):
            parse(f"hf:{texts[0]}?{texts[-1]}")


def slide_target(folder: Path) -> Target:
    turn = 0

    def run(data: bytes) -> None:
        nonlocal turn
        turn += 1
        path = folder / "slide.tif"
        path.write_bytes(data)
        channels = 1 if turn % 2 else 3
        try:
            with open_slide(path, turn % 5 // 4, PixelFormat(channels)) as slide:
                height, width = slide.height, slide.width
                assert 0 < height <= MAX_SIDE and 0 < width <= MAX_SIDE
                boxes = [
                    (0, min(height, 20), 0, min(width, 20)),
                    (max(0, height - 30), height, max(0, width - 9), width),
                ]
                for top, bottom, left, right in boxes:
                    array = slide.read(top, bottom, left, right)
                    assert array.shape == (bottom - top, right - left, channels) and array.dtype.itemsize <= 4
                    assert array.dtype in (np.uint8, np.uint16, np.float32)
        except ImageError as error:
            check_message(error, never="memory")

    return run


def upload_target(folder: Path) -> Target:
    size = {"new_size": 64, "crop_image_height": 64, "crop_image_width": 64}
    translator = Translator(MUNIT(make_config({"gen": GENERATOR} | size)), limits=Limits(translated_pixels=8192))

    def run(data: bytes) -> None:
        path = folder / ("image.npy" if data[:6] == b"\x93NUMPY" else "image.png")
        path.write_bytes(data)
        for native in (False, True):
            try:
                image = translator.read(path, "a", native=native)
            except UserError as error:
                check_message(error, never=str(folder))
            else:
                assert image.shape[0] == 3 and 0 < image.shape[1] * image.shape[2] <= 8192
                assert bool((image.abs() <= 1).all())

    return run


def style_target(folder: Path) -> Target:
    path = folder / "style.json"
    translator = Translator(MUNIT(make_config({"gen": GENERATOR})))

    def run(data: bytes) -> None:
        path.write_bytes(data)
        try:
            file = translator.load_style(path)
        except UserError as error:
            check_message(error, never=str(folder))
        else:
            assert file.style.code.shape == (2,) and bool(torch.isfinite(file.style.code).all())
            path.write_text(style_json(file.style, file.direction, "m"), encoding="utf-8")
            assert torch.equal(translator.load_style(path).style.code, file.style.code)

    return run


LOADERS: dict[str, tuple[Callable[[Path], Target], Callable[[Path], st.SearchStrategy[bytes]]]] = {
    "config": (config_target, lambda _: config_inputs()),
    "list": (list_target, lambda folder: list_inputs(folder / "root")),
    "checkpoint": (checkpoint_target, lambda _: checkpoint_inputs()),
    "foreign": (foreign_target, lambda _: foreign_inputs()),
    "portable": (portable_target, portable_inputs),
    "folder": (folder_target, folder_inputs),
    "graph": (graph_target, graph_inputs),
    "image": (image_target, lambda _: image_inputs()),
    "array": (
        lambda folder: stack_target(folder, lambda data: "a.npz" if data[:2] == b"PK" else "a.npy"),
        lambda _: array_inputs(),
    ),
    "nifti": (
        lambda folder: stack_target(folder, lambda data: "a.nii.gz" if data[:1] == b"\x1f" else "a.nii"),
        lambda _: nifti_inputs(),
    ),
    "dicom": (lambda folder: stack_target(folder, lambda _: "a.dcm"), lambda _: dicom_inputs()),
    "zip": (lambda folder: archive_target(folder, ".zip"), lambda _: zip_inputs()),
    "tar": (lambda folder: archive_target(folder, ".tar"), lambda _: tar_inputs()),
    "dataset": (dataset_target, lambda _: dataset_inputs()),
    "upload": (upload_target, lambda _: image_inputs()),
    "tiff": (reader_target(".tif", PIXELS), lambda _: mutated(tiff_seeds()) | tiff_tags()),
    "png": (reader_target(".png", PIXELS), lambda _: mended(png_seeds())),
    "frames": (reader_target(".gif", PIXELS), lambda _: mended(frames_seeds())),
    "netpbm": (reader_target(".ppm", PIXELS), lambda _: mutated(netpbm_seeds())),
    "slide": (slide_target, lambda _: slide_inputs()),
    "style": (style_target, lambda _: style_inputs()),
}


# ---- driver


def fuzz(name: str, inputs: int, folder: Path) -> int:
    """Give a loader so many inputs; how many it had. Raises what hypothesis found, shrunk."""
    make, strategy = LOADERS[name]
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    target = make(folder)
    count = 0

    @settings(
        max_examples=inputs,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
    )
    @given(strategy(folder))
    def run(data: bytes) -> None:
        nonlocal count
        count += 1
        begin = time.process_time()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            target(data)
        assert time.process_time() - begin < SECONDS, "too slow"

    run()
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=30_000, help="for each loader")
    parser.add_argument("--loader", choices=[*LOADERS], help="one only, in this process")
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    if options.loader:
        faulthandler.enable()
        torch.set_num_threads(1)
        os.environ["MUNIT_FAST_MAX_PIXELS"] = str(PIXELS)
        resource.setrlimit(resource.RLIMIT_AS, (16 * 2**30, 16 * 2**30))  # a bomb is an error here, not a dead machine
        print(f"{options.loader}: {fuzz(options.loader, options.inputs, options.folder)} inputs", flush=True)
        return
    folder = Path(tempfile.mkdtemp(prefix="munit-fast-fuzz-"))
    print(f"the inputs at hand lie in {folder}")
    failed = []
    for name in LOADERS:
        log = folder / f"{name}.log"
        command = [
            sys.executable,
            __file__,
            "--loader",
            name,
            "--inputs",
            str(options.inputs),
            "--folder",
            str(folder / name),
        ]
        with log.open("wb") as file:  # libtiff says something about every other picture
            done = subprocess.run(command, stderr=file)
        if done.returncode:
            failed.append(name)
            print(f"{name}: exit code {done.returncode}", log.read_text(errors="replace")[-3000:], sep="\n")
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
