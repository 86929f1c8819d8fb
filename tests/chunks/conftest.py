"""tests/fits/harness.py on the path: traces whose segments have kinds, a toy cluster with one tier."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "fits"))
