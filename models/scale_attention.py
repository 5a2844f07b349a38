"""Scale attention head (Tao, Sapra, Catanzaro, "Hierarchical Multi-Scale Attention", arXiv:2005.10821, section 3)."""
import paddle
import paddle.nn as nn
import paddle.nn.functional as F

from models.layers import ConvBN, cast, classifier
from models.recompute import Segment


class ScaleAttention(Segment, nn.Layer):
    """OCR features (N, C, H, W) -> (N, 1, H, W) in (0, 1): how far this scale is trusted over the next larger one."""

    def __init__(self, in_channels: int, channels: int = 256) -> None:
        super().__init__()
        self.atten_head = nn.Sequential(ConvBN(in_channels, channels, 3), ConvBN(channels, channels, 3),
                                        classifier(channels, 1, bias=False))

    def layers(self) -> tuple[ConvBN, ConvBN, nn.Conv2D]:
        """Two 3x3 convolutions and the 1x1 one before the sigmoid."""
        first, second, last = self.atten_head
        return first, second, last

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return F.sigmoid(cast(self.atten_head(x), paddle.float32))

    @paddle.no_grad()
    def update_statistics(self, x: paddle.Tensor) -> None:
        """Leave what `forward` would leave in the running statistics of batch norm, and nothing for a gradient."""
        first, second, _ = self.layers()
        second(first(x))
