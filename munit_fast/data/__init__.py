"""Image files in, batches out.

``sources`` finds files, in folders, lists, archives and data sets of the Hub; ``readers`` turns a file into a
``picture``, with what its values mean; ``values`` brings it to the networks' channels and range; ``images`` does all
three for one file, resizes and saves, and ``grid`` joins several. ``datasets`` holds the images of a domain;
``configured`` opens those that a configuration names; ``unpaired`` draws endless unpaired training batches from two
domains, changed by ``augmentation``. ``prepare`` makes complete data sets in the folder layout trainA, trainB, testA,
testB.
"""

from munit_fast.data.augmentation import Augmentation
from munit_fast.data.datasets import ImageSet, centre_crop, display_images
from munit_fast.data.grid import make_grid
from munit_fast.data.images import (
    decode_image,
    decode_pillow,
    resize_short_side,
    save_image,
    to_model_range,
    to_pillow,
)
from munit_fast.data.picture import MAX_PIXELS, ImageError, Picture
from munit_fast.data.prepare.edges import prepare_edges
from munit_fast.data.prepare.openmoji import prepare_openmoji
from munit_fast.data.prepare.writing import DatasetError
from munit_fast.data.readers import IMAGE_EXTENSIONS
from munit_fast.data.sources import FileSource, ImageSource, list_images, open_source, read_list
from munit_fast.data.unpaired import UnpairedBatches
from munit_fast.data.values import PixelFormat, to_bytes

__all__ = [
    "IMAGE_EXTENSIONS",
    "MAX_PIXELS",
    "Augmentation",
    "DatasetError",
    "FileSource",
    "ImageError",
    "ImageSet",
    "ImageSource",
    "Picture",
    "PixelFormat",
    "UnpairedBatches",
    "centre_crop",
    "decode_image",
    "decode_pillow",
    "display_images",
    "list_images",
    "make_grid",
    "open_source",
    "prepare_edges",
    "prepare_openmoji",
    "read_list",
    "resize_short_side",
    "save_image",
    "to_bytes",
    "to_model_range",
    "to_pillow",
]
