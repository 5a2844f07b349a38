"""The pictures of a report: written by threads while the next image is predicted, a folder for each image.

    pictures/00012_frankfurt_000001/   record.json (written last), thumb_*.jpg, input.jpg, truth.png, prediction.png,
                                       errors.png, confidence.jpg, scales.png, attention_0.5.jpg, ...

Photos and smooth maps are JPEG, maps of ids PNG with a palette. Nothing of an image remains in memory: the page reads
the records at the end, so that several processes can write into one folder, and an interrupted report continues.
"""
import io
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from common.atomic_io import write_atomically
from datasets.labels import LabelSet
from inference import map_pictures, pictures
from inference.background import Background
from inference.maps import Maps
from inference.report.look import printable

FOLDER, RECORD = 'pictures', 'record.json'
LONGEST, LONGEST_MAP, LONGEST_THUMB = 2048, 1024, 320  # pixels of the longer side; larger ones are reduced
QUALITY, QUALITY_THUMB = 85, 78  # of JPEG
RIGHT, WRONG, STRIPE, VOID = range(4)  # in errors.png
# Wrong pixels are striped in dark and bright, so that they show without their hue, too. RGB and alpha.
ERRORS = ((255, 255, 255, 190), (213, 80, 0, 255), (60, 0, 30, 255), (70, 70, 80, 190))


class Gallery(Background):
    """Writes the pictures of images in threads.

    folder: of the report. colors: uint8 (256, 3) RGB of the train ids.
    """

    def __init__(self, folder: str | os.PathLike, labels: LabelSet, colors: np.ndarray | None = None,
                 threads: int = 1) -> None:
        super().__init__(threads)
        self._folder, self._labels = Path(folder), labels
        self._colors = labels.color_table() if colors is None else colors

    def add(self, index: int, name: str, read: Callable[[], np.ndarray], maps: Maps,
            label: np.ndarray | None = None) -> None:
        """index: of the image, unique. name: shown. read: gives the image, uint8 (H, W, 3) BGR; called in a thread.

        maps, label: of the size of the image. An error of an earlier image is raised here.
        """
        self.submit(self._write, index, name, read, maps, label)

    def _write(self, index: int, name: str, read: Callable[[], np.ndarray], maps: Maps,
               label: np.ndarray | None) -> None:
        folder = Path(FOLDER) / f'{index:05d}_{_plain(name)}'
        decided, scales = (map_pictures.deciding_scale(maps), list(maps.attention)) if maps.attention else (None, [])
        files = draw(read(), maps, decided, label, self._labels, self._colors)
        record = {'index': index, 'name': printable(name), 'folder': folder.as_posix(), 'size': maps.classes.shape,
                  'truth': label is not None, 'scales': scales,
                  'decided': [float(np.mean(decided == i)) for i in range(len(scales))],
                  'confidence': float(maps.confidence.mean(dtype=np.float64)),
                  'pixels': np.bincount(maps.classes.ravel(), minlength=self._labels.num_classes).tolist()}
        for file, data in {**files, RECORD: json.dumps(record).encode()}.items():
            write_atomically(self._folder / folder / file, data, flush=False)


def drawn_images(folder: str | os.PathLike) -> list[dict[str, Any]]:
    """What is known of the images whose pictures are complete, in the order of their index."""
    found = [json.loads(path.read_bytes()) for path in (Path(folder) / FOLDER).glob(f'*/{RECORD}')]
    return sorted(found, key=lambda record: record['index'])


