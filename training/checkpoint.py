"""Checkpoints in PaddleSeg's layout: iter_N/model.pdparams, iter_N/model.pdopt, best_model/model.pdparams.

Beside them iter_N/state.json holds what PaddleSeg does not save (iteration, best score, the log's averages) and the
SHA-256 of every file. A checkpoint is written into a temporary folder, flushed to disk and renamed: under its final
name it is complete, unless the disk damaged it later, which the checksums detect.

No random states are saved because there are none: the order of samples, their augmentation and dropout depend on
(seed, iteration, rank) alone.
"""
import json
import logging
import math
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import paddle

from common.atomic_io import flush_folder, sha256_of, write_atomically
from common.errors import FileError, UserError
from models.weight_files import NAME_TABLE, read_state
from models.weights import load_weights

logger = logging.getLogger(__name__)

WEIGHTS, OPTIMIZER, EMA, SCALER = 'model.pdparams', 'model.pdopt', 'ema_model.pdparams', 'scaler.pd'
STATE = 'state.json'
Folder = str | os.PathLike


def save(save_dir: Folder, iteration: int, model: paddle.nn.Layer, optimizer: paddle.optimizer.Optimizer,
         state: dict[str, Any], keep_max: int, ema: Any = None, scaler: Any = None) -> Path:
    """Write save_dir/iter_{iteration}, then remove the oldest of it and those before it beyond keep_max (0: none).

    ema: a training.ema.EMA, scaler: a paddle.amp.GradScaler, or None. Raises FileError with one line if it cannot be
    written; earlier checkpoints stay complete.
    """
    folder = Path(save_dir) / f'iter_{iteration}'
    if not damage(folder):
        return folder  # written just before the last stop
    temporary = folder.with_name(f'.{folder.name}.tmp')
    shutil.rmtree(temporary, ignore_errors=True)
    objects = {WEIGHTS: model, OPTIMIZER: optimizer, EMA: ema, SCALER: scaler}
    try:
        temporary.mkdir(parents=True)
        for name, saved in objects.items():
            if saved is not None:
                paddle.save(saved.state_dict(), str(temporary / name))
        checksums = {file.name: _flushed_checksum(file) for file in sorted(temporary.iterdir())}
        _write_state(temporary, {**state, 'iteration': iteration, 'sha256': checksums})
        shutil.rmtree(folder, ignore_errors=True)  # a damaged one
        temporary.rename(folder)
        flush_folder(folder.parent)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise FileError(f'{folder}: expected to write a checkpoint, found "{error.strerror or error}"; the checkpoints '
                      'before it are whole: make room and continue with --resume auto') from error
    if keep_max > 0:
        known = _checkpoints(save_dir)  # a damaged one may be newer than this one
        for old in known[:known.index(folder) + 1][:-keep_max]:
            shutil.rmtree(old)
    return folder


def update_state(folder: Folder, **changes: Any) -> None:
    """Change entries of a checkpoint's state.json, atomically."""
    state = _read_state(folder)
    state.update(changes)
    _write_state(folder, state)


def save_best(save_dir: Folder, model: paddle.nn.Layer, folder: str = 'best_model', name: str = WEIGHTS) -> None:
    """Write best_model/model.pdparams, atomically."""
    target = Path(save_dir) / folder
    target.mkdir(parents=True, exist_ok=True)
    temporary = target / f'.{name}.tmp'
    paddle.save(model.state_dict(), str(temporary))
    _flushed_checksum(temporary)
    os.replace(temporary, target / name)


def resume(folder: Folder, model: paddle.nn.Layer, optimizer: paddle.optimizer.Optimizer, ema: Any = None,
           scaler: Any = None) -> dict[str, Any]:
    """Load a checkpoint; returns its state with 'iteration', which for PaddleSeg's checkpoints is in the name only."""
    folder = Path(folder)
    for name in (WEIGHTS, OPTIMIZER):
        if not (folder / name).is_file():
            found = ', '.join(sorted(p.name for p in folder.iterdir())) if folder.is_dir() else 'no such folder'
            raise UserError(f'--resume_model {folder}: expected a checkpoint with {name}, found {found}; '
                             'pass a folder like output/iter_1000')
    if (folder / STATE).is_file():
        if problem := damage(folder):
            raise UserError(f'--resume_model {folder}: expected a whole checkpoint, found {problem}; '
                             'resume from another, or with --resume auto from the newest whole one')
        state = _read_state(folder)
    elif (iteration := _iteration(folder)) is not None:
        state = {'iteration': iteration}
    else:
        raise UserError(f'--resume_model {folder}: expected a folder named iter_N or one with state.json, found '
                         'neither, so the iteration is unknown; rename it')
    load_weights(model, str(folder / WEIGHTS))
    moments = _renamed(_tensors(_read_mapping(folder / OPTIMIZER, 'an optimizer state')), folder / WEIGHTS, model)
    _set(optimizer.set_state_dict, moments, folder / OPTIMIZER)
    for name, target in ((EMA, ema), (SCALER, scaler)):
        if target is not None:
            if not (folder / name).is_file():
                raise UserError(f'--resume_model {folder}: expected {name}, found none: the run had this option off; '
                                 'continue as it was started')
            loaded = _read_mapping(folder / name, 'a state')
            if name == SCALER:  # Paddle's GradScaler has no set_state_dict, and its state is numbers and one array
                _set(target.load_state_dict, loaded, folder / name)
            else:
                loaded.pop(NAME_TABLE, None)
                _set(target.set_state_dict, _tensors(loaded), folder / name)
    return state


