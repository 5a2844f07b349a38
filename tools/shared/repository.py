"""The one place that lets `python tools/x.py` work from any directory.

Python puts the script's own folder, tools/, first on sys.path, so a script finds this module as `shared.repository`
before it finds anything else of the repository. `python -m tools.x`, imports and tests need none of this.
"""
import sys
from pathlib import Path


def import_from_root() -> None:
    """Put the repository root where Python has put tools/: first on sys.path."""
    sys.path[0] = str(Path(__file__).resolve().parents[2])
