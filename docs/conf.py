"""Sphinx configuration. `make docs` builds docs/_build/html without a network, with warnings as errors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from sphinx.application import Sphinx

import munit_fast

DOCS = Path(__file__).parent
ROOT = DOCS.parent

project = "munit-fast"
author = "the munit-fast contributors"
release = version = munit_fast.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
exclude_patterns = ["_build", "browser/node_modules", "pretrained/sketches/SOURCES.md"]

# Sphinx reads pages inside docs/ only, so the notebook is copied in. It is executed by every build.
GENERATED = DOCS / "_generated"
shutil.rmtree(GENERATED, ignore_errors=True)  # a notebook that was renamed would stay, a page without a place
GENERATED.mkdir()
shutil.copyfile(ROOT / "examples" / "quickstart.ipynb", GENERATED / "quickstart.ipynb")
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 120
nb_merge_streams = True

myst_enable_extensions = ["colon_fence", "substitution"]
pad_times = json.loads((DOCS / "browser" / "measured.json").read_text())
pad_packages = json.loads((DOCS / "browser" / "package.json").read_text())["dependencies"]
myst_substitutions = {"pad": {**pad_times, "runtime": pad_packages["onnxruntime-web"]}}
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
python_use_unqualified_type_names = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True

default_role = "code"  # `name` in a docstring

# Without a network there is no index of other projects to resolve their names in; type aliases have no page.
nitpick_ignore_regex = [
    ("py:.*", r"(torch|numpy|PIL|pathlib|collections|typing|pydantic|rich|os|contextlib)\..*"),
    ("py:.*", r"(Tensor|nn|np|npt|Image|Path|Module|Dropout|BatchNorm|Blocks)(\..*)?"),
    (
        "py:.*",
        r"(AnyPictures?|Array|Crop|Direction|Hyperparameters|Noise|Pages|Params|Scalar|(.*\.)?_Source|TrainingNoise)",
    ),
]

html_theme = "pydata_sphinx_theme"
html_title = "munit-fast"
html_context = {"default_mode": "auto"}  # without it the theme complains in every reader's console
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = html_show_sourcelink = False
html_use_index = html_domain_indices = False  # the search finds names
html_theme_options = {
    "navbar_end": ["theme-switcher"],
    "secondary_sidebar_items": ["page-toc"],
    "show_prev_next": True,
    "footer_start": ["copyright"],
    "footer_end": ["theme-version"],
    "pygments_light_style": "a11y-high-contrast-light",
}
html_sidebars = {"index": []}
copyright = "the munit-fast contributors; code under Apache-2.0"
copybutton_exclude = ".linenos, .gp, .go"


def skip_tuple_fields(app: object, what: str, name: str, obj: object, skip: bool, options: object) -> bool | None:
    """Leave out the fields of named tuples, which the class's own docstring describes."""
    return True if (getattr(obj, "__doc__", None) or "").startswith("Alias for field number") else None


def setup(app: Sphinx) -> None:
    if (DOCS / "_static" / "browser" / "manifest.json").exists():  # `make docs` made it, with npm
        app.tags.add("drawing_pad")
    app.connect("autodoc-skip-member", skip_tuple_fields)
