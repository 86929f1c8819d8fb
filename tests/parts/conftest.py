"""The toy cluster of tests/engine and the managers of tests/fits are on the path."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "fits"))
