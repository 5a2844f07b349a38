"""The heads with fewer multiply-adds, for one graph of the whole network in float32; as inference.fused without strips.

Convolution and bilinear enlargement are linear, so what the two coarser branches add to the auxiliary and the pixel
features is computed at their own size, a 3x3 convolution as nine sums of channels, and enlarged afterwards: columns
first, then rows as a product with a matrix, which also moves them by the rows of the kernel. The two finer branches are
enlarged and joined as in training: enlarging their few channels moves fewer bytes than enlarging nine sums. For an
HRNet-W48 this leaves about two fifths of the multiply-adds. The matrix costs more the higher the image is: with scale 2
as much as is saved, at about 7000 rows. tests/export/test_rearranged_head.py compares the result with the layers.
"""
from collections.abc import Sequence
from typing import Any

import numpy as np

from inference import fused
from models.mscale_ocrnet import MscaleOCRNet
from models.operations import Value

FINE = 2  # branches that are joined at the size of the finest one
ROWS = (-1, 0, 1)  # of a 3x3 kernel


class RearrangedHead:
    """The weights of a model's heads in this arrangement. `ops` of its methods: inference.export.onnx_graph.WholeOps.
    """

    def __init__(self, model: MscaleOCRNet) -> None:
        layers, channels = model.ocrnet.head.layers(), model.ocrnet.backbone.branch_channels
        self._weights = fused.head_weights(model.ocrnet.head, channels)
        joined = sum(channels[:FINE])
        self._aux = np.concatenate(self._weights.aux[:FINE], axis=1)
        self._pixels = np.ascontiguousarray(layers.pixels.folded()[0][:, :joined])

    def features(self, ops: Any, branches: Sequence[Value]) -> tuple[Value, Value]:
        """The four branches, each (1, C_b, h_b, w_b) -> auxiliary features (1, A, h, w), pixel features (1, C, h, w).
        """
        w = self._weights
        finest, *others = branches[:FINE]
        coarse = branches[FINE:]  # one after the other, and first: nothing else has to be kept meanwhile
        aux = ops.sum([ops.enlarged_rows([ops.resize_width(ops.linear(x, weight), finest)], finest, (0,))
                       for x, weight in zip(coarse, w.aux[FINE:])])
        pixels = ops.sum([self._enlarged(ops, x, kernel, finest) for x, kernel in zip(coarse, w.pixels[FINE:])])
        fine = ops.concat([finest, *(ops.resize(x, finest) for x in others)])
        return (ops.relu(ops.add(ops.linear(fine, self._aux, w.aux_bias), aux)),
                ops.relu(ops.add(ops.conv(fine, self._pixels, w.pixels_bias, padding=1), pixels)))

    @staticmethod
    def _enlarged(ops: Any, x: Value, kernel: Sequence[Sequence[np.ndarray]], finest: Value) -> Value:
        """What a branch adds to the pixel features, with the kernel's taps by row and column."""
        rows = [ops.sum_shifted([ops.resize_width(ops.linear(x, tap), finest) for tap in taps]) for taps in kernel]
        return ops.enlarged_rows(rows, finest, ROWS)

    def joined(self, ops: Any, context: Value, pixels: Value) -> Value:
        """The features after [context, pixels], each (1, C, h, w), which are not put side by side."""
        of_context, of_pixels, bias = self._weights.join
        return ops.relu(ops.add(ops.linear(context, of_context, bias), ops.linear(pixels, of_pixels)))
