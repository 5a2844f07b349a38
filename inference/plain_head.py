"""The heads in the arrangement in which they were trained, for any operations: few large convolutions, no strips.

For matrix units (GPUs, AMX) and for one graph of the whole network (inference.export); inference.fused has fewer
multiply-adds and moves more bytes. Batch norm is folded, the auxiliary logits of the fusion are left out, and f_up runs
on the K object vectors: the weights of a pixel's mix sum to 1, so the mix of their images is the image of their mix.
"""
from collections.abc import Sequence
from typing import Any

import paddle

from inference import fused
from models.mscale_ocrnet import MscaleOCRNet
from models.operations import Value


def logits_and_attention(ops: Any, model: MscaleOCRNet, branches: Sequence[Value], attend: bool,
                         rearranged: Any | None = None) -> tuple[Value, Value | None]:
    """The four branches of the backbone, each (1, C_b, h_b, w_b) -> logits (1, K, h, w) and attention (1, 1, h, w).

    Both at the resolution of the finest branch and in full precision; attention is None without `attend`. rearranged:
    an inference.export.rearranged_head.RearrangedHead, for the layers that it has.
    """
    layers = model.ocrnet.head.layers()
    if rearranged is None:
        finest, *coarser = branches
        features = ops.concat([finest, *(ops.resize(x, finest) for x in coarser)])
        del branches, finest, coarser
        aux = _classified(ops, layers.aux_classifier, ops.conv_bn(layers.aux, features))
        pixels = ops.conv_bn(layers.pixels, features)
        del features
    else:
        aux, pixels = rearranged.features(ops, branches)
        aux = _classified(ops, layers.aux_classifier, aux)
    share = ops.softmax(ops.flat(ops.full_precision(aux)), axis=1)
    regions = ops.matmul(ops.flat(ops.full_precision(pixels)), share, transpose_y=True)  # (C, K)
    objects = ops.vectors(ops.cast_as(regions, pixels))
    query, key = pixels, objects
    for layer in layers.query:
        query = ops.conv_bn(layer, query)
    for layer in layers.key:
        key = ops.conv_bn(layer, key)
    key = ops.times(ops.flat(key), layers.similarity_scale)
    similarity = ops.matmul(key, ops.flat(query), transpose_x=True)
    mix = ops.softmax(ops.full_precision(similarity))  # (K, pixels)
    del query, similarity
    values = ops.flat(ops.conv(ops.conv_bn(layers.value, objects), *ops.folded(layers.context)))
    context = ops.like(ops.relu(ops.matmul(values, ops.cast_as(mix, pixels))), pixels)
    del mix
    ocr = rearranged.joined(ops, context, pixels) if rearranged else \
        ops.conv_bn(layers.join, ops.concat([context, pixels]))
    del context, pixels
    logits = ops.full_precision(_classified(ops, layers.classifier, ocr))
    if not attend:
        return logits, None
    first, second, last = model.scale_attn.layers()
    weight = _classified(ops, last, ops.conv_bn(second, ops.conv_bn(first, ocr)))
    return logits, ops.sigmoid(ops.full_precision(weight))


def _classified(ops: fused.FoldedOperations, layer: paddle.nn.Conv2D, x: Value) -> Value:
    found = ops.once(layer, lambda: [w.numpy() for w in (layer.weight, layer.bias) if w is not None])
    return ops.conv(x, *found)