def draw(image: np.ndarray, maps: Maps, decided: np.ndarray | None, label: np.ndarray | None, labels: LabelSet,
         colors: np.ndarray) -> dict[str, bytes]:
    """{file name: content} of all pictures of an image, see the module. decided: of map_pictures.deciding_scale."""
    full, small = _size(image, LONGEST), _size(image, LONGEST_THUMB)
    predicted = _ids(maps.classes, full)
    thumb = cv2.resize(image, small, interpolation=cv2.INTER_AREA)
    files = {
        'input.jpg': _jpeg(cv2.resize(image, full, interpolation=cv2.INTER_AREA)),
        'prediction.png': map_pictures.palette_png(predicted, colors),
        'confidence.jpg': _map(maps.confidence),
        'thumb_input.jpg': _jpeg(thumb, QUALITY_THUMB),
        'thumb_prediction.jpg': _jpeg(pictures.overlay(thumb, _ids(maps.classes, small), colors, 0.4), QUALITY_THUMB)}
    if label is not None:
        codes = error_codes(label, maps.classes, labels.ignore_index)
        files['truth.png'] = map_pictures.palette_png(_ids(label.astype(np.uint8), full), colors)
        files['errors.png'] = _errors_png(_ids(codes, full))
        files['thumb_errors.jpg'] = _jpeg(_errors_thumb(thumb, codes), QUALITY_THUMB)
    for scale, weight in maps.attention.items():
        files[f'attention_{scale:g}.jpg'] = _map(weight)
    if decided is not None:
        table = np.zeros((256, 3), np.uint8)
        table[:len(maps.attention)] = map_pictures.palette(len(maps.attention))
        files['scales.png'] = map_pictures.palette_png(_ids(decided, full), table)
    return files


def error_codes(label: np.ndarray, classes: np.ndarray, ignore_index: int) -> np.ndarray:
    """uint8 (H, W): RIGHT, WRONG or VOID."""
    return np.where(label == ignore_index, VOID, np.where(label == classes, RIGHT, WRONG)).astype(np.uint8)


def _plain(name: str) -> str:
    """The end of a name, of characters that every file system and address takes as they are."""
    return re.sub(r'[^A-Za-z0-9._-]+', '_', name)[-60:].lstrip('.')


def _size(image: np.ndarray, longest: int) -> tuple[int, int]:
    """(width, height) of an image whose longer side is at most `longest`."""
    height, width = image.shape[:2]
    ratio = min(1, longest / max(height, width))
    return max(1, round(width * ratio)), max(1, round(height * ratio))


def _ids(ids: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return cv2.resize(ids, size, interpolation=cv2.INTER_NEAREST)


def _jpeg(image: np.ndarray, quality: int = QUALITY) -> bytes:
    return cv2.imencode('.jpg', image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


def _map(values: np.ndarray) -> bytes:
    """JPEG of float (H, W) in [0, 1]."""
    reduced = cv2.resize(values, _size(values, LONGEST_MAP), interpolation=cv2.INTER_AREA)
    return _jpeg(cv2.applyColorMap(np.rint(255 * np.clip(reduced, 0, 1)).astype(np.uint8), map_pictures.COLORS))


def _errors_png(codes: np.ndarray) -> bytes:
    """Wrong pixels striped and opaque; the rest veils the photo below it, void darkly."""
    height, width = codes.shape
    period = max(2, width // 160)
    diagonal = (np.arange(height)[:, None] + np.arange(width)) // period % 3 == 0
    codes = np.where((codes == WRONG) & diagonal, STRIPE, codes).astype(np.uint8)
    picture = Image.fromarray(codes)
    picture.putpalette([value for color in ERRORS for value in color[:3]])
    buffer = io.BytesIO()
    picture.save(buffer, 'PNG', transparency=bytes(color[3] for color in ERRORS))
    return buffer.getvalue()


def _errors_thumb(thumb: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """uint8 BGR: as errors.png over the photo, without stripes; what is wrong is not lost by the reduction."""
    result = thumb.astype(np.float32)
    for code in (RIGHT, VOID, WRONG):
        cover = cv2.resize((codes == code).astype(np.float32), thumb.shape[1::-1], interpolation=cv2.INTER_AREA)
        if code == WRONG:
            cover = np.minimum(1, 2 * cover)
        cover = cover[..., None] * (ERRORS[code][3] / 255)
        result = result * (1 - cover) + np.array(ERRORS[code][2::-1], np.float32) * cover
    return np.rint(result).astype(np.uint8)
