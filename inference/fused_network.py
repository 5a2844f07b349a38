"""MscaleOCRNet for inference, of the parts of inference.fused: strips within a scale, then the fusion of scales."""
import copy
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import paddle

from inference import fused, memory
from inference.row_strips import bilinear_rows, bilinear_rows_via, split_rows
from models.layers import resize, scale_image
from models.mscale_ocrnet import mark_scale

CHUNK = 1 << 24  # floats of an enlarged image that exist at once
MATRIX = 1 << 26  # elements of a matrix of rows; images of 6000 rows and more go in pieces of TALL rows
TALL = 256
STRIP_ROWS = 1024  # of a strip at most: enlarging its rows takes the square of them


class Executor(Protocol):
    """Runs the parts of inference.fused; arrays are NumPy's or Paddle's, depending on the executor.

    name: of the backend. device: where it runs, for the log. strip: pixels of a strip of rows, at the backbone's
    resolution; can be changed, to memory.WHOLE where a WholeNetwork runs it. object_weights: as
    inference.fused.object_weights.
    """
    name: str
    device: str
    strip: int
    object_weights: dict[str, np.ndarray]

    def backbone(self, image: paddle.Tensor) -> Sequence[Any]:
        """float32 (1, 3, H, W) -> the four branches."""

    def pixels(self, finest: Any, coarser: Sequence[Any], enlarge: np.ndarray,
               enlarge_shifted: np.ndarray) -> tuple[Any, list[np.ndarray]]:
        """As inference.fused.pixels_and_statistics: (pixels, [top, total, regions])."""

    def logits(self, pixels: Any, key: np.ndarray, context: np.ndarray, inside: np.ndarray | None) -> Sequence[Any]:
        """As inference.fused.logits_and_attention; attention is None without `inside`."""

    def join(self, strips: Sequence[Any]) -> Any:
        """Strips concatenated vertically."""

    def zeros(self, x: Any, rows: int) -> Any:
        """Zeros like x, with so many rows."""


