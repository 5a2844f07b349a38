"""Scale attention head (Tao, Sapra, Catanzaro, "Hierarchical Multi-Scale Attention", arXiv:2005.10821, section 3)."""
import paddle.nn as nn

from models.layers import ConvBN, classifier


class ScaleAttention(nn.Layer):
    """OCR features (N, C, H, W) -> (N, 1, H, W) in (0, 1): how far this scale is trusted over the next larger one."""

    def __init__(self, in_channels, channels=256):
        super().__init__()
        self.atten_head = nn.Sequential(ConvBN(in_channels, channels, 3), ConvBN(channels, channels, 3),
                                        classifier(channels, 1, bias=False), nn.Sigmoid())

    def forward(self, x):
        return self.atten_head(x)
