"""Predictions as pictures: palette PNG and overlay."""
from __future__ import annotations  # inference.maps imports Paddle, which the users of this module do not need

import os
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from common.atomic_io import write_atomically
from common.errors import FileError, UserError
from datasets import reading
from datasets.labels import LabelSet
from inference import map_pictures
from inference.background import Background
from inference.map_pictures import palette_png

if TYPE_CHECKING:
    from inference.maps import Maps

FOLDERS = ('pseudo_color_prediction', 'added_prediction')  # of train ids as a palette PNG, and of overlays
IMAGE_SUFFIXES = ('.png', '.jpg', '.jpeg', '.bmp', '.tif', '.tiff', '.webp')


def find_inputs(path: str | os.PathLike, exclude: Sequence[str | os.PathLike | None] = (),
                flag: str = '--image_path') -> list[tuple[Path, Path]]:
    """[(image, relative output path without suffix)] of an image, a folder (searched recursively) or a list file.

    A list file (.txt, .lst) has one image per line, relative to the list or absolute. `exclude` are folders that
    are not searched (earlier predictions). Images whose outputs would have the same name keep their suffix in it.
    UserError or FileError with one line that names `flag` if there are no images.
    """
    path = Path(path)
    if path.is_dir():
        excluded = {Path(folder).resolve() for folder in exclude if folder}
        images = sorted(p for p in path.rglob('*') if p.is_file() and p.suffix.lower() in IMAGE_SUFFIXES
                        and excluded.isdisjoint(p.resolve().parents))
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


def read_image(path: str | os.PathLike) -> np.ndarray:
    """uint8 (H, W, 3) BGR of an image that need not be part of a dataset; FileError or UserError with one line."""
    return reading.read_image(path, fix='copy it again or leave it out')


def overlay(image: np.ndarray, train_ids: np.ndarray, colors: np.ndarray, weight: float = 0.6) -> np.ndarray:
    """uint8 (H, W, 3) BGR: `weight` of the image, the rest of the colours (256, 3) RGB of its prediction."""
    return cv2.addWeighted(image, weight, colors[train_ids][..., ::-1].astype(np.uint8), 1 - weight, 0)


def _output(save_dir: str | os.PathLike, folder: str, name: str | os.PathLike) -> Path:
    return Path(save_dir) / folder / f'{name}.png'


def is_written(save_dir: str | os.PathLike, name: str | os.PathLike, more: Collection[str] = ()) -> bool:
    """Whether an image has its predictions, and those in the folders `more`; written atomically, they are complete."""
    return all(_output(save_dir, folder, name).is_file() for folder in (*FOLDERS, *more))


def write_prediction(save_dir: str | os.PathLike, name: str | os.PathLike, image: np.ndarray, train_ids: np.ndarray,
                     colors: np.ndarray, maps: Maps | None = None, kinds: Collection[str] = ()) -> None:
    """Write pseudo_color_prediction/{name}.png and added_prediction/{name}.png, atomically; before them the maps of
    these kinds (inference.map_pictures).
    """
    for folder, content in map_pictures.pictures(maps, kinds).items() if maps is not None else ():
        write_atomically(_output(save_dir, folder, name), content)
    ids, added = (_output(save_dir, folder, name) for folder in FOLDERS)
    write_atomically(added, cv2.imencode('.png', overlay(image, train_ids, colors))[1].tobytes())
    write_atomically(ids, palette_png(train_ids, colors))


class Writer(Background):
    """write_prediction in a thread, while the next image is predicted."""

    def __init__(self, save_dir: str | os.PathLike, colors: np.ndarray, kinds: Collection[str] = ()) -> None:
        super().__init__()
        self._save_dir, self._colors, self._kinds = save_dir, colors, kinds

    def write(self, name: str | os.PathLike, image: np.ndarray, train_ids: np.ndarray,
              maps: Maps | None = None) -> None:
        self.submit(write_prediction, self._save_dir, name, image, train_ids, self._colors, maps, self._kinds)


def color_table(labels: LabelSet, custom: Sequence[int] | None = None) -> np.ndarray:
    """uint8 (256, 3) RGB: the label set's colours, or `custom`, a flat list of R G B for every class."""
    if custom is None:
        return labels.color_table()
    if len(custom) != 3 * labels.num_classes or min(custom) < 0 or max(custom) > 255:
        raise UserError(f'--custom_color: expected {3 * labels.num_classes} values of 0-255 (R G B for each of '
                         f'{labels.num_classes} classes), found {len(custom)} from {min(custom)} to {max(custom)}')
    table = np.zeros((256, 3), np.uint8)
    table[:labels.num_classes] = np.reshape(custom, (-1, 3))
    return table
