"""What a score of an evaluation is: integers of each image, and their sum.

An image's share of every score is a table of integers, its element. The score of a dataset is computed from the
elements in the order of the images, so it is the same to the last bit for any number of processes and after any
interruption.
"""
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np


@dataclass(frozen=True)
class ScoredImage:
    """A predicted image. label: integer (H, W) train ids. classes: uint8 (H, W) predicted train ids.

    confidence: float32 (H, W), the largest softmax probability, or None if no score asks for it.
    """
    index: int
    label: np.ndarray
    classes: np.ndarray
    confidence: np.ndarray | None = None


class Score(Protocol):
    """A score beside those of the confusion matrix: a file in inference/scores and a line in val.py.

    key: its name in records and reports. needs_confidence: whether `measure` reads ScoredImage.confidence.
    settings: plain values that its elements depend on.
    """
    key: str
    needs_confidence: bool
    settings: dict[str, Any]

    def measure(self, image: ScoredImage) -> np.ndarray:
        """The element of an image, int64 (rows, columns)."""
        ...

    def total(self, elements: Sequence[np.ndarray], matrix: np.ndarray) -> dict[str, Any]:
        """The score of all images, from their elements in the order of the images and the confusion matrix (K, K).

        Plain types, as they go into JSON, but NaN where a value is undefined.
        """
        ...

    def text(self, total: dict[str, Any]) -> str:
        """A total as lines for the terminal."""
        ...


def sparse(array: np.ndarray) -> np.ndarray:
    """int64 (entries, axes + 1): index and value of every element that is not 0, in the order of memory."""
    where = np.nonzero(array)
    return np.stack([*where, array[where]], axis=1).astype(np.int64)


def dense(table: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The inverse of `sparse`, int64."""
    array = np.zeros(shape, np.int64)
    array[tuple(table.reshape(-1, len(shape) + 1)[:, :-1].T)] = table.reshape(-1, len(shape) + 1)[:, -1]
    return array


def mean(values: Sequence[float]) -> float:
    """Mean of the values that are not NaN, added in their order as the official evaluation does; NaN if there are none.
    """
    valid = [float(value) for value in values if not np.isnan(value)]
    return sum(valid) / len(valid) if valid else float('nan')
