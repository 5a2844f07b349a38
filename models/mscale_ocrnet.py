"""Hierarchical multi-scale attention over OCRNet (Tao, Sapra, Catanzaro, arXiv:2005.10821)."""
from collections.abc import Callable, Sequence

import paddle
import paddle.nn as nn

from common.errors import UserError
from models.hrnet import Fusion, HRNet
from models.layers import resize, resize_logits, scale_image, scaled_size
from models.ocr import OCRNet
from models.recompute import set_recompute
from models.scale_attention import ScaleAttention
from models.weights import load_pretrained


class MscaleOCRNet(nn.Layer):
    """One network at several scales of the image, fused by learned attention between neighbouring scales.

    Training runs 0.5x and 1.0x (section 3.2 of the paper) and returns
    `[joint, joint auxiliary, 0.5x, 1.0x]` logits; evaluation fuses `n_scales`, in any order and with 1.0 among them,
    from high to low and returns `[logits]`. Everything is float32 (N, num_classes, H, W) at the size of the input.

    Args (names as in the published config):
        num_classes: number of classes.
        backbone: layer with `feat_channels`, returning a list of (N, C, h, w).
        backbone_indices: which of the backbone's outputs the auxiliary and the OCR head read (one or two indices).
        n_scales: scales of the evaluation.
        ocr_mid_channels, ocr_key_channels: width of the OCR features and of its attention.
        attn_channels: width of the scale attention.
        dropout: probability of dropping a channel of the OCR features.
        pretrained: weights to start from (see models.weights.load_pretrained).
        fresh_head: load everything except the classification layers from `pretrained`, for another number of classes.
        align_corners: how everything is resized, in HRNet's backbones as well: False as in the recipe and in NVIDIA's
            weights, True as in those of HRNet's authors with OCR. True evaluates without fusion (inference.fused).
        recompute (bool): keep only the inputs of stage 1, of HRNet's modules and of parts of the heads for the
            backward pass, and compute the rest a second time (see models.recompute; benchmarks/training.py measures
            memory and time). A backbone without segments keeps everything.
    Raises UserError if 1.0 is not among n_scales or a scale is not positive.
    """

    scale_image = staticmethod(scale_image)  # in fused inference

    def __init__(self, num_classes: int, backbone: nn.Layer, backbone_indices: list[int],
                 n_scales: Sequence[float] = (0.5, 1.0, 2.0), ocr_mid_channels: int = 512, ocr_key_channels: int = 256,
                 attn_channels: int = 256, dropout: float = 0.05, pretrained: str | None = None,
                 fresh_head: bool = False, recompute: bool = False, align_corners: bool = False) -> None:
        super().__init__()
        self.n_scales = check_scales(n_scales)
        _check_indices(backbone_indices, len(backbone.feat_channels))
        self.ocrnet = OCRNet(num_classes, backbone, backbone_indices, ocr_mid_channels, ocr_key_channels, dropout)
        self.scale_attn = ScaleAttention(ocr_mid_channels, attn_channels)
        self.align_corners = bool(align_corners)
        for layer in self.sublayers():
            if isinstance(layer, HRNet | Fusion):
                layer.align_corners = self.align_corners
        set_recompute(self, bool(recompute))
        if pretrained is not None:
            load_pretrained(self, pretrained, fresh_head)

    def supports_fusion(self) -> bool:
        """Whether inference.fused can run it: the backbone has branches, both heads read their concatenation, and
        resizing is by half-pixel centres."""
        branches = getattr(self.ocrnet.backbone, 'branch_channels', ())
        return not self.align_corners and len(branches) == 4 and len(set(self.ocrnet.backbone_indices)) == 1

    def forward(self, x: paddle.Tensor) -> list[paddle.Tensor]:
        return self.two_scales(x) if self.training else [self.hierarchy(x, self.n_scales)]

    def two_scales(self, x: paddle.Tensor) -> list[paddle.Tensor]:
        """Training: the lower scale's attention weights 0.5x against 1.0x, for the auxiliary logits as well."""
        size = x.shape[2:]
        # Lower scale first: the running statistics of batch norm depend on the order; this is the published one.
        low, low_aux, low_attention = self._one_scale(x, 0.5)
        high, high_aux, ocr = self.ocrnet(x)
        self.scale_attn.update_statistics(ocr)  # the recipe uses the attention of 1.0x for nothing else
        high, high_aux = self._resize_logits(high, size), self._resize_logits(high_aux, size)
        rest = 1 - self._resize(low_attention, size)
        joint = self._resize(low_attention * low, size) + rest * high
        joint_aux = self._resize(low_attention * low_aux, size) + rest * high_aux
        return [joint, joint_aux, self._resize(low, size), high]

    def hierarchy(self, x: paddle.Tensor, scales: Sequence[float], with_weights: bool = False) -> paddle.Tensor:
        """Evaluation, eq. (1) of the paper applied from the highest scale down: (N, 3, H, W) -> logits (N, K, H, W).

        with_weights: with one more channel for each scale, see `mark_scale`.
        """
        highest, *lower = sorted(scales, reverse=True)
        fused = self._logits(x, highest)
        fused = mark_scale(fused, highest, scales) if with_weights else fused
        for scale in lower:
            logits, attention = self._logits_and_attention(x, scale)
            logits = mark_scale(logits, scale, scales) if with_weights else logits
            if scale >= 1:  # the result of the higher scales is shrunk to this one
                fused = attention * logits + (1 - attention) * self._resize(fused, logits.shape[2:])
            else:  # the result stays at 1.0: lower scales are enlarged to it
                size = fused.shape[2:]
                fused = self._resize(attention * logits, size) + (1 - self._resize(attention, size)) * fused
        return fused

    def with_scale_weights(self) -> Callable[[paddle.Tensor], list[paddle.Tensor]]:
        """The evaluation as a function whose logits are followed by the weights of the scales, see `mark_scale`."""
        return lambda x: [self.hierarchy(x, self.n_scales, with_weights=True)]

    def _resize(self, x: paddle.Tensor, size: Sequence[int]) -> paddle.Tensor:
        return resize(x, size, self.align_corners)

    def _resize_logits(self, x: paddle.Tensor, size: Sequence[int]) -> paddle.Tensor:
        return resize_logits(x, size, self.align_corners)

    def _scaled(self, x: paddle.Tensor, scale: float) -> paddle.Tensor:
        """The image at a scale."""
        return self._resize(x, scaled_size(x.shape[2:], scale))

    def _one_scale(self, x: paddle.Tensor, scale: float) -> list[paddle.Tensor]:
        """(logits, auxiliary logits, attention) of the image at a scale, at the size of the scaled image."""
        x = self._scaled(x, scale)
        logits, aux, ocr = self.ocrnet(x)
        return [self._resize_logits(y, x.shape[2:]) for y in (logits, aux, self.scale_attn(ocr))]

    def _logits_and_attention(self, x: paddle.Tensor, scale: float) -> tuple[paddle.Tensor, paddle.Tensor]:
        """As _one_scale, without the auxiliary logits."""
        x = self._scaled(x, scale)
        logits, _, ocr = self.ocrnet(x)
        size = x.shape[2:]
        return self._resize_logits(logits, size), self._resize_logits(self.scale_attn(ocr), size)

    def _logits(self, x: paddle.Tensor, scale: float) -> paddle.Tensor:
        """As _one_scale, logits only: the highest scale has no use for attention."""
        x = self._scaled(x, scale)
        return self._resize_logits(self.ocrnet(x)[0], x.shape[2:])


