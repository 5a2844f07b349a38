"""Class-uniform sampling: crops around pixels of each class in turn, so that rare classes are seen often.

As in Zhu et al., Improving Semantic Segmentation via Video Propagation and Label Relaxation (CVPR 2019), and in Tao et
al., Hierarchical Multi-Scale Attention for Semantic Segmentation (2020). A record is (image, class, y, x): (y, x) is
the centroid of the class's pixels in one tile of 1024 x 1024 of that image's label. The centroid of a bent or scattered
class need not be one of its pixels.
"""
import hashlib
import json
import logging
import os
import tempfile
import uuid
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import cv2
import numpy as np
import paddleseg.transforms as T
from PIL import ExifTags, Image, UnidentifiedImageError
from tqdm import tqdm

from common.errors import UserError
from datasets.labels import LabelSet
from datasets.reading import read_image, read_label

TILE = 1024
_VERSION = 1  # of the records: records cached under another version are not used
# Second words of the seed: separate these random streams from each other and from the dataset's.
_RECORD_ORDER = 4
_IMAGE_ORDER = 5
# Transforms allowed before the crop: they resize the whole image or leave every pixel in its place.
_KEEPS_FRACTIONS = (T.Resize, T.ResizeByLong, T.ResizeByShort, T.LimitLong, T.ResizeRangeScaling, T.ResizeStepScaling,
                    T.RandomDistort, T.RandomBlur, T.RandomNoise, T.Normalize)

logger = logging.getLogger(__name__)


# ---------------------------------------------------------------- where the classes are

