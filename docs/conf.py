"""The site: `make docs` builds it from the pages as they are, without a network, warnings as errors.

The source directory is the repository, not `docs/`: the README, the page of the plugins and the other pages outside
`docs/` are pages of the site where they stand, so that one relative link works on a code host and on the site.
"""

from __future__ import annotations

import sys
from importlib.metadata import version as installed
from pathlib import Path

DOCS = Path(__file__).resolve().parent
sys.path[:0] = [str(DOCS / "_site"), str(DOCS.parent / "engine"), str(DOCS.parent / "plugins")]

from index import outside  # noqa: E402 - it lies in docs/_site, which the line above makes known

project = "Heptad"
author = copyright = "the authors of Heptad"
version = release = installed("heptad")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.intersphinx",
    "index",  # these are in docs/_site
    "names",
    "reference",
    "command_line",
    "notebooks",
]

root_doc = "docs/README"
include_patterns = ["docs/**", *outside((DOCS / "README.md").read_text(encoding="utf-8"))]
# What is no page is not searched either: the environment of the tests alone has a hundred thousand files.
exclude_patterns = ["docs/_site", "docs/inventories", "engine", "tests", "tools", "benchmarks", "examples", "runs"]
exclude_patterns += ["build", "dist", "plugins/heptad_plugins", ".*", "**/.*", "**/__pycache__"]

default_role = "code"
nitpicky = True
# Type variables, aliases, and types of the engine's own that a user neither constructs nor is given.
nitpick_ignore = [
    ("py:class", name)
    for name in (
        *("heptad.plugin.marks.H", "heptad.engine.F", "heptad.smoke.rates.RangeEngine"),
        *("ComputeLoss", "EvaluationPlace", "Counters", "heptad.record.counters.Counters"),
        *("heptad.machine.Machine", "heptad.ranks.strategy.Strategy", "heptad_plugins.optimizer_monitor.HasWriter"),
        *("heptad.record.chunk.Chunk", "heptad.checkpoints.files.Files", "heptad.history.journal.file.JournaledRun"),
    )
]

myst_heading_anchors = 6  # as code hosts make them

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 88
python_use_unqualified_type_names = True
add_module_names = False
napoleon_numpy_docstring = False
napoleon_use_ivar = True
toc_object_entries_show_parents = "hide"

# Inventories of the names that the reference links to, so that the site is the same with and without a network;
# `tools/inventories.py` writes them.
intersphinx_mapping = {
    "python": ("https://docs.python.org/3", "docs/inventories/python.inv"),
    "torch": ("https://docs.pytorch.org/docs/stable", "docs/inventories/torch.inv"),
    "numpy": ("https://numpy.org/doc/stable", "docs/inventories/numpy.inv"),
    "pandas": ("https://pandas.pydata.org/docs", "docs/inventories/pandas.inv"),
    "optuna": ("https://optuna.readthedocs.io/en/stable", "docs/inventories/optuna.inv"),
    "opentelemetry": (
        "https://opentelemetry-python.readthedocs.io/en/latest",
        "docs/inventories/opentelemetry-api.inv",
    ),
}

html_theme = "furo"
html_title = f"Heptad {version}"
html_static_path = ["_site/static"]
html_css_files = ["site.css"]
templates_path = ["_site/templates"]
html_additional_pages = {"index": "to_the_root.html"}
html_copy_source = False
html_show_sphinx = False
