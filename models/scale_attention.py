"""Scale attention head (Tao, Sapra, Catanzaro, "Hierarchical Multi-Scale Attention", arXiv:2005.10821, section 3)."""
import paddle
import paddle.nn as nn
import paddle.nn.functional as F

from models.layers import ConvBN, cast, classifier
from models.recompute import Segment


class ScaleAttention(Segment, nn.Layer):
    """OCR features (N, C, H, W) -> (N, 1, H, W) in (0, 1): how far this scale is trusted over the next larger one."""

    def __init__(self, in_channels, channels=256):
        super().__init__()
        self.atten_head = nn.Sequential(ConvBN(in_channels, channels, 3), ConvBN(channels, channels, 3),
                                        classifier(channels, 1, bias=False))

    def forward(self, x):
        return F.sigmoid(cast(self.atten_head(x), paddle.float32))

    @paddle.no_grad()
    def update_statistics(self, x):
        """Leave what `forward` would leave in the running statistics of batch norm, and nothing for a gradient."""
        first, second, _ = self.atten_head
        second(first(x))
