"""Where images come from: folders and lists of files."""

from munit_fast.data.sources.bands import BandSource
from munit_fast.data.sources.base import Entry, ImageSource, Pages
from munit_fast.data.sources.folders import FileSource, list_images, open_file
from munit_fast.data.sources.lists import read_list

__all__ = ["BandSource", "Entry", "FileSource", "ImageSource", "Pages", "list_images", "open_file", "read_list"]
