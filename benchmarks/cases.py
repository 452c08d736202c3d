"""What is timed, as data: operators, blocks and networks of MUNIT at the shapes they have in it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product

import torch

LEVELS = ("op", "block", "network", "training", "translation", "accelerated", "exported", "folder", "launch")
MODES = ("forward", "backward", "training")  # the last: forward and backward together
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
STYLES = {"in 10 styles": 10, "in 6 styles": 6, "in 1 style": 1}  # translations by name


@dataclass(frozen=True)
class Case:
    """One computation to time.

    Attributes:
        level: Of LEVELS. An op or block runs alone on [batch, channels, side, side]; network, training and translation
            take images [batch, 3, side, side], and so does exported, a translation beside exported files;
            folder is files that are translated, `batch` of them;
            accelerated is a network of `networks_of_others`; launch is the host's part of the launches of an
            iteration's Triton kernels.
        name: Of the operator, block, network or work.
        mode: "forward" without autograd's graph, "backward" alone, or "training", both; an iteration is "training",
            and so is a step of an accelerated network, with Adam's.
        dtype: A key of DTYPES; for networks and iterations the dtype of autocast, fp32 being none.
        batch: Samples.
        channels: Of the tensor, or of the networks' first layer (the configurations' `dim`).
        side: Height and width.
    """

    level: str
    name: str
    mode: str
    dtype: str
    batch: int
    channels: int
    side: int

    @property
    def shape(self) -> str:
        """The size for readers, batch×channels×side²."""
        return shape_of(self.name, self.batch, self.channels, self.side)

    def __str__(self) -> str:
        return f"{self.level} {self.name} {self.mode} {self.shape} {self.dtype}"


def shape_of(name: str, batch: int, channels: int, side: int) -> str:
    """batch×channels×side², of volumes side³."""
    return f"{batch}×{channels}×{side}{'³' if name.endswith('3d') else '²'}"


# What stands between two convolutions of MUNIT, then its losses.
EPILOGUES = (
    "instance + relu + pad",
    "adain + relu + pad",
    "adain + residual + pad",
    "layer + relu + pad",
    "bias + lrelu + pad",
)
# What stands before a convolution of a diffusion model or its autoencoder, in 32 groups.
GROUP = "group + silu"
_GROUP_PLANES = ((128, 128), (256, 64), (512, 32))  # channels and side
LOSSES = ("l1 of ten pairs", "lsgan of three scales")
# With one pixel of padding; 2C: to twice as many channels. The first four are bare, with zeros around.
CONVOLUTIONS = (
    "convolution 3×3",
    "convolution 3×3 to 2C",
    "convolution 4×4, stride 2",
    "convolution 4×4, stride 2, to 2C",
    "instance + relu + pad + convolution 3×3",
    "instance + relu + pad + convolution 4×4, stride 2, to 2C",
)
BLOCKS = ("residual block", "downsampling block", "upsampling block", "discriminator layer")
NETWORKS = ("content encoder", "style encoder", "decoder", "discriminator")

# (channels, side) of the convolutions' inputs in the networks for 256², dim 64; "3×3 to 2C" are upsampling's phases.
_CONV_PLANES: dict[str, tuple[tuple[int, int], ...]] = dict(
    zip(
        CONVOLUTIONS,
        (
            ((256, 64),),
            ((256, 64), (128, 128)),
            ((256, 64), (256, 32)),
            ((64, 256), (128, 128), (64, 128), (128, 64), (256, 32)),
            ((256, 64),),
            ((64, 256), (128, 128)),
        ),
    )
)

# Planes of the networks for an image of `px`, dim 64: after the residual blocks, one and two upsamplings.
_PLANES = ((256, 4), (128, 2), (64, 1))


def _planes(px: int, every: bool = True) -> list[tuple[int, int]]:
    return [(channels, px // divisor) for channels, divisor in (_PLANES if every else _PLANES[:1])]


_TWO = ("forward", "training")


def _op_cases(
    px: int, batches: Iterable[int], dtypes: Iterable[str], every: bool = True, modes: Iterable[str] = _TWO
) -> Iterator[Case]:
    for name, dtype, (channels, side), batch, mode in product(EPILOGUES, dtypes, _planes(px, every), batches, modes):
        yield Case("op", name, mode, dtype, batch, channels, side)


def _conv_cases(dtype: str, most: int | None = None) -> Iterator[Case]:
    """The convolutions of the networks; `most`: so many planes of each."""
    for name, planes in _CONV_PLANES.items():
        for (channels, side), mode in product(planes[:most], _TWO):
            yield Case("op", name, mode, dtype, 1, channels, side)


def _loss_cases(px: int, batches: Iterable[int], dtypes: Iterable[str]) -> Iterator[Case]:
    for name, dtype, batch in product(LOSSES, dtypes, batches):
        yield Case("op", name, "training", dtype, batch, 3, px)


def _block_cases(px: int, batches: Iterable[int], dtypes: Iterable[str]) -> Iterator[Case]:
    planes = dict(zip(BLOCKS, ((256, px // 4), (64, px), (256, px // 4), (64, px // 2))))
    for (name, (channels, side)), dtype, batch in product(planes.items(), dtypes, batches):
        yield Case("block", name, "training", dtype, batch, channels, side)


def _network_cases(px: int, batches: Iterable[int], dtypes: Iterable[str], dim: int = 64) -> Iterator[Case]:
    for name, dtype, batch in product(NETWORKS, dtypes, batches):
        yield Case("network", name, "training", dtype, batch, dim, px)


def _iteration(px: int, batch: int, dtype: str, dim: int = 64) -> Case:
    return Case("training", "MUNIT iteration", "training", dtype, batch, dim, px)


def _translations(px: int, batch: int, dtype: str, dim: int = 64) -> Iterator[Case]:
    for name in ("in 10 styles", "in 1 style"):
        yield Case("translation", name, "forward", dtype, batch, dim, px)


def _exported(name: str, px: int, dim: int = 64) -> Case:
    return Case("exported", name, "forward", "fp32", 1, dim, px)


# Networks of `networks_of_others`: channels of the first layer as published, and a side whose training step takes a few
# seconds at most on two cores.
_OTHERS: dict[str, tuple[int, int]] = {
    "CycleGAN generator": (64, 256),
    "pix2pix U-Net": (64, 256),
    "PatchGAN": (64, 256),
    "CUT generator": (64, 128),
    "StarGAN v2 generator": (64, 128),
    "StarGAN v2 discriminator": (64, 32),
    "FUNIT generator": (64, 128),
    "EdgeConnect edges": (64, 128),
    "EdgeConnect colours": (64, 128),
    "EdgeConnect discriminator": (64, 128),
    "nnU-Net plain 2d": (32, 256),
    "nnU-Net plain 3d": (32, 32),
    "nnU-Net residual 2d": (32, 256),
    "nnU-Net residual 3d": (32, 32),
    "MONAI UNet 2d": (16, 256),
    "MONAI UNet 3d": (16, 64),
    "MONAI DynUNet 3d": (32, 32),
    "MONAI DynUNet residual 3d": (32, 32),
    "MONAI SegResNet 3d": (8, 64),
    "MONAI AutoencoderKL 2d": (32, 128),
}


def _accelerated(batches: Iterable[int]) -> Iterator[Case]:
    for (name, (channels, side)), batch, mode in product(_OTHERS.items(), batches, _TWO):
        yield Case("accelerated", name, mode, "fp32", batch, channels, side)


_BOTH = ("fp32", "bf16")

SETS: dict[str, tuple[Case, ...]] = {
    # Runs in seconds and proves that everything runs.
    "smoke": (
        *(Case("op", name, mode, "fp32", 1, 8, 16) for name in (*EPILOGUES, GROUP) for mode in MODES),
        *(Case("op", name, mode, "fp32", 1, 32, 16) for name in CONVOLUTIONS for mode in _TWO),
        *_loss_cases(16, (1,), ("fp32",)),
        *(Case("block", name, "training", "fp32", 1, 8, 16) for name in BLOCKS),
        *_network_cases(32, (1,), ("fp32",), dim=8),
        _iteration(32, 1, "fp32", dim=8),
        *_translations(32, 1, "fp32", dim=8),
        *(Case("accelerated", "PatchGAN", mode, "fp32", 1, 8, 32) for mode in _TWO),
        Case("accelerated", "nnU-Net plain 3d", "training", "fp32", 1, 8, 16),
        _exported("in 6 styles", 32, dim=8),
        Case("folder", "files", "forward", "fp32", 20, 8, 32),
    ),
    # The files of `munit-fast export` in their runtimes, beside the networks in PyTorch and what others export: as
    # small as the bundled model, and as large as the published one.
    "exported": (
        _exported("in 6 styles", 64, dim=24),
        *(_exported(name, px) for px in (128, 256) for name in ("in 1 style", "in 10 styles")),
    ),
    # `munit-fast translate` with the bundled architecture, from files to files, against the network alone: a quarter of
    # an hour on two cores with --rounds 3.
    "folders": (Case("folder", "files", "forward", "fp32", 1000, 24, 256),),
    # Other people's networks before and after `munit_fast.accelerate`: about ten minutes on two cores with --rounds 3.
    "others": (
        *(
            Case("op", GROUP, mode, "fp32", 1, c, side)
            for c, side in ((128, 128), (256, 64), (512, 32))
            for mode in MODES
        ),
        *_accelerated((1, 4)),
    ),
    # The host's time of an iteration's Triton launches, over a stub of CUDA's driver: a minute, most of it Triton's.
    "launch": (Case("launch", "launches of a MUNIT iteration", "training", "bf16", 1, 64, 256),),
    # What a GPU gate affords, what matters most first: what would not end in time is left out. First tensors of 64 MB.
    "gate": (
        *_op_cases(512, (8,), ("bf16",), every=False, modes=("forward", "backward")),
        *(_iteration(256, batch, "bf16") for batch in (1, 4, 8)),
        next(_translations(256, 8, "bf16")),
        *_op_cases(256, (1,), ("bf16",), every=False, modes=("forward", "backward")),
        *_loss_cases(256, (8,), ("bf16",)),
        *_op_cases(512, (8,), ("fp32",), every=False, modes=("forward", "backward")),
        _iteration(256, 1, "fp32"),
        *_network_cases(256, (1,), ("bf16",)),
        *_block_cases(256, (1,), ("bf16",)),
    ),
    # A processor with a few cores: about an hour, most of it torch.compile's.
    "cpu": (
        *(_iteration(256, 1, dtype) for dtype in _BOTH),
        _iteration(256, 4, "fp32"),
        *(_iteration(128, batch, dtype) for batch, dtype in ((1, "fp32"), (1, "bf16"), (4, "bf16"))),
        _iteration(64, 4, "fp32", dim=16),  # the demonstration's
        *(case for dtype in _BOTH for case in _translations(256, 1, dtype)),
        *_network_cases(256, (1,), _BOTH),
        *_block_cases(256, (1,), _BOTH),
        *_loss_cases(256, (1,), _BOTH),
        *_conv_cases("fp32"),
        *_conv_cases("bf16", most=1),
        *_op_cases(256, (1,), _BOTH),
        *_op_cases(256, (4,), ("bf16",), every=False),
        *_op_cases(128, (16,), ("bf16",), every=False),
        *_op_cases(1024, (1,), ("bf16",), every=False),
    ),
    # Everything that is supported: a GPU, and patience.
    "full": (
        *(c for px in (128, 256, 512, 1024) for c in _op_cases(px, (1, 4, 16), ("fp32", "bf16", "fp16"), modes=MODES)),
        *(c for px in (128, 256, 512, 1024) for c in _loss_cases(px, (1, 4, 16), ("fp32", "bf16", "fp16"))),
        *(c for px in (128, 256, 512) for c in _block_cases(px, (1, 4, 16), _BOTH)),
        *(c for px in (128, 256, 512) for c in _network_cases(px, (1, 4, 16), _BOTH)),
        *(_iteration(px, b, d) for px, b, d in product((128, 256, 512, 1024), (1, 2, 4, 8, 16), _BOTH)),
        *(c for px, b, d in product((128, 256, 512, 1024), (1, 8, 16), _BOTH) for c in _translations(px, b, d)),
    ),
}

# What a summary shows of a machine.
HEADLINES: tuple[Case, ...] = (
    *(_iteration(256, 1, dtype) for dtype in _BOTH),
    *(case for dtype in _BOTH for case in _translations(256, 1, dtype)),
)


def select(
    cases: Iterable[Case],
    levels: Iterable[str] = (),
    names: Iterable[str] = (),
    sides: Iterable[int] = (),
    batches: Iterable[int] = (),
    dtypes: Iterable[str] = (),
) -> list[Case]:
    """The cases that match every filter that is given.

    Args:
        cases: To choose from, such as a value of SETS.
        levels: Of LEVELS.
        names: Parts of names.
        sides: Heights of planes or images.
        batches: Numbers of samples.
        dtypes: Keys of DTYPES.

    Raises:
        ValueError: An unknown level or dtype, or no case is left.
    """
    cases, levels, names, sides, batches, dtypes = map(list, (cases, levels, names, sides, batches, dtypes))  # type: ignore[assignment]
    for what, given, known in (("level", levels, LEVELS), ("dtype", dtypes, DTYPES)):
        if unknown := [value for value in given if value not in known]:
            raise ValueError(f"{what} must be one of {', '.join(known)}; got {unknown[0]!r}")
    found = [
        case
        for case in cases
        if (not levels or case.level in levels)
        and (not names or any(name in case.name for name in names))
        and (not sides or case.side in sides)
        and (not batches or case.batch in batches)
        and (not dtypes or case.dtype in dtypes)
    ]
    if not found:
        raise ValueError("no case matches; `munit-fast bench --list` shows what there is")
    return found
