"""Half-done work that is continued: only with the settings it was begun with."""
from __future__ import annotations  # common.config imports Paddle, which tools without it need not wait for

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.atomic_io import sha256_of, write_atomically
from common.errors import UserError

if TYPE_CHECKING:
    from common.config import Config

FILE = 'settings.json'


def of_prediction(config: Config, weights: str | os.PathLike, **more: Any) -> dict[str, Any]:
    """What the prediction for an image depends on; `more` are plain values, too."""
    return {'weights_sha256': sha256_of(weights), 'model': config.dic['model'],
            'transforms': config.val_dataset_cfg.get('transforms'), **more}


def keep(folder: str | os.PathLike, settings: Mapping[str, Any], what: str) -> None:
    """Write the settings of new work into its folder; UserError, which names `what`, if it was begun with others."""
    path = Path(folder) / FILE
    now = json.loads(json.dumps(settings))
    if path.is_file():
        try:
            before = json.loads(path.read_bytes())
        except ValueError:
            before = {}
        if other := difference(before, now):
            raise UserError(f'{what}: expected to continue it with the settings that it was begun with, found {other}; '
                            f'use those, or delete {folder} to begin anew')
    else:
        write_atomically(path, json.dumps(now, indent=1).encode())


def difference(old: Any, new: Any) -> str:
    """The first key of two JSON values in which they differ, with both values; '' for equal ones."""
    before, now = _flat(old), _flat(new)
    for key in {**before, **now}:
        if before.get(key) != now.get(key):
            return f'{key}: {before.get(key)!r:.60}, now {now.get(key)!r:.60}'
    return ''


def _flat(value: Any, key: str = '') -> dict[str, Any]:
    """{'a.b.0': leaf} of nested mappings and lists; nothing of an empty one."""
    items: Iterable[tuple[Any, Any]]
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    else:
        return {key: value}
    return {k: v for name, inner in items for k, v in _flat(inner, f'{key}.{name}' if key else str(name)).items()}
