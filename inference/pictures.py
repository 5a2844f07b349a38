"""Predictions as pictures: palette PNG and overlay."""
import io
import os
from collections import Counter, deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from common.atomic_io import write_atomically
from common.errors import FileError, UserError
from datasets import reading

IMAGE_SUFFIXES = ('.png', '.jpg', '.jpeg', '.bmp', '.tif', '.tiff', '.webp')


def find_inputs(path, exclude=None, flag='--image_path'):
    """[(image, relative output path without suffix)] of an image, a folder (searched recursively) or a list file.

    A list file (.txt, .lst) has one image per line, relative to the list or absolute. `exclude` is a folder whose
    content is not searched (earlier predictions). Two images that would write the same output keep their suffix in
    its name. ValueError or FileNotFoundError with one line, which names `flag`, when there is nothing to do.
    """
    path = Path(path)
    if path.is_dir():
        exclude = Path(exclude).resolve() if exclude else None
        images = sorted(p for p in path.rglob('*') if p.is_file() and p.suffix.lower() in IMAGE_SUFFIXES
                        and exclude not in p.resolve().parents)
        outputs = [p.relative_to(path) for p in images]
    elif path.suffix.lower() in ('.txt', '.lst', '.list'):
        images = [path.parent / line.strip() for line in path.read_text().splitlines() if line.strip()]
        common = os.path.commonpath([p.parent for p in images]) if images else ''
        outputs = [p.relative_to(common) for p in images]
    elif path.is_file():
        images, outputs = [path], [Path(path.name)]
    else:
        raise FileError(f'{flag} {path}: expected an image, a folder or a list file, found nothing; '
                                'check the path')
    if not images:
        raise UserError(f'{flag} {path}: expected at least one image ({" ".join(IMAGE_SUFFIXES)}), found none; '
                         'check the path')
    stems = [p.with_suffix('') for p in outputs]
    uses = Counter(stems)
    return [(image, stem if uses[stem] == 1 else output) for image, stem, output in zip(images, stems, outputs)]


def read_image(path):
    """uint8 (H, W, 3) BGR of an image that need not be part of a dataset. Raises UserError with one line."""
    if not Path(path).is_file():
        raise FileError(f'{path}: expected an image, found nothing there')
    return reading.read_image(path, fix='copy it again or leave it out')


def palette_png(train_ids, colors):
    """PNG bytes of uint8 (H, W) train ids, stored as indices with the palette uint8 (256, 3) RGB."""
    picture = Image.fromarray(train_ids)
    picture.putpalette(colors.tobytes())
    buffer = io.BytesIO()
    picture.save(buffer, 'PNG')
    return buffer.getvalue()


def overlay(image, train_ids, colors, weight=0.6):
    """uint8 (H, W, 3) BGR: `weight` of the image, the rest of the colours of its prediction."""
    return cv2.addWeighted(image, weight, colors[train_ids][..., ::-1].astype(np.uint8), 1 - weight, 0)


def _outputs(save_dir, name):
    """Files of a prediction: train ids as a palette PNG, overlay."""
    return [Path(save_dir) / folder / f'{name}.png' for folder in ('pseudo_color_prediction', 'added_prediction')]


def is_written(save_dir, name):
    """Whether an image has its predictions; they are written atomically, so what is there is whole."""
    return all(path.is_file() for path in _outputs(save_dir, name))


def write_prediction(save_dir, name, image, train_ids, colors):
    """Write pseudo_color_prediction/{name}.png and added_prediction/{name}.png, atomically."""
    ids, added = _outputs(save_dir, name)
    write_atomically(added, cv2.imencode('.png', overlay(image, train_ids, colors))[1].tobytes())
    write_atomically(ids, palette_png(train_ids, colors))


class Writer:
    """write_prediction in a thread, while the next image is predicted; at most two images wait.

    As a context: at its end all is written. An error of a write is raised by the next call or at the end.
    """

    def __init__(self, save_dir, colors):
        self._save_dir, self._colors, self._waiting = save_dir, colors, deque()
        self._pool = ThreadPoolExecutor(1)

    def write(self, name, image, train_ids):
        self._waiting.append(self._pool.submit(write_prediction, self._save_dir, name, image, train_ids, self._colors))
        while len(self._waiting) > 2:
            self._waiting.popleft().result()

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        self._pool.shutdown(cancel_futures=kind is not None)
        for future in self._waiting if kind is None else ():
            future.result()


def color_table(labels, custom=None):
    """uint8 (256, 3) RGB: the label set's colours, or `custom`, a flat list of R G B for every class."""
    if custom is None:
        return labels.color_table()
    if len(custom) != 3 * labels.num_classes or min(custom) < 0 or max(custom) > 255:
        raise UserError(f'--custom_color: expected {3 * labels.num_classes} values of 0-255 (R G B for each of '
                         f'{labels.num_classes} classes), found {len(custom)} from {min(custom)} to {max(custom)}')
    table = np.zeros((256, 3), np.uint8)
    table[:labels.num_classes] = np.reshape(custom, (-1, 3))
    return table
