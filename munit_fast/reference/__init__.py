"""The specification: MUNIT and UNIT in plain PyTorch.

Everything here is written to be read beside the papers (Huang et al., "Multimodal Unsupervised Image-to-Image
Translation", ECCV 2018, arXiv 1804.04732; Liu et al., "Unsupervised Image-to-Image Translation Networks", NeurIPS
2017, arXiv 1703.00848). It imports torch and, to read and write the published files, `munit_fast.io`; it runs on any
device in any float dtype, and produces the parameters, the state_dict keys and the numbers of the published
implementation. Faster code is held to it; it is never edited to match faster code.
"""

from munit_fast.io.checkpoints import upgrade_state_dict

from .layers import AdaptiveInstanceNorm2d, Conv2dBlock, LayerNorm, LinearBlock, ResBlock, SpectralNorm
from .networks import (
    MLP,
    AdaINGen,
    ContentEncoder,
    Decoder,
    MsImageDis,
    StyleEncoder,
    VAEGen,
    split_adain_params,
)
from .perceptual import Vgg16, perceptual_loss
from .residual import ResidualDis
from .trainers import MUNIT_Trainer, UNIT_Trainer
from .weights_init import weights_init

__all__ = [
    "MLP",
    "AdaINGen",
    "AdaptiveInstanceNorm2d",
    "ContentEncoder",
    "Conv2dBlock",
    "Decoder",
    "LayerNorm",
    "LinearBlock",
    "MUNIT_Trainer",
    "MsImageDis",
    "ResBlock",
    "ResidualDis",
    "SpectralNorm",
    "StyleEncoder",
    "UNIT_Trainer",
    "VAEGen",
    "Vgg16",
    "perceptual_loss",
    "split_adain_params",
    "upgrade_state_dict",
    "weights_init",
]
