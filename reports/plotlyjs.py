"""The plotly.js that the plotly package carries, read as a file: importing plotly is slow."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from kvsim.errors import KvsimError


def plotly_js() -> str:
    """The minified library, safe inside a script element.

    Raises:
        KvsimError: plotly is not installed, or its package carries no plotly.min.js.
    """
    found = find_spec("plotly")
    folders = list(found.submodule_search_locations or ()) if found else []
    for folder in folders:
        path = Path(folder) / "package_data" / "plotly.min.js"
        if path.is_file():
            return path.read_text(encoding="utf-8").replace("</script", "<\\/script")
    where = f"no package_data/plotly.min.js in {folders[0]}" if folders else "plotly is not installed"
    raise KvsimError(f"report: {where}; pip install plotly, or run with --no-report")
