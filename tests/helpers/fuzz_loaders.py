"""Hostile configurations, lists, models, images, styles …: each is read, or refused by an error of munit_fast.

`make fuzz` gives each loader FUZZ_INPUTS inputs in a process of its own, so that a crash of native code is seen too;
the input at hand then lies in the folder that is printed. `test_security.py` runs a few of them.
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the tests, when run as a script

from helpers.fuzz_app import style_inputs, style_target, upload_target
from helpers.fuzz_configs import config_inputs, config_target, list_inputs, list_target
from helpers.fuzz_foreign import foreign_inputs, foreign_target
from helpers.fuzz_graphs import graph_inputs, graph_target
from helpers.fuzz_images import image_inputs, image_target
from helpers.fuzz_inputs import PIXELS, Target, mended, mutated
from helpers.fuzz_models import folder_inputs, folder_target, portable_inputs, portable_target
from helpers.fuzz_readers import frames_seeds, netpbm_seeds, png_seeds, reader_target, tiff_seeds, tiff_tags
from helpers.fuzz_slides import slide_inputs, slide_target
from helpers.fuzz_sources import archive_target, dataset_inputs, dataset_target, tar_inputs, zip_inputs
from helpers.fuzz_states import checkpoint_inputs, checkpoint_target, initial_target
from helpers.fuzz_volumes import array_inputs, dicom_inputs, nifti_inputs, stack_target

SECONDS = 10.0  # of processor time for one input

LOADERS: dict[str, tuple[Callable[[Path], Target], Callable[[Path], st.SearchStrategy[bytes]]]] = {
    "config": (config_target, lambda _: config_inputs()),
    "list": (list_target, lambda folder: list_inputs(folder / "root")),
    "checkpoint": (checkpoint_target, lambda _: checkpoint_inputs()),
    "initial": (initial_target, lambda _: checkpoint_inputs()),
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
