"""Checkpoints in PaddleSeg's layout: iter_N/model.pdparams, iter_N/model.pdopt, best_model/model.pdparams.

Beside them iter_N/state.json holds what PaddleSeg's resume forgets: the iteration, the best score and its iteration.
A checkpoint is written into a temporary folder and renamed, so that one that has its name is whole.
"""
import json
import os
import re
import shutil
from pathlib import Path

import paddle

from engine import registry


def save(save_dir, iteration, model, optimizer, state, keep_max):
    """Write save_dir/iter_{iteration}, then remove the oldest checkpoints beyond keep_max (0 keeps all)."""
    folder = Path(save_dir) / f'iter_{iteration}'
    temporary = folder.with_name(f'.{folder.name}.tmp')
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    paddle.save(model.state_dict(), str(temporary / 'model.pdparams'))
    paddle.save(optimizer.state_dict(), str(temporary / 'model.pdopt'))
    (temporary / 'state.json').write_text(json.dumps({**state, 'iteration': iteration}, indent=1))
    for file in temporary.iterdir():
        with open(file, 'rb') as handle:
            os.fsync(handle.fileno())
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)
    if keep_max > 0:
        for old in sorted(_checkpoints(save_dir), key=_iteration)[:-keep_max]:
            shutil.rmtree(old)
    return folder


def save_best(save_dir, model):
    """Write best_model/model.pdparams, atomically."""
    folder = Path(save_dir) / 'best_model'
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / '.model.pdparams.tmp'
    paddle.save(model.state_dict(), str(temporary))
    os.replace(temporary, folder / 'model.pdparams')


def resume(folder, model, optimizer):
    """Load a checkpoint; returns its state with 'iteration'. A PaddleSeg checkpoint has none: its name tells that."""
    folder = Path(folder)
    for name in ('model.pdparams', 'model.pdopt'):
        if not (folder / name).is_file():
            found = ', '.join(sorted(p.name for p in folder.iterdir())) if folder.is_dir() else 'no such folder'
            raise ValueError(f'--resume_model {folder}: expected a checkpoint with {name}, found {found}; '
                             'pass a folder like output/iter_1000')
    if (folder / 'state.json').is_file():
        state = json.loads((folder / 'state.json').read_text())
    elif (iteration := _iteration(folder)) is not None:
        state = {'iteration': iteration}
    else:
        raise ValueError(f'--resume_model {folder}: expected a folder named iter_N or one with state.json, found '
                         'neither, so the iteration is unknown; rename it')
    registry.load_weights(model, str(folder / 'model.pdparams'))
    optimizer.set_state_dict(_renamed(paddle.load(str(folder / 'model.pdopt')), folder / 'model.pdparams', model))
    return state


def _renamed(optimizer_state, weights, model):
    """The optimizer state under this process's parameter names.

    Paddle keys it by names like conv2d_7.w_0, which count the layers built in the process so far; the weights file
    knows which entry of the state dict each of them was.
    """
    current = {name: tensor.name for name, tensor in model.state_dict().items()}
    table = paddle.load(str(weights), keep_name_table=True).get('StructuredToParameterName@@', {})
    renaming = {old: current[name] for name, old in table.items() if name in current}

    def rename(key):
        head, tail = key, ''
        while head and head not in renaming:
            head, _, part = head.rpartition('_')
            tail = f'_{part}{tail}'
        return renaming[head] + tail if head else key

    return {rename(key): {rename(k): v for k, v in value.items()} if key == 'master_weights' else value
            for key, value in optimizer_state.items()}


def check_fresh(save_dir):
    """Refuse to start from scratch into a folder that holds checkpoints: they would be overwritten one by one."""
    found = sorted(_checkpoints(save_dir), key=_iteration)
    if found:
        raise ValueError(f'--save_dir {save_dir}: expected a folder without checkpoints, found {len(found)} up to '
                         f'{found[-1].name}; continue with --resume_model {found[-1]}, or choose another --save_dir')


def _checkpoints(save_dir):
    return [folder for folder in Path(save_dir).glob('iter_*') if _iteration(folder) is not None]


def _iteration(folder):
    match = re.fullmatch(r'iter_(\d+)', Path(folder).name)
    return int(match.group(1)) if match else None
