"""Scale attention head (Tao, Sapra, Catanzaro, "Hierarchical Multi-Scale Attention", arXiv:2005.10821, section 3)."""
import typing

import paddle
import paddle.nn as nn
import paddle.nn.functional as F

from models.layers import ConvBN, cast, classifier
from models.recompute import Segment


class ScaleAttention(Segment):
    """OCR features (N, C, H, W) -> (N, 1, H, W) in (0, 1): the weight of this scale relative to the next higher one."""

    def __init__(self, in_channels: int, channels: int = 256) -> None:
        super().__init__()
        self.atten_head = nn.Sequential(ConvBN(in_channels, channels, 3), ConvBN(channels, channels, 3),
                                        classifier(channels, 1, bias=False))

    def layers(self) -> tuple[ConvBN, ConvBN, nn.Conv2D]:
        """Two 3x3 convolutions and the 1x1 one before the sigmoid."""
        first, second, last = self.atten_head
        return typing.cast(ConvBN, first), typing.cast(ConvBN, second), typing.cast(nn.Conv2D, last)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return F.sigmoid(cast(self.atten_head(x), paddle.float32))

    @paddle.no_grad()
    def update_statistics(self, x: paddle.Tensor) -> None:
        """Update the running statistics of batch norm as `forward` would, without gradients."""
        first, second, _ = self.layers()
        second(first(x))
