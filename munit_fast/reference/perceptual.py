"""The domain-invariant perceptual loss (section 5.1 of the MUNIT paper): VGG16 features, instance-normed."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_STAGES = ((3, 64, 64), (64, 128, 128), (128, 256, 256, 256), (256, 512, 512, 512), (512, 512, 512, 512))
_CAFFE_MEAN_BGR = (103.939, 116.779, 123.680)


class Vgg16(nn.Module):
    """VGG16's convolutions up to relu5_3, with the layer names conv1_1 … conv5_3.

    Shape: [N, 3, H, W], BGR in [0, 255] with the Caffe means removed -> [N, 512, H/16, W/16].
    """

    def __init__(self) -> None:
        super().__init__()
        for i, channels in enumerate(_STAGES, start=1):
            for j, (c_in, c_out) in enumerate(zip(channels, channels[1:]), start=1):
                self.add_module(f"conv{i}_{j}", nn.Conv2d(c_in, c_out, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """The features relu5_3 [N, 512, H/16, W/16] of x [N, 3, H, W], BGR in [0, 255] with the Caffe means removed."""
        for i, channels in enumerate(_STAGES, start=1):
            if i > 1:
                x = F.max_pool2d(x, 2, 2)
            for j in range(1, len(channels)):
                x = F.relu(self.get_submodule(f"conv{i}_{j}")(x))
        return x

    @classmethod
    def from_file(cls, path: str | Path) -> Vgg16:
        """A frozen Vgg16 with the Caffe weights of a file; nothing is downloaded.

        Args:
            path: a state_dict with keys conv1_1.weight … conv5_3.bias.

        Raises:
            FileNotFoundError: there is no such file; the message says what to do.
            ValueError: it is not such a state_dict.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(
                f"vgg_w > 0 needs the VGG16 weights of the published implementation at {path} "
                "(a state_dict with keys conv1_1.weight … conv5_3.bias): put the file there, or set vgg_w: 0"
            )
        net = cls()
        try:
            net.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        except Exception as error:  # a foreign file can make the unpickler raise almost anything
            raise ValueError(f"{path}: not a VGG16 state_dict with keys conv1_1.weight … conv5_3.bias") from error
        return net.eval().requires_grad_(False)


def _vgg_preprocess(x: Tensor) -> Tensor:
    """RGB in [-1, 1] -> BGR in [0, 255] minus the Caffe means; one channel is repeated."""
    bgr = x.expand(-1, 3, -1, -1).flip(1) if x.shape[1] == 1 else x.flip(1)
    # Filled where x is: a copy from the host could not be captured in a CUDA graph.
    means = torch.stack([bgr.new_full((1, 1), mean) for mean in _CAFFE_MEAN_BGR])
    return (bgr + 1) * 127.5 - means


def perceptual_loss(vgg: nn.Module, image: Tensor, target: Tensor) -> Tensor:
    """mean((IN(vgg(image)) - IN(vgg(target)))²), the domain-invariant perceptual loss (section 5.1 of the paper).

    Args:
        vgg: a `Vgg16`.
        image: [N, C, H, W] in [-1, 1], C = 1 or 3 (RGB).
        target: like image.

    Returns:
        A scalar, with gradient to both images.
    """
    features, wanted = vgg(_vgg_preprocess(image)), vgg(_vgg_preprocess(target))
    return torch.mean((F.instance_norm(features) - F.instance_norm(wanted)) ** 2)
