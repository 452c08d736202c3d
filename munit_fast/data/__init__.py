"""Image files in, batches out.

``images`` decodes, resizes and saves single images, ``grid`` joins several; ``image_lists`` finds them; ``datasets``
holds the images of a domain; ``sources`` opens those that a configuration names; ``unpaired`` draws endless unpaired
training batches from two domains. ``prepare`` makes complete data sets in the folder layout trainA, trainB, testA,
testB.
"""

from munit_fast.data.datasets import ImageSet, centre_crop, display_images
from munit_fast.data.grid import make_grid
from munit_fast.data.image_lists import list_images, read_list
from munit_fast.data.images import (
    IMAGE_EXTENSIONS,
    MAX_PIXELS,
    ImageError,
    decode_image,
    decode_pillow,
    resize_short_side,
    save_image,
    to_bytes,
    to_model_range,
    to_pillow,
)
from munit_fast.data.prepare.edges import prepare_edges
from munit_fast.data.prepare.openmoji import prepare_openmoji
from munit_fast.data.prepare.writing import DatasetError
from munit_fast.data.unpaired import UnpairedBatches

__all__ = [
    "IMAGE_EXTENSIONS",
    "MAX_PIXELS",
    "DatasetError",
    "ImageError",
    "ImageSet",
    "UnpairedBatches",
    "centre_crop",
    "decode_image",
    "decode_pillow",
    "display_images",
    "list_images",
    "make_grid",
    "prepare_edges",
    "prepare_openmoji",
    "read_list",
    "resize_short_side",
    "save_image",
    "to_bytes",
    "to_model_range",
    "to_pillow",
]
