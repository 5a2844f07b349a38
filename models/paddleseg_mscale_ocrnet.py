"""PaddleSeg 2.8's own MscaleOCRNet, beside this repository's class of that name: the config tells which is meant.

The two fuse scales by the same formula. PaddleSeg's has no sizes to choose, other names of its weights, four outputs in
another order, and a backbone that can attend within its blocks (`use_psa`, Liu et al., "Polarized Self-Attention",
arXiv:2107.00782). It trains as PaddleSeg wrote it; for inference it is expressed as a MscaleOCRNet of this repository,
which every backend runs.
"""
from collections.abc import Mapping, Sequence
from typing import Any

import paddle
import paddleseg.models
from paddle import nn
from paddleseg.models import layers
from paddleseg.models.backbones import hrnet as paddleseg_hrnet

from models.hrnet import BasicBlock, HRNet
from models.mscale_ocrnet import MscaleOCRNet, check_scales
from models.operations import Value
from models.weight_names import from_paddleseg

# Parameters that one of the two alone has.
OURS = ('n_scales', 'ocr_mid_channels', 'ocr_key_channels', 'attn_channels', 'dropout', 'fresh_head', 'recompute',
        'align_corners')
THEIRS = ('mscale',)


def of_config(cfg: Mapping[str, Any]) -> type[nn.Layer]:
    """The class that a `model` of type MscaleOCRNet means: by a parameter that one of them alone has; else PaddleSeg's
    if backbone_indices is absent, which the other needs, and the backbone is not one of this repository."""
    if any(name in cfg for name in THEIRS):
        return PaddleSegMscaleOCRNet
    backbone = cfg.get('backbone')
    kind = str(backbone.get('type')) if isinstance(backbone, Mapping) else ''
    ours = '_NV' in kind or kind == 'HRNet' or isinstance(backbone, HRNet)
    ours = ours or any(name in cfg for name in (*OURS, 'backbone_indices'))
    return MscaleOCRNet if ours else PaddleSegMscaleOCRNet


def mscale_ocrnet(**parameters: Any) -> nn.Layer:
    """The MscaleOCRNet that the parameters of a config mean, this repository's or PaddleSeg's."""
    return of_config(parameters)(**parameters)


vars(mscale_ocrnet)['of_config'] = of_config


class PaddleSegMscaleOCRNet(paddleseg.models.MscaleOCRNet):
    """PaddleSeg's class. Training returns `[joint auxiliary, joint, 0.5x, 1.0x]`, evaluation `[logits]`.

    Args (names as in PaddleSeg's config): num_classes, backbone, backbone_indices ([0]: the head reads the backbone's
    first output whatever they are), mscale (scales of the evaluation; None: 0.5 and 1.0), pretrained.
    """

    def __init__(self, num_classes: int, backbone: nn.Layer, backbone_indices: Sequence[int] = (0,),
                 mscale: Sequence[float] | None = (0.5, 1.0, 2.0), pretrained: str | None = None) -> None:
        super().__init__(num_classes, backbone, list(backbone_indices), list(mscale or ()), pretrained)

    @staticmethod
    def refusal(cfg: Mapping[str, Any], num_classes: int | None = None) -> str | None:
        """Why a config cannot run, or None."""
        scales = cfg.get('mscale') or [1.0]
        if 1.0 not in scales or min(scales) <= 0:
            return f'its mscale must be positive scales with 1.0 among them, and is {scales}'
        return None

    def own_form(self) -> MscaleOCRNet | None:
        """The same network, with the current weights, as a MscaleOCRNet of this repository in evaluation mode.

        None if the backbone is not an HRNet with explicit padding (`padding_same: False`): that of 'same' padding
        depends on the size of the image.
        """
        backbone = _own_backbone(self.backbone)
        if backbone is None:
            return None
        network = _OwnForm(self.ocr.cls_head.weight.shape[0], backbone, [0], check_scales(self.mscale or (0.5, 1.0)))
        network.set_state_dict(from_paddleseg(self.state_dict()))
        network.eval()
        return network


def _scaled_by_factor(x: paddle.Tensor, scale: float) -> paddle.Tensor:
    """The image at a scale as PaddleSeg computes it: where height times scale is not an integer, the centres of the
    pixels are placed by the scale, not by the sizes of both images."""
    return nn.functional.interpolate(x, scale_factor=scale, mode='bilinear')


class _OwnForm(MscaleOCRNet):
    scale_image = staticmethod(_scaled_by_factor)


class PolarizedSelfAttention(layers.PolarizedSelfAttentionModule):
    """PaddleSeg's layer, with a walk for a single image (models.operations); (1, C, H, W) -> the same shape."""

    def walk(self, ops: Any, x: Value) -> Value:
        def conv(layer: nn.Conv2D, y: Value) -> Value:
            return ops.conv(y, *ops.once(layer, lambda: [layer.weight.numpy()]))

        # Which channels: pixels mixed by their weights. Which pixels: their likeness to the mean pixel.
        weight = ops.softmax(ops.flat(ops.full_precision(conv(self.conv_q_right, x))), axis=1)
        mixed = ops.matmul(ops.flat(ops.full_precision(conv(self.conv_v_right, x))), weight, transpose_y=True)
        channels = ops.sigmoid(conv(self.conv_up, ops.cast_as(ops.vectors(mixed), x)))
        mean = ops.mean(ops.flat(ops.full_precision(conv(self.conv_q_left, x))))
        likeness = ops.matmul(mean, ops.flat(ops.full_precision(conv(self.conv_v_left, x))), transpose_x=True)
        pixels = ops.like(ops.cast_as(ops.sigmoid(ops.softmax(likeness, axis=1)), x), x)
        return ops.add(ops.multiply(x, pixels), ops.multiply(x, channels))


def _own_backbone(net: Any) -> HRNet | None:
    """An HRNet of this repository with the layers of PaddleSeg's, not with its weights; None if there is none."""
    if not isinstance(net, paddleseg_hrnet.HRNet) or net.has_se or net.align_corners:
        return None
    channels = list(net.stage4_num_channels)
    blocks = net.stage4_num_blocks[0]
    if channels != [channels[0] * 2**b for b in range(4)]:
        return None
    made = HRNet(channels[0], (net.stage2_num_modules, net.stage3_num_modules, net.stage4_num_modules), blocks,
                 (net.stage1_num_blocks[0], net.stage1_num_channels[0]))
    attentive = [layer for layer in net.sublayers() if isinstance(layer, layers.PolarizedSelfAttentionModule)]
    if attentive:
        for block in made.sublayers():
            if isinstance(block, BasicBlock):
                width = block.conv1.out_channels
                block.deattn = PolarizedSelfAttention(width, width)
    wanted, found = ({name: list(value.shape) for name, value in layer.state_dict().items()} for layer in (made, net))
    return made if wanted == found and not _same_padding(net) else None


def _same_padding(net: nn.Layer) -> bool:
    return any(isinstance(layer, nn.Conv2D) and layer._padding == 'same' and layer.weight.shape[2] > 1
               for layer in net.sublayers())
