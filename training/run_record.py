"""The run record, run.json in a run's folder: how each start was made, so that it can be repeated and compared."""
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from common.atomic_io import write_atomically
from common.errors import UserError
from common.processor import processor

FILE = 'run.json'
PACKAGES = ('paddlepaddle', 'paddlepaddle-gpu', 'paddleseg', 'numpy', 'opencv-python-headless', 'pillow')
ROOT = Path(__file__).resolve().parents[1]
# Entries on which the last bits of a result depend, besides code and data.
AFFECTS_ROUNDING = ('processor', 'instructions', 'device', 'threads', 'processes')


def entry(arguments: Mapping[str, Any], device: str, threads: int, processes: int, iteration: int) -> dict[str, Any]:
    """One start of a run as plain values for JSON.

    arguments: the flags as a mapping. device: Paddle's name, like 'cpu' or 'gpu:0'. threads: of each process.
    iteration: the iteration at which this start begins, 0 for a new run.
    """
    return {'started': datetime.now(timezone.utc).isoformat(timespec='seconds'), 'command': [sys.executable, *sys.argv],
            'arguments': dict(arguments), 'iteration': iteration, 'versions': _versions(), 'git': _git(),
            'machine': {'host': platform.node(), **processor(), 'cores': os.cpu_count(),
                        'device': device.partition(':')[0], 'threads': threads, 'processes': processes}}


def read(folder: str | os.PathLike) -> list[dict[str, Any]]:
    """The entries of a run's folder, oldest first; [] if there are none. UserError for any other kind of file."""
    path = Path(folder) / FILE
    if not path.is_file():
        return []
    try:
        starts = json.loads(path.read_text())['starts']
        return [{**start, 'machine': dict(start['machine'])} for start in starts]
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f'{path}: expected the starts of a run as train.py writes them, found another file; move it '
                         'away') from error


def append(folder: str | os.PathLike, start: dict[str, Any], earlier: Sequence[dict[str, Any]] | None = None) -> None:
    """Add an entry to run.json, atomically. earlier: entries to begin with if the folder has no run.json."""
    starts = read(folder) or list(earlier or ())
    write_atomically(Path(folder) / FILE, json.dumps({'starts': [*starts, start]}, indent=1).encode())


def difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The differences of two entries' machines that may change a result's last bits, as text; '' if there are none."""
    old, new = before['machine'], now['machine']
    changed = [key for key in AFFECTS_ROUNDING if old.get(key) != new.get(key)]
    return ', '.join(_changed(key, old.get(key), new.get(key)) for key in changed)


def _changed(key: str, old: Any, new: Any) -> str:
    if key == 'instructions':  # the lists are long: only their difference
        lost, gained = sorted(set(old or ()) - set(new or ())), sorted(set(new or ()) - set(old or ()))
        return ' '.join(['instructions', *(f'-{name}' for name in lost), *(f'+{name}' for name in gained)])
    return f'{key} {old} -> {new}'


def _versions() -> dict[str, str]:
    versions = {'python': platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _git() -> dict[str, Any] | None:
    """{'commit', 'changed'} of this repository; None if it is not a checkout or git is missing."""
    def git(*arguments: str) -> str:
        return subprocess.run(['git', '-C', str(ROOT), *arguments], capture_output=True, text=True, timeout=20,
                              check=True).stdout.strip()

    try:
        return {'commit': git('rev-parse', 'HEAD'), 'changed': bool(git('status', '--porcelain', '-uno'))}
    except (OSError, subprocess.SubprocessError):
        return None
