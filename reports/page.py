"""The frame of every page: one file that loads nothing from elsewhere when it is opened."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from html import escape
from pathlib import Path

from kvsim.errors import KvsimError
from kvsim.reports.theme import SCRIPT, STYLE


def page(title: str, lead: str, body: str, footer: str, library: str) -> str:
    """The page as text; ``body`` is HTML, ``library`` the text of plotly.js, all else plain text."""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)} – kvsim</title>
<style>{STYLE}</style>
</head>
<body>
<header><h1>{escape(title)}</h1><p>{escape(lead)}</p></header>
{body}
<footer>{escape(footer)}</footer>
<script>{library}</script>
<script>{SCRIPT}</script>
</body>
</html>
"""


def write_whole(path: Path, text: str) -> None:
    """Write ``path``; it appears complete or not at all.

    Raises:
        KvsimError: it cannot be written.
    """
    new = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        new.write_text(text, encoding="utf-8")
        os.replace(new, path)
    except OSError as error:
        raise KvsimError(f"{path}: cannot be written: {error.strerror}") from None
    finally:
        with suppress(OSError):
            new.unlink(missing_ok=True)
