"""Sphinx's configuration: `python -m sphinx -W -b html docs docs/_build`."""

import pathlib
import re
import shutil
import sys

DOCS = pathlib.Path(__file__).parent
ROOT = DOCS.parent
sys.path.insert(0, str(ROOT))  # this checkout, not an installed copy

from squeeze_jax.version import __version__  # noqa: E402

project = "squeeze_jax"
author = "The squeeze_jax authors"
copyright = "the squeeze_jax authors"
version = release = __version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "jupyter_execute"]
html_theme = "furo"
html_title = f"squeeze_jax {release}"

nb_execution_mode = "off"  # the tests run the notebooks; here are the pictures that are stored in them
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_google_docstring = True
napoleon_numpy_docstring = False

# Sphinx reads nothing outside of its own folder.
NOTEBOOKS = DOCS / "notebooks"


def copy_notebooks() -> None:
    """Copies the notebooks that have changed; the copies are ignored by git."""
    NOTEBOOKS.mkdir(exist_ok=True)
    sources = {path.name: path for path in (ROOT / "notebooks").glob("*.ipynb")}
    for stale in NOTEBOOKS.glob("*.ipynb"):
        if stale.name not in sources:
            stale.unlink()
    for name, source in sources.items():
        target = NOTEBOOKS / name
        if not target.exists() or target.read_bytes() != source.read_bytes():
            shutil.copy(source, target)


def as_restructured_text(app, what, name, thing, options, lines: list[str]) -> None:
    """Our docstrings are plain text: `name` is code, and * and | are what they look like."""
    for i, line in enumerate(lines):
        parts = re.split(r"(`+[^`]+`+)", line)
        lines[i] = "".join(
            f"``{part.strip('`')}``" if part.startswith("`") else re.sub(r"([*|]|(?<=\w)_(?=\W|$))", r"\\\1", part)
            for part in parts
        )


def setup(app) -> None:
    copy_notebooks()
    app.connect("autodoc-process-docstring", as_restructured_text, priority=100)  # before napoleon
