"""Decoding of images and of label images, which are checked at every read."""
import os
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from common.errors import FileError, UserError
from datasets.labels import LabelSet


def read_image(path: str | os.PathLike, fix: str = 'unpack the file from its archive again') -> np.ndarray:
    """Decode an image as BGR uint8 (H, W, 3). Raises UserError if it cannot be decoded, FileError if it is missing.

    fix: how the user gets a proper file, the end of the error's text.
    """
    image = cv2.imread(os.fspath(path), cv2.IMREAD_COLOR)
    if image is None and not os.path.isfile(path):
        raise FileError(f'{path}: expected an image; found nothing there; {fix}')
    if image is None:
        raise UserError(f'{path}: expected an image; found {os.path.getsize(path)} bytes that cannot be decoded; {fix}')
    return image


def read_label(path: str, size: tuple[int, ...] | None, label_set: LabelSet, fix: str) -> np.ndarray:
    """Decode a label image of train ids.

    path: a single-channel 8 bit image (grey values or palette indices). size: (H, W) of the image it belongs to.
    label_set: the LabelSet of its values. fix: how to get a valid file, the end of every error text.
    Returns uint8 (H, W). Raises UserError if the file cannot be decoded, has another size or type, or holds a value
    that is neither a train id nor label_set.ignore_index.
    """
    label, _, fault = examine_label(path, size, label_set)
    if fault is not None:
        raise UserError(f'{path}: expected {fault.expected}; found {fault.found}; {fix}')
    assert label is not None  # examine_label returns a label or a Fault
    return label


class Fault(NamedTuple):
    """A defect of a file. kind: undecodable, mode, size, values or label_ids. expected, found: for the error text."""
    kind: str
    expected: str
    found: str


def examine_label(path: str, size: tuple[int, ...] | None,
                  label_set: LabelSet) -> tuple[np.ndarray, np.ndarray, None] | tuple[None, None, Fault]:
    """(uint8 (H, W) label, float32 (256,) number of pixels of each value, None); or (None, None, Fault).

    Arguments as of read_label, which raises the fault. size: None if the image's size is unknown.
    """
    # Pillow takes 25 % longer than OpenCV, but OpenCV would turn a palette image into its colours.
    try:
        with Image.open(path) as image:
            label, mode = np.array(image), image.mode
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:  # SyntaxError: Pillow's for a broken PNG
        return None, None, Fault('undecodable', 'a label image', f'none that can be decoded ({error})')
    if mode not in ('L', 'P'):
        hint = (' (colours where ids belong)' if mode in ('RGB', 'RGBA') else
                ' (a mask of more than 8 bits)' if label.dtype.itemsize > 1 else '')
        return None, None, Fault('mode', 'a single-channel 8 bit label',
                                 f'mode {mode}, {label.dtype} {label.shape}{hint}')
    if size is not None and label.shape != size:
        return None, None, Fault('size', f'a label of its image\'s size {size}', f'{label.shape} (height, width)')
    # A histogram of 1024 x 2048 pixels takes 2 ms, decoding image and label 70 ms; np.unique would take 40 ms.
    counts = cv2.calcHist([label], [0], None, [256], [0, 256]).ravel()  # OpenCV 4: (256, 1)
    values = np.flatnonzero(counts)
    wrong = values[(values >= label_set.num_classes) & (values != label_set.ignore_index)]
    if wrong.size:
        looks_like_ids = wrong.max() <= max(label_set.label_ids, default=-1)
        return None, None, Fault('label_ids' if looks_like_ids else 'values',
                                 f'train ids 0..{label_set.num_classes - 1} and {label_set.ignore_index}',
                                 f'{", ".join(map(str, wrong))}'
                                 f'{" (label ids where train ids belong)" if looks_like_ids else ""}')
    return label, counts, None