def class_centroids(label: np.ndarray, num_classes: int, tile: int = TILE) -> np.ndarray:
    """int64 (n, 3) rows (class, y, x): for each tile of uint8 `label` (H, W) the centroid of each class in it.

    Tiles start at the top left corner; those at the right and lower border may be smaller. y and x are the mean of
    the pixels' indices in the whole image, rounded down. Values of num_classes and more (void) are not counted.
    """
    found = [np.empty((0, 3), np.int64)]
    for top in range(0, label.shape[0], tile):
        for left in range(0, label.shape[1], tile):
            pixels = label[top:top + tile, left:left + tile].astype(np.uint16)
            means = []
            for position in np.indices(pixels.shape, np.uint16):  # of rows, then of columns
                # Pixels of every class in every row. np.bincount is as fast, but needs four times the memory and holds
                # Python's lock.
                length = int(position[-1, -1]) + 1
                histogram = cv2.calcHist([pixels, position], [0, 1], None, [num_classes, length],
                                         [0, num_classes, 0, length]).astype(np.int64)
                count = histogram.sum(axis=1)
                means.append(histogram @ np.arange(length) // np.maximum(count, 1))
            y, x = means
            classes = np.flatnonzero(count)
            found.append(np.stack([classes, y[classes] + top, x[classes] + left], axis=1))
    return np.concatenate(found)


def centroid_records(pairs: Sequence[tuple[str, str]], label_set: LabelSet, root: str | os.PathLike, fix: str,
                     tile: int = TILE) -> np.ndarray:
    """int32 (n, 4) rows (image, class, y, x) of all pairs (image path, label path); image is the position in pairs.

    The first call reads every label image, in threads: 60 ms each on a slow core, so 3 minutes for the fine set of
    Cityscapes divided by the number of cores. The records are kept in root/class_centroids_<key>.npz, or in the folder
    for temporary files if root is read-only; the key is made of the labels' paths, sizes and modification times.
    Processes that start together each read all labels and write the same file; the last one stays.

    label_set, fix: as for datasets.reading.read_label, whose errors are raised. root: the folder of all labels.
    Raises UserError if no class occurs.
    """
    name = f'class_centroids_{_key(pairs, label_set.num_classes, root, tile)}.npz'
    paths = [os.path.join(folder, name) for folder in (root, tempfile.gettempdir())]
    records = next((found for found in map(_load, paths) if found is not None), None)
    if records is None:
        records = _build(pairs, label_set, fix, tile)
        _save(paths, records)
    absent = np.setdiff1d(range(label_set.num_classes), records[:, 1])
    if len(absent) == label_set.num_classes:
        raise UserError(f'{root}: expected labels that show classes, for class_uniform; found only void in '
                         f'{len(pairs)} labels; {fix}')
    if absent.size:
        logger.info('class_uniform: left out as they occur in none of %d labels: %s', len(pairs),
                    ', '.join(label_set.names[i] for i in absent))
    return records


def _key(pairs: Sequence[tuple[str, str]], num_classes: int, root: str | os.PathLike, tile: int) -> str:
    def state(path: str) -> tuple[str, int, int]:
        stat = os.stat(path)
        return os.path.relpath(path, root), stat.st_size, stat.st_mtime_ns

    content = json.dumps([_VERSION, num_classes, tile, [state(label) for _, label in pairs]])
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _build(pairs: Sequence[tuple[str, str]], label_set: LabelSet, fix: str, tile: int) -> np.ndarray:
    def read(pair: tuple[str, str]) -> np.ndarray:
        image, label = pair
        return class_centroids(read_label(label, _image_size(image), label_set, fix), label_set.num_classes, tile)

    # Threads, because decoding and counting release Python's lock; processes would have to import Paddle, or be forked
    # while it runs threads.
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        found = list(tqdm(pool.map(read, pairs), total=len(pairs), desc='class centroids', unit='image', disable=None))
    images = np.repeat(np.arange(len(pairs)), [len(centroids) for centroids in found])
    return np.column_stack([images, np.concatenate(found)]).astype(np.int32)


def _image_size(path: str) -> tuple[int, ...]:
    """(H, W) as OpenCV decodes the image (rotated by its EXIF orientation), from the header alone if possible."""
    try:
        with Image.open(path) as image:
            turned = 'exif' in image.info and image.getexif().get(ExifTags.Base.Orientation, 1) > 4
            return image.size if turned else image.size[::-1]
    except UnidentifiedImageError:
        return read_image(path).shape[:2]  # or its error


def _load(path: str) -> np.ndarray | None:
    """The records, or None if the file is missing or damaged."""
    try:
        with np.load(path) as file:
            return file['records']
    except FileNotFoundError:
        return None
    except Exception as error:  # zipfile, zlib, NumPy and the file system each raise their own
        logger.warning('%s: cannot be read (%s: %s); made again', path, type(error).__name__, error)
        return None


def _save(paths: Iterable[str], records: np.ndarray) -> None:
    """Write to the first path that is writable; the file appears complete or not at all."""
    for path in paths:
        partial = f'{path}.{uuid.uuid4().hex}.partial'
        try:
            with open(partial, 'xb') as file:
                np.savez_compressed(file, records=records)
            os.replace(partial, path)
            logger.info('class centroids kept in %s', path)
            return
        except OSError as error:
            logger.warning('class centroids cannot be kept in %s (%s)', path, error)
        finally:
            with suppress(OSError):
                os.remove(partial)


# ---------------------------------------------------------------- the samples of an epoch

class ClassUniformOrder:
    """Which image, and which centroid in it, is sample `index` < num_images of an epoch.

    The first round(share * num_images) samples of an epoch are class-uniform: they cycle through the occurring classes,
    continuing across epochs, and each class cycles through its records in a random order. The other samples cycle
    through a random permutation of the images in the same way. The result is cheap to compute and depends on (seed,
    epoch, index) alone.

    records: int (n, 4), of centroid_records, n > 0. share: 0..1.
    """

    def __init__(self, records: np.ndarray, num_images: int, share: float, seed: int) -> None:
        self.uniform_per_epoch = round(share * num_images)
        self.plain_per_epoch = num_images - self.uniform_per_epoch
        shuffled = np.random.default_rng([seed, _RECORD_ORDER]).permutation(records)
        self._records = [shuffled[shuffled[:, 1] == i] for i in np.unique(records[:, 1])]
        self._images = np.random.default_rng([seed, _IMAGE_ORDER]).permutation(num_images)

    def __call__(self, epoch: int, index: int) -> tuple[int, tuple[int, int] | None]:
        """(image, (y, x)), or (image, None) for a sample that is cropped anywhere."""
        if index < self.uniform_per_epoch:
            turn, which = divmod(epoch * self.uniform_per_epoch + index, len(self._records))
            records = self._records[which]
            image, _, y, x = records[turn % len(records)].tolist()
            return image, (y, x)
        position = epoch * self.plain_per_epoch + index - self.uniform_per_epoch
        return int(self._images[position % len(self._images)]), None


# ---------------------------------------------------------------- the crop around a centroid

class KeepCentroid:
    """Transform before a RandomPaddingCrop: cuts off everything that a crop around data['centroid'] cannot reach.

    Every crop of the remaining image contains the centroid, and all possible offsets are equally likely. 'centroid' is
    removed from data; without it nothing happens.

    data['centroid']: (y, x) as fractions of the image's height and width, which resizing does not change.
    crop_size: (H, W).
    """

    def __init__(self, crop_size: Sequence[int]) -> None:
        self.crop_size = crop_size

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        centroid = data.pop('centroid', None)
        if centroid is not None:
            pixel = [int(fraction * length) for fraction, length in zip(centroid, data['img'].shape)]
            reach = tuple(slice(max(0, i - size + 1), i + size) for i, size in zip(pixel, self.crop_size))
            for key in ('img', *data['gt_fields']):
                data[key] = data[key][reach]
        return data


def with_centroid_crop(transforms: Sequence[Any]) -> list[Any]:
    """The list of transforms with a KeepCentroid before its first RandomPaddingCrop.

    Raises UserError if there is none, and for an earlier transform that is not in _KEEPS_FRACTIONS.
    """
    for i, transform in enumerate(transforms):
        if isinstance(transform, T.RandomPaddingCrop):
            return [*transforms[:i], KeepCentroid(transform.crop_size), *transforms[i:]]
        if not isinstance(transform, _KEEPS_FRACTIONS):
            raise UserError('train_dataset.transforms: expected only resizing and changes of colour before '
                             f'RandomPaddingCrop, for class_uniform; found {type(transform).__name__}; move it behind '
                             'RandomPaddingCrop or set class_uniform: 0')
    raise UserError('train_dataset.transforms: expected a RandomPaddingCrop, for class_uniform; found '
                     f'{", ".join(type(transform).__name__ for transform in transforms) or "no transforms"}; add one '
                     'or set class_uniform: 0')
