"""Sphinx's configuration.

    python -m sphinx -j 2 -W --keep-going -b html docs build/docs

Warnings are errors. The gallery runs the examples, two at a time; what has not
changed since the last build is not run again.
"""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs" / "_extensions")]
before = [os.environ["PYTHONPATH"]] if "PYTHONPATH" in os.environ else []
os.environ["PYTHONPATH"] = os.pathsep.join([*sys.path[:2], *before])  # where examples are run

from sklearn.experimental import enable_iterative_imputer  # noqa: E402, F401, an example has it

import skvae  # noqa: E402

project, author, copyright = "skvae", "The skvae developers", "The skvae developers"
version = release = skvae.__version__
extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "numpydoc",
    "myst_parser",
    "sphinx_gallery.gen_gallery",
    "api_pages",
    "internal_links",
    "mathml",
    "messages",
]
smartquotes = False  # quotes stand as in the code
exclude_patterns = ["_*"]
suppress_warnings = ["config.cache"]

# -- pages ----------------------------------------------------------------------------------------

myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
default_role = "literal"
html_math_renderer = "mathml"  # no script, and nothing from elsewhere: browsers know it
html_theme = "pydata_sphinx_theme"
html_title = "skvae"
html_static_path = ["_static"]
html_css_files = ["skvae.css"]
html_copy_source = False
html_sidebars = {page: [] for page in ("index", "benchmarks", "limits")}  # they have no pages below
html_theme_options = {
    "show_prev_next": False,
    "secondary_sidebar_items": ["page-toc"],
    "footer_end": [],
}

PAGES_OF_ELSEWHERE = {"../CONTRIBUTING.md": "contributing.md"}  # the same text, as a page here


def setup(app):
    """Let links to files of the repository that are pages, too, lead to these."""

    def lead_to_pages(app, name, content):
        for path, page in PAGES_OF_ELSEWHERE.items():
            content[0] = content[0].replace(f"]({path})", f"]({page})")

    app.connect("source-read", lead_to_pages)


# -- the API --------------------------------------------------------------------------------------

toc_object_entries_show_parents = "hide"
autosummary_generate = False  # api_pages writes the pages, from what the package offers
autodoc_typehints = "none"  # the docstrings have them
autodoc_member_order = "bysource"
numpydoc_show_class_members = False
# The codes that tests/test_house.py holds all public docstrings to.
numpydoc_validation_checks = {
    *("GL05", "GL06", "GL07", "GL10"),
    *("SS01", "SS03", "SS04", "PR02", "PR03", "PR04", "PR05", "PR06", "PR08", "PR09", "PR10"),
    *("RT05", "YD01"),
}

# -- the gallery ----------------------------------------------------------------------------------

# CI runs them as scripts: two take minutes, and workers of loky cannot start those of Dask.
SHOWN_ONLY = ("topics", "mixed_table", "dask_cluster")
sphinx_gallery_conf = {
    "examples_dirs": str(ROOT / "examples"),
    "gallery_dirs": "gallery",
    "filename_pattern": rf"/(?!(?:{'|'.join(SHOWN_ONLY)})\.py)\w+\.py",
    "doc_module": ("skvae",),
    "backreferences_dir": "gallery/backreferences",
    "within_subsection_order": "ExampleTitleSortKey",
    "abort_on_example_error": True,
    "parallel": True,
    "reset_argv": "gallery_scripts.as_script",
    "capture_repr": (),
    "download_all_examples": False,
    "show_signature": False,
    "min_reported_time": 1e9,
    "plot_gallery": "True",
}
