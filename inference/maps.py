"""What a prediction knows beside its classes: how sure it is of each pixel, and which scale decided there."""
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import paddle
import paddle.nn.functional as F

from common.errors import UserError

STRIP = 1 << 22  # floats of a strip of rows: the probabilities of all classes exist for one at a time
ROWS = 16  # a strip has a multiple: Paddle's softmax rounds the last pixels differently unless all fill its vectors


NOT_FINITE = 'expected finite logits, found NaN or infinity; check --model_path, or try --precision fp32'


class Maps(NamedTuple):
    """The maps of an image, all (H, W), at its original size.

    classes: uint8 train ids. confidence: float32 in [0, 1], the largest softmax probability of the averaged logits.
    entropy: float32 in [0, 1], of the same probabilities, divided by that of a uniform guess, log(K).
    attention: {scale: float32, its share of the fused logits}, in ascending order, with the sum 1 at every pixel, up to
    rounding; empty for a network that does not fuse scales. With flips and test-time scales the mean over them.
    """
    classes: np.ndarray
    confidence: np.ndarray
    entropy: np.ndarray
    attention: dict[float, np.ndarray]


def of_logits(logits: paddle.Tensor, attention: Mapping[float, np.ndarray]) -> Maps:
    """The maps of float32 logits (1, K, H, W). UserError if they are not finite."""
    return Maps(*classes_and_confidence(logits), entropy(logits), dict(attention))


@paddle.no_grad()
def classes_and_confidence(logits: paddle.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """As in Maps, of float32 logits (1, K, H, W). UserError if they are not finite."""
    check_finite(logits)  # a softmax over -inf is finite
    parts = [(strip.argmax(axis=1)[0].numpy().astype(np.uint8), F.softmax(strip, axis=1).max(axis=1)[0].numpy())
             for strip in _strips(logits)]
    classes, confidence = (np.concatenate(part) for part in zip(*parts))
    return classes, confidence


@paddle.no_grad()
def check_finite(logits: paddle.Tensor) -> None:
    """UserError for logits that are not finite, which argmax would turn into a class like any other."""
    # A finite sum has finite terms, and takes a quarter of the time; one of finite terms can overflow.
    if not bool(paddle.isfinite(logits.sum())) and not bool(paddle.isfinite(logits).all()):
        raise UserError(NOT_FINITE)


@paddle.no_grad()
def entropy(logits: paddle.Tensor) -> np.ndarray:
    """As in Maps, of float32 logits (1, K, H, W); zero for a single class."""
    parts = []
    for strip in _strips(logits):
        probability = F.softmax(strip, axis=1)
        logarithm = probability.clip(min=float(np.finfo(np.float32).tiny)).log()  # 0 * log(0) is 0
        parts.append((probability * logarithm).sum(axis=1)[0].numpy())
    return np.clip(np.concatenate(parts) / -np.log(max(logits.shape[1], 2)), 0, 1).astype(np.float32)


def _strips(logits: paddle.Tensor) -> Iterator[paddle.Tensor]:
    rows = max(1, STRIP // (logits.shape[1] * logits.shape[3] * ROWS)) * ROWS
    return (logits[:, :, start:start + rows] for start in range(0, logits.shape[2], rows))
