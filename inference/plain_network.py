"""The head as trained, for GPUs: few large convolutions on tensor cores instead of many small steps in strips.

Which of the two forms is faster on a GPU has not been measured. Batch norm is folded, and outputs that evaluation does
not use are not computed. Where memory does not suffice, the parts of inference.fused run in strips.
"""
from collections.abc import Sequence

import paddle
import paddle.nn.functional as F

from inference import memory
from inference.backends.paddle_backend import PaddleExecutor
from inference.fused_network import FusedNetwork
from inference.paddle_operations import PaddleOps
from models.layers import cast
from models.mscale_ocrnet import MscaleOCRNet


class PlainNetwork(FusedNetwork):
    """As FusedNetwork; `executor.strip` of memory.WHOLE runs each scale at once and with the head as trained."""

    def __init__(self, executor: PaddleExecutor, model: MscaleOCRNet, footprint: memory.Footprint) -> None:
        super().__init__(executor, model.n_scales, footprint)
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
        ops, layers = self._ops, self._model.ocrnet.head.layers()
        finest, *coarser = self.executor.backbone(image)
        features = paddle.concat([finest, *(ops.resize(x, finest) for x in coarser)], axis=1)
        del finest, coarser
        aux = _classified(ops, layers.aux_classifier, ops.conv_bn(layers.aux, features))
        pixels = ops.conv_bn(layers.pixels, features)
        del features
        share = F.softmax(ops.flat(ops.full_precision(aux)), axis=1)
        regions = paddle.matmul(ops.flat(ops.full_precision(pixels)), share, transpose_y=True)  # (C, K)
        objects = cast(regions, pixels.dtype).unsqueeze(0).unsqueeze(3)
        query, key = pixels, objects
        for layer in layers.query:
            query = ops.conv_bn(layer, query)
        for layer in layers.key:
            key = ops.conv_bn(layer, key)
        similarity = paddle.matmul(ops.flat(key), ops.flat(query), transpose_x=True)
        mix = F.softmax(layers.similarity_scale * ops.full_precision(similarity), axis=0)  # (K, pixels)
        values = ops.flat(ops.conv_bn(layers.value, objects))
        context = ops.conv_bn(layers.context, ops.like(paddle.matmul(values, ops.cast_as(mix, pixels)), pixels))
        ocr = ops.conv_bn(layers.join, paddle.concat([context, pixels], axis=1))
        logits = ops.full_precision(_classified(ops, layers.classifier, ocr))
        if not attend:
            return logits, None
        first, second, last = self._model.scale_attn.layers()
        weight = _classified(ops, last, ops.conv_bn(second, ops.conv_bn(first, ocr)))
        return logits, F.sigmoid(ops.full_precision(weight))


def _classified(ops: PaddleOps, layer: paddle.nn.Conv2D, x: paddle.Tensor) -> paddle.Tensor:
    found = ops.once(layer, lambda: [w.numpy() for w in (layer.weight, layer.bias) if w is not None])
    return ops.conv(x, *found)
