"""Loading weights strictly: what is missing, unexpected or of another shape is listed and refused."""
import logging
import os
from collections.abc import Sequence

import numpy as np
import paddle

from common.errors import FileError, UserError

logger = logging.getLogger(__name__)

CLASSIFIERS = ('ocrnet.head.cls_head.', 'ocrnet.head.aux_head.1.')
ATTENTION = 'scale_attn.'


def check_path(path: str | os.PathLike) -> None:
    """FileNotFoundError with one line if there is no file."""
    if not os.path.isfile(path):
        raise FileError(f'{path}: expected a weights file (.pdparams), found '
                                f'{"a folder" if os.path.isdir(path) else "nothing"}; check the path')


def read(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """State dict {name: array} of a .pdparams file; ValueError or FileNotFoundError with one line if it is none."""
    check_path(path)
    try:
        state = paddle.load(os.fspath(path), return_numpy=True)
    except Exception as error:  # pickle and Paddle raise all kinds, down to EOFError and RuntimeError
        raise UserError(f'{path}: expected weights saved by paddle.save, found a file that does not load '
                         f'({type(error).__name__}); download or copy it again') from error
    if not isinstance(state, dict) or not all(hasattr(value, 'shape') for value in state.values()):
        raise UserError(f'{path}: expected a state dict of arrays, found {type(state).__name__}; '
                         'is it an optimizer state (.pdopt)?')
    return state


def load_weights(model: paddle.nn.Layer, path: str | os.PathLike, skip: Sequence[str] = ()) -> None:
    """Load every entry of `path` into `model`, by name.

    skip: prefixes of names that may keep their values in the model, whatever the file has for them.
    Raises ValueError that lists the first ten names that are missing, unexpected or of another shape; the model is
    unchanged then.
    """
    _assign(model, read(path), path, skip)


def load_pretrained(model: paddle.nn.Layer, path: str | os.PathLike, fresh_head: bool = False) -> None:
    """Weights to start training from: as load_weights, with two named exceptions.

    A file without any scale attention (OCRNet trained without it, with or without the prefix `ocrnet.`) leaves the
    attention as initialised. fresh_head leaves the classification layers as initialised.
    """
    state = read(path)
    if not any(name.startswith(('ocrnet.', ATTENTION)) for name in state):
        state = {f'ocrnet.{name}': value for name, value in state.items()}
    skip = list(CLASSIFIERS) if fresh_head else []
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
    model.set_state_dict(state)  # type: ignore[arg-type]  # Paddle's stub lacks NumPy arrays, which it takes as well
