"""The fused operators `torch.ops.munit_fast.*`: one file for each family, with schema, fake, autograd and choice.

Raw operators take and give plain tensors and choose their backend inside, so that torch.compile and torch.export see
one opaque call. `munit_fast.functional` checks the arguments before they come here.
"""

from munit_fast.ops.epilogue import epilogue
from munit_fast.ops.losses import l1_losses, lsgan_loss

__all__ = ["epilogue", "l1_losses", "lsgan_loss"]
