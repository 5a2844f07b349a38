"""OCR head: object-contextual representations (Yuan et al., ECCV 2020, arXiv:1909.11065)."""
import typing
from typing import NamedTuple

import paddle
import paddle.nn as nn
import paddle.nn.functional as F

from models.layers import ConvBN, cast, classifier
from models.recompute import Segment


def gather_regions(pixels: paddle.Tensor, region_logits: paddle.Tensor) -> paddle.Tensor:
    """Mean pixel per class, weighted by a softmax over space: (N, C, H, W), (N, K, H, W) -> (N, C, K, 1). Eq. (3)

    Always float32: for a large image the weights are below the smallest float16 number.
    """
    with paddle.amp.auto_cast(enable=False):
        weights = F.softmax(cast(region_logits, paddle.float32).flatten(2), axis=2)  # (N, K, HW)
        return paddle.matmul(cast(pixels, paddle.float32).flatten(2), weights, transpose_y=True).unsqueeze(3)


class ObjectAttention(Segment):
    """Every pixel attends to the K object regions: (N, C, H, W), (N, C, K, 1) -> context (N, C, H, W). Eq. (4)-(5)"""

    def __init__(self, channels: int, key_channels: int) -> None:
        super().__init__()
        self.f_pixel = nn.Sequential(ConvBN(channels, key_channels), ConvBN(key_channels, key_channels))
        self.f_object = nn.Sequential(ConvBN(channels, key_channels), ConvBN(key_channels, key_channels))
        self.f_down = ConvBN(channels, key_channels)
        self.f_up = ConvBN(key_channels, channels)
        self.scale = key_channels**-0.5

    def forward(self, pixels: paddle.Tensor, regions: paddle.Tensor) -> paddle.Tensor:
        query = self.f_pixel(pixels)  # (N, D, H, W)
        key = self.f_object(regions).flatten(2)  # (N, D, K)
        value = self.f_down(regions).flatten(2)  # (N, D, K)
        similarity = paddle.matmul(query.flatten(2), key, transpose_x=True)  # (N, HW, K)
        weights = F.softmax(self.scale * cast(similarity, paddle.float32), axis=2)
        context = paddle.matmul(value, weights, transpose_y=True)  # (N, D, HW)
        return self.f_up(context.reshape(query.shape))


class JoinContext(Segment, nn.Sequential):
    """Object context and pixels, both (N, C, H, W), joined to (N, C, H, W)."""

    def __init__(self, channels: int, dropout: float) -> None:
        super().__init__(ConvBN(2 * channels, channels), nn.Dropout2D(dropout))

    def forward(self, context: paddle.Tensor, pixels: paddle.Tensor) -> paddle.Tensor:  # type: ignore[override]
        # Two inputs, where Paddle's Sequential has one.
        return super().forward(paddle.concat([context, pixels], axis=1))


class SpatialOCR(nn.Layer):
    """Pixels joined with their object context: (N, C, H, W), (N, C, K, 1) -> (N, C, H, W)."""

    def __init__(self, channels: int, key_channels: int, dropout: float) -> None:
        super().__init__()
        self.attention_block = ObjectAttention(channels, key_channels)
        self.conv1x1 = JoinContext(channels, dropout)

    def forward(self, pixels: paddle.Tensor, regions: paddle.Tensor) -> paddle.Tensor:
        return self.conv1x1(self.attention_block(pixels, regions), pixels)


class AuxiliaryHead(Segment, nn.Sequential):
    """Backbone features (N, C, H, W) -> logits (N, num_classes, H, W)."""

    def __init__(self, num_classes: int, channels: int) -> None:
        super().__init__(ConvBN(channels, channels, bias=True), classifier(channels, num_classes))


class HeadLayers(NamedTuple):
    """The layers of an OCRHead by role, for code that runs them in another arrangement (inference.fused).

    aux, aux_classifier: the auxiliary logits. pixels: the pixel features. query: pixel features to queries. key: object
    regions to keys, one after the other. value, context: object regions to values, and their mix back to pixel
    features. join: [context, pixels] to OCR features. classifier: OCR features to logits. similarity_scale: of query
    times key.
    """
    aux: ConvBN
    aux_classifier: nn.Conv2D
    pixels: ConvBN
    query: list[ConvBN]
    key: list[ConvBN]
    value: ConvBN
    context: ConvBN
    join: ConvBN
    classifier: nn.Conv2D
    similarity_scale: float


class OCRHead(nn.Layer):
    """Backbone features -> (logits, auxiliary logits, OCR features), all at the features' resolution.

    features: list of (N, C, H, W); the auxiliary head reads the last but one, the OCR head the last (with a
    single one, both read it). Returns (N, num_classes, H, W) twice and (N, mid_channels, H, W).
    """

    def __init__(self, num_classes: int, in_channels: list[int], mid_channels: int = 512, key_channels: int = 256,
                 dropout: float = 0.05) -> None:
        super().__init__()
        aux_channels = in_channels[-2:][0]
        self.spatial_ocr = SpatialOCR(mid_channels, key_channels, dropout)
        self.conv3x3_ocr = ConvBN(in_channels[-1], mid_channels, 3, bias=True)
        self.cls_head = classifier(mid_channels, num_classes)
        self.aux_head = AuxiliaryHead(num_classes, aux_channels)

    def layers(self) -> HeadLayers:
        """The layers by role."""
        attention = self.spatial_ocr.attention_block
        aux, aux_classifier = self.aux_head
        query, key = ([typing.cast(ConvBN, layer) for layer in layers]
                      for layers in (attention.f_pixel, attention.f_object))
        return HeadLayers(
            typing.cast(ConvBN, aux), typing.cast(nn.Conv2D, aux_classifier), self.conv3x3_ocr, query, key,
            attention.f_down, attention.f_up, typing.cast(ConvBN, self.spatial_ocr.conv1x1[0]), self.cls_head,
            attention.scale)

    def forward(self, features: list[paddle.Tensor]) -> tuple[paddle.Tensor, paddle.Tensor, paddle.Tensor]:
        aux = self.aux_head(features[-2:][0])
        pixels = self.conv3x3_ocr(features[-1])
        ocr = self.spatial_ocr(pixels, gather_regions(pixels, aux))
        return self.cls_head(ocr), aux, ocr


class OCRNet(nn.Layer):
    """Backbone and OCR head: (N, 3, H, W) -> (logits, auxiliary logits, OCR features) at the backbone's resolution."""

    def __init__(self, num_classes: int, backbone: nn.Layer, backbone_indices: list[int], mid_channels: int = 512,
                 key_channels: int = 256, dropout: float = 0.05) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = OCRHead(num_classes, [backbone.feat_channels[i] for i in backbone_indices],
                            mid_channels, key_channels, dropout)
        self.backbone_indices = list(backbone_indices)

    def forward(self, x: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor, paddle.Tensor]:
        features = self.backbone(x)
        return self.head([features[i] for i in self.backbone_indices])
