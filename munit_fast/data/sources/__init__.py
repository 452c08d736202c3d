"""Where images come from: folders, lists of files, archives, data sets of the Hugging Face Hub."""

from munit_fast.data.sources.archives import ArchiveSource
from munit_fast.data.sources.bands import BandSource
from munit_fast.data.sources.base import Entry, ImageSource, MissingClass, Pages
from munit_fast.data.sources.folders import FileSource, open_file
from munit_fast.data.sources.huggingface import DatasetSource
from munit_fast.data.sources.listing import list_images
from munit_fast.data.sources.lists import read_list
from munit_fast.data.sources.table import KINDS, open_source
from munit_fast.data.sources.tars import TarSource
from munit_fast.data.sources.zips import ZipSource

__all__ = [
    "KINDS",
    "ArchiveSource",
    "BandSource",
    "DatasetSource",
    "Entry",
    "FileSource",
    "ImageSource",
    "MissingClass",
    "Pages",
    "TarSource",
    "ZipSource",
    "list_images",
    "open_file",
    "open_source",
    "read_list",
]
