"""Each scale, or all of them, at once: without strips fewer bytes are moved, and more memory is taken.

On a GPU always, where memory suffices: nothing has been measured there. On a CPU where inference.forms has measured it
to be faster than strips.
"""
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import paddle

from inference import memory
from inference.fused_network import Executor, FusedNetwork, as_tensor
from models.layers import scale_image


class WholeExecutor(Executor, Protocol):
    """An Executor that can also run a scale at once."""

    def whole(self, image: paddle.Tensor, attend: bool) -> tuple[Any, Any | None]:
        """float32 (1, 3, H, W) -> logits (1, K, h, w) and attention (1, 1, h, w), None without `attend`; float32."""


class WholeNetwork(FusedNetwork):
    """As FusedNetwork; `executor.strip` of memory.WHOLE runs each scale at once, a smaller one in strips.

    extra: bytes that a scale at once takes beyond strips, per pixel of the finest branch (`head_bytes`). at_once: the
    executor has all scales and their fusion in one graph, which a strip of memory.AT_ONCE runs: a method `hierarchy`,
    float32 (1, 3, H, W) -> logits (1, K, H, W).
    """

    def __init__(self, executor: WholeExecutor, n_scales: Sequence[float], footprint: memory.Footprint,
                 scale_image: Callable[[paddle.Tensor, float], paddle.Tensor] = scale_image,
                 extra: float | None = None, at_once: bool = False) -> None:
        super().__init__(executor, n_scales, footprint, scale_image)
        self.executor: Any = executor
        self._fused_scales = sorted(set(n_scales))  # of that graph; n_scales can be changed
        self._extra = head_bytes(footprint) if extra is None else extra
        self.largest_strip = self.strips[0]
        self.strips = [*[memory.AT_ONCE] * at_once, memory.WHOLE, *self.strips]
        executor.strip = self.strips[0]

    def with_scale_weights(self) -> FusedNetwork:
        twin = super().with_scale_weights()
        twin.strips = [strip for strip in self.strips if strip < memory.AT_ONCE]  # whose graph has no such output
        return twin

    @paddle.no_grad()
    def __call__(self, x: paddle.Tensor) -> list[paddle.Tensor]:
        if self.executor.strip < memory.AT_ONCE or not self.at_once():
            return super().__call__(x)
        return [as_tensor(self.executor.hierarchy(x))]

    def at_once(self) -> bool:
        """Whether one graph has all scales of this network."""
        return memory.AT_ONCE in self.strips and sorted(set(self.n_scales)) == self._fused_scales

    def peak(self, size: Sequence[int], strip: int | None = None) -> float:
        if (strip or self.strips[0]) < memory.WHOLE:
            return super().peak(size, strip) + self.footprint.weights  # the parts of strips are loaded beside the rest
        logits = 2 * 4 * self.footprint.classes * size[0] * size[1]  # of the engine, and copied
        # An engine keeps what the highest and what the second highest scale takes.
        return logits + sum(self.footprint.peak(size, [scale], self.largest_strip, self.executor.name) +
                   self._extra * size[0] * size[1] * scale**2 / 16 for scale in sorted(set(self.n_scales))[-2:])

    def one_scale(self, image: paddle.Tensor, attend: bool) -> tuple[paddle.Tensor, paddle.Tensor | None]:
        if self.executor.strip < memory.WHOLE:
            return super().one_scale(image, attend)
        logits, attention = self.executor.whole(image, attend)
        return as_tensor(logits), None if attention is None else as_tensor(attention)


def head_bytes(footprint: memory.Footprint) -> float:
    """Of float32, per pixel of the finest branch, of the heads as trained.

    15 times the finest branch, enlarged and joined; the same for the auxiliary head; and of the features: pixels,
    context, both joined, the result. Twice, because a convolution may copy its input.
    """
    return 2 * 4 * (2 * 15 * footprint.branch + 5 * footprint.features)
