"""Loading weights strictly: what is missing, unexpected or of another shape is listed and refused."""
import logging
import os
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import paddle

from common.errors import FileError, UserError
from models.safe_pickle import from_bfloat16
from models.weight_files import NAME_TABLE, read_state
from models.weight_names import from_paddleseg, from_torch, is_paddlesegs, is_torchs, unwrapped, without_biases

logger = logging.getLogger(__name__)

CLASSIFIERS = ('ocrnet.head.cls_head.', 'ocrnet.head.aux_head.1.')
ATTENTION, HEAD = 'scale_attn.', 'ocrnet.head.'
IMAGENET_HEAD = tuple(f'backbone.{part}.' for part in (
    'incre_modules', 'downsamp_modules', 'final_layer', 'classifier', 'cls_head', 'aux_head'))


def check_path(path: str | os.PathLike) -> None:
    """FileNotFoundError with one line if there is no file."""
    if not os.path.isfile(path):
        raise FileError(f'{path}: expected a weights file (.pdparams), found '
                                f'{"a folder" if os.path.isdir(path) else "nothing"}; check the path')


def read(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """State dict {name: array} of a weights file (models.weight_files); UserError or FileError with one line.

    Of a training checkpoint of torch, the weights alone.
    """
    state = read_state(path)
    if isinstance(state, dict):
        state.pop(NAME_TABLE, None)
        if 'LR_Scheduler' not in state and not all(isinstance(value, np.ndarray) for value in state.values()):
            state = _once(path, unwrapped, state) or state
    if not isinstance(state, dict) or 'LR_Scheduler' in state \
            or not all(isinstance(name, str) and isinstance(value, np.ndarray) for name, value in state.items()):
        raise UserError(f'{path}: expected a state dict of arrays, found {type(state).__name__}; '
                        'is it an optimizer state (.pdopt)?')
    return state


def _once(path: str | os.PathLike, function: Callable[..., dict[str, np.ndarray]],
          *arguments: Any) -> dict[str, np.ndarray]:
    """The function's result; UserError where two entries of the file have one meaning."""
    try:
        return function(*arguments)
    except ValueError as error:
        raise UserError(f'{path}: expected every tensor once, found {error}; remove one of them') from error


def _under_our_names(state: dict[str, np.ndarray], model: paddle.nn.Layer,
                     path: str | os.PathLike) -> dict[str, np.ndarray]:
    if is_paddlesegs(state) and any(name.startswith('ocrnet.') for name in model.state_dict()):
        return from_paddleseg(state)
    if not is_torchs(state):
        return state
    try:
        converted = _once(path, from_torch, state, model.state_dict())
    except KeyError:
        raise UserError(f'{path}: expected the names of {type(model).__name__}, found those of torch (NVIDIA, HRNet or '
                        'timm), known for MscaleOCRNet on HRNet alone; use a config with that model') from None
    logger.info('%s: the names are those of torch (NVIDIA, HRNet or timm); converted', path)
    return converted


def load_weights(model: paddle.nn.Layer, path: str | os.PathLike, skip: Sequence[str] = ()) -> None:
    """Load every entry of `path` into `model`, by name.

    skip: prefixes of names that may keep their values in the model, whatever the file has for them.
    Raises ValueError that lists the first ten names that are missing, unexpected or of another shape; the model is
    unchanged then.
    """
    _assign(model, _under_our_names(read(path), model, path), path, skip)


def load_pretrained(model: paddle.nn.Layer, path: str | os.PathLike, fresh_head: bool = False) -> None:
    """Weights to start training from: as load_weights, with two named exceptions.

    A file without any scale attention (OCRNet trained without it, with or without the prefix `ocrnet.`) leaves the
    attention as initialised; one of a backbone alone (HRNet trained on ImageNet) leaves the heads as well, and its own
    head is dropped. fresh_head leaves the classification layers as initialised.
    """
    state = _under_our_names(read(path), model, path)
    if not any(name.startswith(('ocrnet.', ATTENTION)) for name in state):
        state = {f'ocrnet.{name}': value for name, value in state.items()}
    skip = list(CLASSIFIERS) if fresh_head else []
    if not any(name.startswith(HEAD) for name in state):
        dropped = [name for name in state if name.startswith(IMAGENET_HEAD)]
        state = {name: value for name, value in state.items() if name not in dropped}
        skip.append(HEAD)
        logger.info('%s has a backbone alone: the heads start from random weights%s', path,
                    f'; {len(dropped)} entries of its own head are dropped' if dropped else '')
    if not any(name.startswith(ATTENTION) for name in state):
        skip.append(ATTENTION)
        logger.info('%s has no scale attention: it starts from random weights', path)
    if fresh_head:
        logger.info('%s: the classification layers start from random weights (fresh_head)', path)
    _assign(model, state, path, skip)


def _assign(model: paddle.nn.Layer, state: dict[str, np.ndarray], path: str | os.PathLike,
            skip: Sequence[str]) -> None:
    skip = tuple(skip)
    target = {name: value for name, value in model.state_dict().items() if not (skip and name.startswith(skip))}
    state = {name: value for name, value in state.items() if not (skip and name.startswith(skip))}
    state, gone = without_biases(state, target)
    if gone:
        logger.info('%s: %d biases of convolutions before a batch norm, as PaddleSeg 2.8 has them, are taken into its '
                    'mean', path, len(gone))
    problems = [f'missing: {name}' for name in target if name not in state]
    problems += [f'unexpected: {name}' for name in state if name not in target]
    reshaped = [name for name in target if name in state and list(target[name].shape) != list(state[name].shape)]
    problems += [f'shape: {name} expected {list(target[name].shape)}, found {list(state[name].shape)}'
                 for name in reshaped]
    if problems:
        fix = ('set model.fresh_head to True (--opts model.fresh_head=True) to train new classification layers'
               if len(reshaped) == len(problems) and all(name.startswith(CLASSIFIERS) for name in reshaped)
               else 'use the config that these weights were trained with')
        more = [f'... and {len(problems) - 10} more'] if len(problems) > 10 else []
        raise UserError('\n  '.join(
            [f'{path}: expected the {len(target)} entries of {type(model).__name__}, found {len(state)}, of which '
             f'{len(problems)} do not fit; {fix}', *problems[:10], *more]))
    arrays: Any = _as_float32(state, target, path)  # Paddle's stub lacks NumPy arrays, which it takes as well
    model.set_state_dict(arrays)


def _as_float32(state: dict[str, np.ndarray], target: dict[str, paddle.Tensor],
                path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The entries in the type of the network, told in the log where that is another; UserError for NaN or infinity."""
    result: dict[str, np.ndarray] = {}
    other: Counter[str] = Counter()
    for name, array in state.items():
        wanted = str(target[name].dtype).rpartition('.')[2]
        found = array.dtype.name
        if wanted == 'float32' and found == 'uint16':  # Paddle's bfloat16
            found, array = 'bfloat16', from_bfloat16(array)
        if found != wanted:
            other[f'{found} instead of {wanted}'] += 1
            array = array.astype(wanted)
        result[name] = array
    for text, count in other.items():
        logger.info('%s: %d entries are %s; converted', path, count, text)
    broken = [name for name, array in result.items() if not np.isfinite(array).all()]
    if broken:
        more = f' and {len(broken) - 1} more' if len(broken) > 1 else ''
        raise UserError(f'{path}: expected finite weights, found NaN or infinity in {broken[0]}{more}; the training '
                        'that wrote them has diverged: use an earlier checkpoint')
    return result
