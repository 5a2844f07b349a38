"""The whole network as one computation: preprocessing, all scales, their fusion, flip, argmax; for any operations.

The formula is MscaleOCRNet.hierarchy's, the head inference.plain_head's, with or without
inference.export.rearranged_head. `ops` are those of inference.onnx_writer or
inference.paddle_operations with a few more: sizes of images that may be known or not, and what comes before and after
the network (inference.export.onnx_graph, inference.export.paddle_program).
"""
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from inference import plain_head
from models.mscale_ocrnet import MscaleOCRNet
from models.operations import Value

OUTPUTS = ('classes', 'probabilities', 'logits')


@dataclass(frozen=True)
class Settings:
    """size: (H, W) of all images, or None for any. output: one of OUTPUTS. flip: average with the mirrored image.

    mean, std: of RGB in 0..1. preprocessing: whether the input is the image itself, uint8 (H, W, 3) RGB; then classes
    are uint8 (H, W). Otherwise the input is float32 (1, 3, H, W), normalised, and classes are uint8 (1, H, W).
    Probabilities and logits are float32 (1, K, H, W). precision: fp32 or fp16, of the network; image, softmax and
    fusion are float32 always.
    """
    size: tuple[int, int] | None = None
    output: str = 'classes'
    preprocessing: bool = False
    flip: bool = False
    precision: str = 'fp32'
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()


def network(ops: Any, model: MscaleOCRNet, image: Value, settings: Settings, head: Any | None = None) -> Value:
    """The output of a model with these settings for an image, an input of `ops`. head: a RearrangedHead or None."""
    x = ops.normalised(image, settings.mean, settings.std) if settings.preprocessing else image
    logits = hierarchy(ops, model, x, model.n_scales, head)
    if settings.flip:
        mirrored = hierarchy(ops, model, ops.mirrored(x), model.n_scales, head)
        logits = ops.times(ops.add(logits, ops.mirrored(mirrored)), 0.5, full=True)
    if settings.output == 'classes':
        return ops.classes(logits, whole=not settings.preprocessing)
    return ops.softmax(logits, axis=1) if settings.output == 'probabilities' else logits


def hierarchy(ops: Any, model: MscaleOCRNet, x: Value, scales: Sequence[float], head: Any | None) -> Value:
    """(1, 3, H, W) -> logits (1, K, H, W)."""
    size = ops.size(x)
    highest, *lower = sorted(scales, reverse=True)
    total, _ = _one_scale(ops, model, x, ops.scaled_size(size, highest), False, head)
    for scale in lower:
        scaled = ops.scaled_size(size, scale)
        logits, attention = _one_scale(ops, model, x, scaled, True, head)
        if scale >= 1:  # attention * logits + (1 - attention) * total
            total = ops.resize_to(total, scaled)
            total = ops.add(ops.multiply(ops.subtract(logits, total), attention), total)
        else:
            weighted = ops.resize_to(ops.multiply(logits, attention), size)
            kept = ops.multiply(total, ops.resize_to(attention, size))
            total = ops.add(ops.subtract(total, kept), weighted)
    return total


def _one_scale(ops: Any, model: MscaleOCRNet, x: Value, size: Any, attend: bool,
               head: Any | None) -> tuple[Value, Value | None]:
    """Logits and attention of the image at this size, at this size."""
    branches = model.ocrnet.backbone.walk(ops, ops.working_precision(ops.resize_to(x, size)))
    logits, attention = plain_head.logits_and_attention(ops, model, branches, attend, head)
    return ops.resize_to(logits, size), None if attention is None else ops.resize_to(attention, size)
