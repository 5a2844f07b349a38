"""PaddleSeg's Normalize put off until the image is where it is used: until then it is a quarter as large."""
from collections.abc import Sequence
from typing import Any

import numpy as np
import paddle
from paddleseg.transforms import Normalize

COLORS = 3
LEVELS = 256  # values of 8 bits


def put_off(transforms: Sequence[Any]) -> tuple[list[Any], 'Normalization | None']:
    """(the transforms without a Normalize at their end, what takes its place); the second is None if there is none."""
    if transforms and type(transforms[-1]) is Normalize:
        return list(transforms[:-1]), Normalization(transforms[-1])
    return list(transforms), None


class Normalization:
    """What Normalize makes of 8 bit values, as a table: bit for bit the same on every device.

    Whether an image still has 8 bit values before Normalize is seen image by image: after RandomDistort all have, after
    resizing or padding with 127.5 alone they have not; such an image is normalised at once.
    """

    def __init__(self, normalize: Normalize) -> None:
        levels = np.repeat(np.arange(LEVELS, dtype=np.float32).reshape(-1, 1, 1), COLORS, axis=2)
        self._normalize = normalize
        self.table = np.ascontiguousarray(normalize({'img': levels})['img'][:, 0].T, np.float32)
        self._on_device: list[paddle.Tensor] | None = None

    def compact(self, image: np.ndarray) -> np.ndarray:
        """(3, H, W) before Normalize -> uint8 if all its values are integers of 0..255; else float32, normalised."""
        pixels = image.transpose(1, 2, 0)  # as the transforms have left it: without jumps in memory
        if len(image) == COLORS:
            with np.errstate(invalid='ignore'):
                small = pixels.astype(np.uint8)
            if np.array_equal(small, pixels):
                return np.ascontiguousarray(small.transpose(2, 0, 1))
        return np.ascontiguousarray(self._normalize({'img': pixels})['img'].transpose(2, 0, 1), np.float32)

    def on_host(self, image: np.ndarray) -> np.ndarray:
        """What compact() returns -> float32 (3, H, W), normalised."""
        if image.dtype != np.uint8:
            return image
        return np.stack([levels[plane] for levels, plane in zip(self.table, image)])

    @paddle.no_grad()
    def on_device(self, images: paddle.Tensor) -> paddle.Tensor:
        """A batch of what compact() returns, uint8 or float32 (N, 3, H, W) -> float32, normalised, where it is."""
        if images.dtype != paddle.uint8:
            return images
        if self._on_device is None:
            self._on_device = [paddle.to_tensor(levels) for levels in self.table]
        shape = [images.shape[0], *images.shape[2:]]
        places = images.astype('int32')
        # Plane by plane: adding the planes' offsets in one common table takes longer than this on a CPU.
        planes = [paddle.gather(levels, places[:, i].flatten()).reshape(shape)
                  for i, levels in enumerate(self._on_device)]
        return paddle.stack(planes, axis=1)


def compact_image(image: np.ndarray, normalization: Normalization | None) -> np.ndarray:
    """(3, H, W) after all transforms but what was put off -> contiguous, float32 where nothing is left to do."""
    return normalization.compact(image) if normalization else np.ascontiguousarray(image, np.float32)


def expanded(sample: dict[str, Any], normalization: Normalization | None) -> dict[str, Any]:
    """A compact sample -> 'img' float32, normalised, and 'label', if there is one, int64."""
    whole = {**sample, 'img': normalization.on_host(sample['img']) if normalization else sample['img']}
    if 'label' in sample:
        whole['label'] = sample['label'].astype(np.int64)
    return whole


def compact_label(label: np.ndarray) -> np.ndarray:
    """A label of integers as uint8 if its values fit, else int64."""
    if label.dtype == np.uint8 or (label.size and label.min() >= 0 and label.max() < LEVELS):
        return label.astype(np.uint8, copy=False)
    return label.astype(np.int64, copy=False)
