"""Configuration of the documentation."""

from __future__ import annotations

import importlib
import sys
import tomllib
from pathlib import Path

from sphinx.pycode import ModuleAnalyzer

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import inventories  # noqa: E402

project = "creche"
author = "The creche developers"
copyright = "The creche developers"
release = tomllib.loads((HERE.parent / "pyproject.toml").read_text())["project"]["version"]
version = release

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.intersphinx",
    "sphinx_copybutton",
]
source_suffix = [".md", ".rst"]
exclude_patterns = ["_build"]
nitpicky = True
nitpick_ignore_regex = [
    ("py:class", r"creche\.(sync\.|cluster\.)?_.*"),
    ("py:class", r"creche\.[\w.]+\.(T|T_co)"),
    ("py:obj", r"creche\.[\w.]+\.(T|T_co)"),
    ("py:class", r"(T|P|T_co|PosArgsT|SelfT|EventLoop|CallStatus)"),
    ("py:class", r"\*?PosArgsT.*"),
    ("py:obj", r"creche\._.*"),
    ("py:class", r".*Unpack.*"),
]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True, "show-inheritance": True}

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

# The build needs no network: the parts of other projects' inventories that we link to are our own.
intersphinx_mapping = inventories.write(HERE / "_build" / "inventories")

html_theme = "furo"
html_title = "creche"
html_static_path = ["_static"]


def show_where_it_is() -> None:
    """Public classes say that they are of ``creche``: tell autodoc where their source is."""
    for package in ("creche", "creche.sync"):
        show_where_parts_are(importlib.import_module(package).__name__)


def show_where_parts_are(package: str) -> None:
    public = ModuleAnalyzer.for_module(package)
    public.analyze()
    for name in sorted(sys.modules):
        if name.startswith(f"{package}._"):
            private = ModuleAnalyzer.for_module(name)
            private.analyze()
            public.attr_docs |= private.attr_docs
            public.tagorder |= private.tagorder


show_where_it_is()
