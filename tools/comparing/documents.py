"""Reading what val.py writes, as counts that can be resampled."""
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import UserError
from inference.scores.base import dense

FIX = 'write it again with val.py'


@dataclass(frozen=True)
class Scored:
    """An evaluation. counts: int64 (images, 3, K): pixels that are right, of the ground truth, predicted, per class."""
    path: str
    names: tuple[str, ...]
    images: tuple[str, ...]
    counts: np.ndarray


def load(path: str | os.PathLike) -> Scored:
    """Read an evaluation's JSON, or that of --per_image. UserError with one line for anything else."""
    try:
        data = json.loads(Path(path).read_bytes())
        names = tuple(map(str, data['classes']))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f'{path}: expected the JSON of an evaluation, found something else ({error!r:.80}); '
                        f'{FIX}') from error
    if not data.get('images') or not isinstance(data['images'], list):
        raise UserError(f"{path}: expected the scores of each image under the key 'images', found none; {FIX}")
    try:
        matrices = np.stack([_matrix(image, len(names)) for image in data['images']])
        images = tuple(str(image['name']) for image in data['images'])
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise UserError(f"{path}: key 'images': expected an index, a name and rows [class, predicted class, pixels] "
                        f'under confusion, found something else ({error!r:.80}); {FIX}') from error
    if 'matrix' in data and not np.array_equal(matrices.sum(axis=0), data['matrix']):
        raise UserError(f'{path}: expected images whose counts add up to the matrix, found others; {FIX}')
    return Scored(str(path), names, images, np.stack([
        np.diagonal(matrices, axis1=1, axis2=2), matrices.sum(axis=2), matrices.sum(axis=1)], axis=1))


def _matrix(image: Mapping[str, Any], num_classes: int) -> np.ndarray:
    rows = np.array(image['confusion'], np.int64).reshape(-1, 3)
    if rows.size and rows.min() < 0:
        raise ValueError(f'{rows.min()}')
    return dense(rows, (num_classes, num_classes))


def check_pairs(first: Scored, others: Sequence[Scored]) -> None:
    """UserError unless all have the classes, images and ground truth of the first."""
    for other in others:
        if other.names != first.names:
            raise UserError(f'{other.path}: expected the {len(first.names)} classes of {first.path}, found '
                            f'{len(other.names)} with {_difference(first.names, other.names)}; compare evaluations of '
                            'one dataset')
        if other.images != first.images:
            raise UserError(f'{other.path}: expected the {len(first.images)} images of {first.path}, found '
                            f'{len(other.images)} with {_difference(first.images, other.images)}; compare evaluations '
                            'of the same images')
        unequal = np.flatnonzero((other.counts[:, 1] != first.counts[:, 1]).any(axis=1))
        if unequal.size:
            raise UserError(f'{other.path}: expected the ground truth of {first.path}, found other numbers of pixels '
                            f'in {unequal.size} images, the first {first.images[unequal[0]]}; compare evaluations on '
                            'the same labels')
    if len(first.images) < 2:
        raise UserError(f'{first.path}: expected at least 2 images to resample, found {len(first.images)}; evaluate '
                        'more')


def _difference(expected: Sequence[str], found: Sequence[str]) -> str:
    for ours, theirs in zip(expected, found):
        if ours != theirs:
            return f'{theirs!r} in place of {ours!r}'
    return f'{"more" if len(found) > len(expected) else "fewer"} at the end'
