"""Made-up weights that do not travel: whoever needs them draws them from a seed, and knows them by their SHA-256.

Drawn from the raw numbers of PCG64, which are the same in every version of NumPy, where its distributions may change;
what follows is exact or one product in float32, and so the same on every processor. NumPy alone is needed.
"""
import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

FACTORS = 'factors.npy'
DTYPES = {'fp32': np.float32, 'fp16': np.float16}
ALIGNMENT = 1 << 12  # of a page: engines map the file into memory


def file_of(precision: str) -> str:
    """The file that graphs of a precision read their weights from."""
    return f'weights_{precision}.bin'


def drawn(seed: int, number: int, shape: Sequence[int]) -> np.ndarray:
    """float32, evenly in [-1, 1): the weights of the convolution of this number, before they are scaled."""
    bits = np.random.PCG64([seed, number]).random_raw(math.prod(shape))
    return ((bits >> np.uint64(40)).astype(np.float32) * 2.0**-23 - 1).reshape(shape)


def piece(weight: np.ndarray, columns: Sequence[int], tap: Sequence[int] | None) -> np.ndarray:
    """Some input channels of a weight (out, in, k, k); tap: one place of its kernel, as (out, in, 1, 1)."""
    found = weight[:, slice(*columns)]
    return found if tap is None else found[:, :, tap[0], tap[1], None, None]


def write(folder: Path, seed: int, arrays: Sequence[Mapping[str, Any]], factors: np.ndarray) -> None:
    """The files of both precisions.

    arrays: each with `number` and `shape` of what is drawn, `factors` (first and last) of its output channels,
    `columns` and `tap` of the piece, and `offsets` in the files.
    """
    files = {precision: (folder / file_of(precision)).open('wb') for precision in DTYPES}
    try:
        number, weight = -1, np.zeros(0, np.float32)
        for array in sorted(arrays, key=lambda array: array['number']):
            if array['number'] != number:
                number = array['number']
                weight = drawn(seed, number, array['shape']) * factors[slice(*array['factors']), None, None, None]
            found = piece(weight, array['columns'], array['tap'])
            for precision, file in files.items():
                file.seek(array['offsets'][precision])
                file.write(np.ascontiguousarray(found, DTYPES[precision]).tobytes())
    finally:
        for file in files.values():
            file.close()


def sha256_of(path: Path) -> str:
    """Of a file; '' if there is none."""
    digest = hashlib.sha256()
    if not path.is_file():
        return ''
    with path.open('rb') as file:
        while block := file.read(1 << 24):
            digest.update(block)
    return digest.hexdigest()


def ensure(folder: Path, manifest: Mapping[str, Any]) -> str:
    """Have the files of a manifest's weights in its folder; returns what is wrong with them, '' if nothing."""
    wanted = manifest['sha256']
    if all(sha256_of(folder / name) == digest for name, digest in wanted.items()):
        return ''
    write(folder, manifest['seed'], manifest['arrays'], np.load(folder / FACTORS))
    for name, digest in wanted.items():
        found = sha256_of(folder / name)
        if found != digest:
            return (f'{folder / name}: expected weights with SHA-256 {digest[:16]}, found {found[:16]} after drawing '
                    'them; carry the whole folder again, or write it anew')
    return ''
