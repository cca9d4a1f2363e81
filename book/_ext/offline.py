"""Sphinx extension: the built book loads nothing from another host.

MathJax is copied out of the installed package sphinx-mathjax-offline into the book's static files. The
package's own extension copies its whole 15 MB; a page needs one script, its fonts and the extensions that TeX
commands load on demand. Widgets in stored outputs (progress bars) need a script from another host to be
drawn; the page leaves them out.
"""

import json
from importlib.util import find_spec
from pathlib import Path

from sphinx.errors import ExtensionError
from sphinx.util.fileutil import copy_asset

SCRIPT = "tex-chtml.js"
FOLDERS = ("output/chtml/fonts/woff-v2", "input/tex/extensions")
WIDGET = "application/vnd.jupyter.widget-view+json"


def mathjax_folder() -> Path:
    """Where the installed package keeps MathJax."""
    # Only located, never imported: a hyphen in its name makes it no module that `import` could name.
    spec = find_spec("sphinx-mathjax-offline")
    folder = Path(spec.origin).parent / "static" / "mathjax" if spec else Path()
    if not (folder / SCRIPT).is_file():
        raise ExtensionError("MathJax is missing: pip install sphinx-mathjax-offline==0.0.2")
    return folder


def use_local_mathjax(app, config):
    mathjax_folder()  # a missing package stops the build before it starts
    config.mathjax_path = f"mathjax/{SCRIPT}"


def copy_mathjax(app, error):
    if error or app.builder.format != "html":
        return
    target = Path(app.outdir, "_static", "mathjax")
    target.mkdir(parents=True, exist_ok=True)
    copy_asset(str(mathjax_folder() / SCRIPT), str(target))
    for folder in FOLDERS:
        copy_asset(str(mathjax_folder() / folder), str(target / folder))


def drop_widgets(app, docname, source):
    if not app.env.doc2path(docname).endswith(".ipynb"):
        return
    notebook = json.loads(source[0])
    notebook["metadata"].pop("widgets", None)
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            cell["outputs"] = [o for o in cell["outputs"] if WIDGET not in o.get("data", {})]
    source[0] = json.dumps(notebook)


def setup(app):
    app.connect("config-inited", use_local_mathjax)
    app.connect("source-read", drop_widgets)
    app.connect("build-finished", copy_mathjax)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
