"""Several small images at once: two threads on one small image keep each other waiting, on two images they do not.

At 360x480, scales 0.5/1, on two cores, OpenVINO predicts 1.13 times as many images this way
(benchmarks/folder_rate.py).
"""
import copy
import threading
from typing import Any

import paddle

from inference import memory
from inference.backends.engine import threads
from inference.fused_network import as_tensor
from inference.whole_network import WholeNetwork

SMALL = 1 << 18  # pixels at the highest scale; of larger images a thread more gains as much, and takes no memory
MOST = 8


class Lanes:
    """A Predictor that `count` threads may call at once, of samples as Predictor.__call__ takes them.

    Images of more than SMALL pixels, with the memory that they take, run one after the other.
    """

    def __init__(self, predictor: Any, count: int) -> None:
        self.count = count
        self._alone, self._network, self._lock = predictor, predictor.model, threading.Lock()
        self._predictor = copy.copy(predictor)
        self._predictor.model = self._logits

    def __call__(self, sample: Any) -> Any:
        return self._predictor(sample)

    def _logits(self, image: paddle.Tensor) -> list[paddle.Tensor]:
        if image.shape[2] * image.shape[3] * max(self._network.n_scales)**2 <= SMALL:
            return [as_tensor(self._network.executor.beside(image, self.count))]
        with self._lock:
            return [self._alone.window_logits(image)]


def lanes(predictor: Any, images: int) -> Lanes | None:
    """Those that the memory has room for; None where one image after the other is as fast, or uses less than it may.

    images: how many there are in all.
    """
    network = getattr(predictor, 'model', None)
    if not (isinstance(network, WholeNetwork) and network.at_once() and hasattr(network.executor, 'beside')) or (
            predictor.crop_size or predictor.memory_limit is not None):
        return None
    side = round(SMALL**0.5 / max(network.n_scales))
    free = memory.available(network.device) - network.base - network.footprint.weights  # which are loaded once more
    count = int(min(images, threads(), MOST, free / network.peak((side, side), memory.AT_ONCE)))
    return Lanes(predictor, count) if count > 1 else None
