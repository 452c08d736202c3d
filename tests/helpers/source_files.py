"""The same pictures in a folder, in archives and in data sets."""

from __future__ import annotations

import io
import shutil
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def png(number: int, height: int = 32, width: int = 40) -> bytes:
    """Noise that tells the number."""
    buffer = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def write_zip(path: Path, files: Mapping[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def write_tar(path: Path, files: Mapping[str, bytes], mode: Any = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def write_folder(path: Path, files: Mapping[str, bytes]) -> Path:
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


def write_shards(path: Path, files: Mapping[str, bytes], shards: int = 3) -> str:
    """Shards beside `path` as webdataset writes them, samples in turn; gives their pattern."""
    for shard in range(shards):
        part = {name: files[name] for name in list(files)[shard::shards]}
        samples = part | {f"{Path(name).with_suffix('')}.cls": b"1" for name in part}
        write_tar(path.with_name(f"{path.name}-{shard:06d}.tar"), samples)
    return str(path.with_name(f"{path.name}-{{000000..{shards - 1:06d}}}.tar"))


def dataset(files: Mapping[str, bytes], labels: Sequence[int] | None = None, classes: Sequence[str] = ()) -> Any:
    """A `datasets.Dataset` with a column of images, and one of labels."""
    import datasets

    columns: dict[str, Any] = {"image": [{"path": name, "bytes": content} for name, content in files.items()]}
    features: dict[str, Any] = {"image": datasets.Image()}
    if labels is not None:
        columns["label"], features["label"] = list(labels), datasets.ClassLabel(names=list(classes))
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


KINDS = ("folder", "zip", "stored", "tar", "shards", "saved")


def written(kind: str, path: Path, files: Mapping[str, bytes]) -> str:
    """Write the files below or as `path`; gives what `open_source` takes."""
    if kind == "folder":
        return str(write_folder(path, files))
    if kind in ("zip", "stored"):
        method = zipfile.ZIP_STORED if kind == "stored" else zipfile.ZIP_DEFLATED
        return str(write_zip(path.with_name(f"{path.name}.zip"), files, method))
    if kind == "tar":
        return str(write_tar(path.with_name(f"{path.name}.tar"), files))
    if kind == "shards":
        return write_shards(path, files)
    shutil.rmtree(path, ignore_errors=True)
    dataset({name: files[name] for name in sorted(files)}).save_to_disk(path)
    return str(path)


def write_images(folder: Path, count: int, height: int = 12, width: int = 14) -> list[Path]:
    """Images of which red tells the image, green the row, blue the column."""
    folder.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, :, 1] = np.arange(height)[:, None] * 10
    pixels[:, :, 2] = np.arange(width)[None] * 10
    paths = []
    for i in range(count):
        pixels[:, :, 0] = i
        paths.append(folder / f"{i:03}.png")
        Image.fromarray(pixels).save(paths[-1])
    return paths
