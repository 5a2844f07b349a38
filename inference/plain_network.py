"""The head as trained, for GPUs: few large convolutions on tensor cores instead of many small steps in strips.

Which of the two forms is faster on a GPU has not been measured. Batch norm is folded, and outputs that evaluation does
not use are not computed. Where memory does not suffice, the parts of inference.fused run in strips.
"""
from collections.abc import Sequence

import paddle

from inference import memory, plain_head
from inference.backends.paddle_backend import PaddleExecutor
from inference.fused_network import FusedNetwork
from models.mscale_ocrnet import MscaleOCRNet


class PlainNetwork(FusedNetwork):
    """As FusedNetwork; `executor.strip` of memory.WHOLE runs each scale at once and with the head as trained."""

    def __init__(self, executor: PaddleExecutor, model: MscaleOCRNet, footprint: memory.Footprint) -> None:
        super().__init__(executor, model.n_scales, footprint, model.scale_image)
        self._ops, self._model = executor.ops, model
        self.largest_strip = executor.strip = memory.WHOLE

    def peak(self, size: Sequence[int], strip: int | None = None) -> float:
        found = super().peak(size, strip)
        if (strip or self.largest_strip) < memory.WHOLE:
            return found
        # 15 times the finest branch, enlarged and joined; the same for the auxiliary head; and of the features: pixels,
        # context, both joined, the result. Twice, because a convolution may copy its input.
        per_pixel = 2 * 4 * (2 * 15 * self.footprint.branch + 5 * self.footprint.features)
        return found + per_pixel * size[0] * size[1] * max(self.n_scales)**2 / 16

    def one_scale(self, image: paddle.Tensor, attend: bool) -> tuple[paddle.Tensor, paddle.Tensor | None]:
        if self.executor.strip < memory.WHOLE:
            return super().one_scale(image, attend)
        return plain_head.logits_and_attention(self._ops, self._model, self.executor.backbone(image), attend)
