"""Convolution + batch norm, under the parameter names of the published weights (`_conv`, `_batch_norm`)."""
import paddle
import paddle.nn as nn
import paddle.nn.functional as F


def batch_norm(channels):
    """Batch norm over all GPUs when there are several; Paddle has no synchronised kernel for the CPU."""
    several_gpus = paddle.get_device() != 'cpu' and paddle.distributed.get_world_size() > 1
    return (nn.SyncBatchNorm if several_gpus else nn.BatchNorm2D)(channels)


class ConvBN(nn.Layer):
    """(N, in, H, W) -> (N, out, ceil(H / stride), ceil(W / stride)): k x k convolution, batch norm, ReLU if asked for.

    Padding is (kernel_size - 1) / 2 on every side, also at stride 2: the variant of NVIDIA's HRNet, which is where the
    names *_NV come from ('same' padding, as PaddleSeg's own HRNet has it, is one-sided there and shifts the features).
    """

    def __init__(self, in_channels, out_channels, kernel_size=1, stride=1, relu=True, bias=False):
        super().__init__()
        self._conv = nn.Conv2D(in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2,
                               weight_attr=nn.initializer.KaimingNormal(), bias_attr=None if bias else False)
        self._batch_norm = batch_norm(out_channels)
        self._relu = relu

    def forward(self, x):
        x = self._batch_norm(self._conv(x))
        return F.relu(x) if self._relu else x


def classifier(in_channels, out_channels, bias=True):
    """1x1 convolution to logits, initially of about the variance of its input."""
    return nn.Conv2D(in_channels, out_channels, 1, weight_attr=nn.initializer.Normal(std=in_channels**-0.5),
                     bias_attr=None if bias else False)


def resize(x, size):
    """Bilinear (N, C, H, W) -> (N, C, *size), half-pixel centres (align_corners=False); x if it has that size."""
    if tuple(x.shape[2:]) == tuple(size):
        return x
    return F.interpolate(x, size=list(size), mode='bilinear', align_corners=False)
