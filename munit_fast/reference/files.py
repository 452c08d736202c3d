"""The published checkpoint files: which they are, how to read and write them."""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

_STATISTICS = (".running_mean", ".running_var", ".num_batches_tracked")


def upgrade_state_dict(state_dict: Mapping[str, Tensor], module: nn.Module) -> OrderedDict[str, Tensor]:
    """`state_dict` as today's `module` names it: files of PyTorch 0.3 have other buffers.

    They carry running statistics on instance norms (dropped: nothing reads them) and lack the constant buffers of
    the AdaIN layers (taken from the module). Other differences are left for load_state_dict to report.
    """
    own = module.state_dict()
    upgraded = OrderedDict((k, v) for k, v in state_dict.items() if k in own or not k.endswith(_STATISTICS))
    for key, value in own.items():
        if key not in upgraded and key.endswith(_STATISTICS) and ".norm." in key:
            upgraded[key] = value
    return upgraded


def checkpoint_name(kind: str, iterations: int) -> str:
    """ "gen_00000010.pt" for kind "gen" and 10 completed iterations."""
    return f"{kind}_{iterations:08d}.pt"


def found_checkpoints(folder: str | Path, kind: str) -> dict[int, Path]:
    """The files of `kind` ("gen" or "dis") in `folder`, by completed iterations."""
    matches = ((re.fullmatch(rf"{kind}_(\d+)\.pt", path.name), path) for path in Path(folder).glob(f"{kind}_*.pt"))
    return {int(match[1]): path for match, path in matches if match}


def save_atomically(obj: Any, path: str | Path) -> None:
    """torch.save that leaves either the whole file or nothing under `path`.

    The temporary file has the final file's name, in a temporary folder beside it: torch writes a file's own name
    into it, and the bytes are to be those of a plain torch.save.
    """
    path = Path(path)
    folder = tempfile.mkdtemp(prefix=".saving-", dir=path.parent)
    try:
        temporary = Path(folder, path.name)
        with open(temporary, "wb"):
            pass  # a clear OSError from the file system itself, rather than torch's RuntimeError
        try:
            torch.save(obj, temporary)
        except RuntimeError as error:  # torch's writer reports a full disk this way
            raise OSError(
                errno.ENOSPC, f"could not be written whole; is the disk full? ({str(error).splitlines()[0]})", str(path)
            ) from None
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        if os.name == "posix":  # or a power failure could bring the old name back
            descriptor = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