class FusedNetwork:
    """(1, 3, H, W) float32 tensor -> [logits (1, K, H, W) float32], those of MscaleOCRNet.hierarchy up to rounding.

    n_scales, scale_image: those of the model. footprint: what its memory depends on. The enlarged features, the
    features of the head and the logits at the highest scale exist for one strip at a time only.
    """

    def __init__(self, executor: Executor, n_scales: Sequence[float], footprint: memory.Footprint,
                 scale_image: Callable[[paddle.Tensor, float], paddle.Tensor] = scale_image) -> None:
        self.executor, self.n_scales, self.footprint = executor, list(n_scales), footprint
        self._scale_image = scale_image
        self.strips, self.device = memory.halves(executor.strip), executor.device
        memory.trim(self.device)
        self.base = memory.used(self.device)  # once: later it would include leftovers of images
        self._with_weights = False

    def with_scale_weights(self) -> 'FusedNetwork':
        """The same network whose logits are followed by the weights of the scales, see models' `mark_scale`."""
        twin = copy.copy(self)
        twin._with_weights = True
        twin.footprint = self.footprint._replace(classes=self.footprint.classes + len(set(self.n_scales)))
        return twin

    def peak(self, size: Sequence[int], strip: int | None = None) -> float:
        """Estimated bytes beyond those of the loaded network, for an image of (H, W)."""
        return self.footprint.peak(size, self.n_scales, strip or self.strips[0], self.executor.name)

    @paddle.no_grad()
    def __call__(self, x: paddle.Tensor) -> list[paddle.Tensor]:
        size = x.shape[2:]
        highest, *lower = sorted(self.n_scales, reverse=True)
        image = self._scale_image(x, highest)
        above = image.shape[2:]
        total, _ = self.one_scale(image, attend=False)
        total = self._marked(total, highest)
        for scale in lower:
            image = self._scale_image(x, scale)
            scaled = image.shape[2:]
            logits, attention = self.one_scale(image, attend=True)
            assert attention is not None  # with attend
            logits = self._marked(logits, scale)
            total = resize_via(total, above, scaled if scale >= 1 else size)
            logits, attention = resize(logits, scaled), resize(attention, scaled)
            if scale >= 1:  # attention * logits + (1 - attention) * total
                total.add_(logits.subtract_(total).multiply_(attention))
                above = scaled
            else:
                total.multiply_(1 - resize(attention, size)).add_(resize(logits.multiply_(attention), size))
                above = size
        return [resize_via(total, above, size)]

    def _marked(self, logits: paddle.Tensor, scale: float) -> paddle.Tensor:
        return mark_scale(logits, scale, self.n_scales) if self._with_weights else logits

    def one_scale(self, image: paddle.Tensor, attend: bool) -> tuple[paddle.Tensor, paddle.Tensor | None]:
        """(logits (1, K, h, w), attention (1, 1, h, w) or None), float32 tensors at the backbone's resolution."""
        memory.trim(self.device)  # before the peak of memory
        executor = self.executor
        finest, *coarser = executor.backbone(image)
        del image  # 0.1 GB at 2048x4096
        height, width = finest.shape[2:]
        rows = min(max(1, executor.strip // width), STRIP_ROWS)
        strips, counts = split_rows(height, [x.shape[2] for x in coarser], rows)
        pixels: list[Any] = []
        statistics = []
        for s in strips:
            coarser_rows = [x[:, :, low:low + count] for x, low, count in zip(coarser, s.low, counts)]
            features, values = executor.pixels(self._window([finest], s.start - 1, s.stop + 1), coarser_rows,
                                               s.enlarge, s.enlarge_shifted)
            pixels.append(features)
            statistics.append(values)
        del finest, coarser
        key, context = fused.objects(executor.object_weights, _regions(*zip(*statistics)))
        logits, attentions = [], []
        for i, s in enumerate(strips):
            inside = None
            x = pixels[i]
            if attend:
                x = self._window(pixels, s.start - fused.HALO, s.stop + fused.HALO)
                rows = np.arange(s.start - fused.HALO, s.stop + fused.HALO)
                inside = ((rows >= 0) & (rows < height)).astype(np.float32).reshape(1, 1, -1, 1)
            else:
                pixels[i] = None
            strip_logits, attention = executor.logits(x, key, context, inside)
            logits.append(strip_logits)
            attentions.append(attention)
        return as_tensor(executor.join(logits)), as_tensor(executor.join(attentions)) if attend else None

    def _window(self, strips: Sequence[Any], start: int, stop: int) -> Any:
        """Rows [start, stop) of the concatenated strips; zeros for rows outside of them."""
        pieces, first = [], 0
        for x in strips:
            low, high = max(start - first, 0), min(stop - first, x.shape[2])
            if low < high:
                pieces.append(x[:, :, low:high])
            first += x.shape[2]
        if start < 0:
            pieces.insert(0, self.executor.zeros(strips[0], -start))
        if stop > first:
            pieces.append(self.executor.zeros(strips[0], stop - first))
        return self.executor.join(pieces)


def as_tensor(x: Any) -> paddle.Tensor:
    """An array of an executor as a tensor."""
    return x if isinstance(x, paddle.Tensor) else paddle.to_tensor(x)


def _regions(tops: Sequence[np.ndarray], totals: Sequence[np.ndarray], sums: Sequence[np.ndarray]) -> np.ndarray:
    """Object regions (K, C): the pixels' mean weighted by a softmax over space, of the sums over strips."""
    top = np.max(tops, axis=0)
    gains = [np.exp(t - top) for t in tops]
    return sum(s * g for s, g in zip(sums, gains)) / sum(t * g for t, g in zip(totals, gains))


def resize_via(x: paddle.Tensor, above: Sequence[int], size: Sequence[int]) -> paddle.Tensor:
    """resize(resize(x, above), size) for (1, K, h, w), without the large intermediate image.

    Rows: both maps as one matrix. Columns: first one map, then the other, for a few rows at a time.
    """
    if list(above) == list(size):
        return resize(x, size)
    if above[0] * size[0] <= MATRIX:
        rows = bilinear_rows(above[0], size[0]) @ bilinear_rows(x.shape[2], above[0])
        x = paddle.matmul(paddle.to_tensor(rows), x)
    else:
        pieces = bilinear_rows_via(x.shape[2], above[0], size[0], TALL)
        x = paddle.concat([paddle.matmul(paddle.to_tensor(rows), x[:, :, read]) for read, rows in pieces], axis=2)
    step = max(1, CHUNK // (x.shape[1] * above[1]))
    return paddle.concat([resize(resize(part, [part.shape[2], above[1]]), [part.shape[2], size[1]])
                          for part in (x[:, :, i:i + step] for i in range(0, size[0], step))], axis=2)