def _read_mapping(path: Path, kind: str) -> dict[str, Any]:
    found = read_state(path, kind)
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise UserError(f'{path}: expected {kind}, found {type(found).__name__}; resume from another checkpoint')
    return found


def _set(load: Callable[[Any], Any], state: dict[str, Any], path: Path) -> None:
    try:
        load(state)
    except UserError:
        raise
    except Exception as error:  # Paddle asserts what it expects, or stumbles over it
        reason = ' '.join(str(error).split())[:120]
        raise UserError(f'{path}: expected a state of this config\'s model and optimizer, found another '
                        f'({type(error).__name__}: {reason}); resume with the config of that run, or from another '
                        'checkpoint') from error


def latest(save_dir: Folder) -> Path | None:
    """The newest undamaged checkpoint of a run, or None; damaged ones are logged and skipped."""
    for folder in reversed(_checkpoints(save_dir)):
        problem = damage(folder)
        if not problem:
            return folder
        logger.warning('%s is skipped: %s', folder, problem)
    return None


def damage(folder: Folder) -> str:
    """A short description of a checkpoint's damage; '' if every file matches its checksum."""
    try:
        checksums = dict(_read_state(folder)['sha256'])
    except FileNotFoundError:
        return f'{STATE} is missing'
    except (ValueError, KeyError, TypeError, RecursionError):
        return f'{STATE} is damaged'
    for name, expected in checksums.items():
        if os.path.basename(str(name)) != name:
            return f'{STATE} is damaged'
        if not (Path(folder) / name).is_file():
            return f'{name} is missing'
        if sha256_of(Path(folder) / name) != expected:
            return f'{name} is damaged (its checksum differs)'
    return ''


def check_fresh(save_dir: Folder) -> None:
    """UserError if a new run would overwrite the checkpoints in its folder one by one."""
    found = _checkpoints(save_dir)
    if found:
        raise UserError(f'--save_dir {save_dir}: expected a folder without checkpoints, found {len(found)} up to '
                         f'{found[-1].name}; continue with --resume auto, or choose another --save_dir')


def check_newest(save_dir: Folder, resumed: Folder) -> None:
    """UserError if a run that continues from `resumed` would come upon newer checkpoints in its folder."""
    newest = latest(save_dir)
    if newest and (_iteration(newest) or 0) > (iteration := _saved_iteration(resumed)):
        raise UserError(f'--resume_model {resumed}: expected no newer checkpoint than iteration {iteration} in '
                        f'--save_dir {save_dir}, found {newest.name}; continue from it with --resume auto, or choose '
                        'another --save_dir')


def _saved_iteration(folder: Folder) -> float:
    """The iteration of a checkpoint; infinity if it is unknown (resume() then says why)."""
    try:
        return int(_read_state(folder)['iteration'])
    except (OSError, ValueError, TypeError, KeyError):
        number = _iteration(folder)
        return math.inf if number is None else number


def _renamed(optimizer_state: dict[str, Any], weights: Path, model: paddle.nn.Layer) -> dict[str, Any]:
    """The optimizer state under this process's parameter names.

    Paddle keys it by names like conv2d_7.w_0, which count the layers built in the process so far; the weights file
    maps them to the entries of the state dict.
    """
    current = {name: tensor.name for name, tensor in model.state_dict().items()}
    table = read_state(weights).get(NAME_TABLE, {})
    if not isinstance(table, dict) or not all(isinstance(old, str) for old in table.values()):
        raise UserError(f'{weights}: expected a table of parameter names under {NAME_TABLE}, found something else; '
                        'resume from another checkpoint')
    renaming = {old: current[name] for name, old in table.items() if name in current}

    def rename(key: str) -> str:
        head, tail = key, ''
        while head and head not in renaming:
            head, _, part = head.rpartition('_')
            tail = f'_{part}{tail}'
        return renaming[head] + tail if head else key

    return {rename(key): {rename(k): v for k, v in value.items()} if key == 'master_weights' else value
            for key, value in optimizer_state.items()}


def _tensors(state: Any) -> Any:
    """Tensors in place of arrays, as paddle.load returns them; uint16 arrays are bfloat16."""
    if isinstance(state, dict):
        return {key: _tensors(value) for key, value in state.items()}
    return paddle.to_tensor(state) if isinstance(state, np.ndarray) else state


def _checkpoints(save_dir: Folder) -> list[Path]:
    """The checkpoint folders of a run, oldest first."""
    numbered = [(_iteration(folder), folder) for folder in Path(save_dir).glob('iter_*')]
    return [folder for _, folder in sorted((number, folder) for number, folder in numbered if number is not None)]


def _iteration(folder: Folder) -> int | None:
    match = re.fullmatch(r'iter_(\d+)', Path(folder).name)
    return int(match.group(1)) if match else None


def _read_state(folder: Folder) -> dict[str, Any]:
    return json.loads((Path(folder) / STATE).read_text())


def _write_state(folder: Folder, state: dict[str, Any]) -> None:
    write_atomically(Path(folder) / STATE, json.dumps(state, indent=1).encode())


def _flushed_checksum(path: Path) -> str:
    with open(path, 'rb') as file:
        os.fsync(file.fileno())
    return sha256_of(path)