def mark_scale(logits: paddle.Tensor, scale: float, scales: Sequence[float]) -> paddle.Tensor:
    """Logits (N, K, h, w) of one scale, with one more channel for each of `scales`, ascending and without duplicates.

    The new channels are 1 for `scale` and 0 for the others. The fusion is linear in the logits and does the same to
    every channel, so that it turns them into the weights of the scales in the fused logits, whatever the interpolations
    and averages in between; they sum to 1.
    """
    n, _, height, width = logits.shape
    own = [float(scale == other) for other in sorted(set(scales))]
    marks = paddle.to_tensor(own, dtype=logits.dtype).reshape([1, -1, 1, 1]).expand([n, len(own), height, width])
    return paddle.concat([logits, marks], axis=1)


def check_scales(scales: Sequence[float]) -> list[float]:
    """The scales as a list of floats; UserError unless they are positive and 1.0 is one of them."""
    scales = [float(scale) for scale in scales]
    if 1.0 not in scales or min(scales) <= 0:
        raise UserError(f'model.n_scales: expected positive scales with 1.0 among them, found {scales}; '
                         'add 1.0, the scale at which logits are returned')
    return scales


def _check_indices(indices: Sequence[int], outputs: int) -> None:
    if not 1 <= len(indices) <= 2 or not all(-outputs <= index < outputs for index in indices):
        raise UserError(f'model.backbone_indices: expected one or two of 0..{outputs - 1}, which the backbone has, '
                        f'found {list(indices)}; correct it')
