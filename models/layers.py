"""Convolution + batch norm, under the parameter names of the published weights (`_conv`, `_batch_norm`)."""
from collections.abc import Sequence

import numpy as np
import paddle
import paddle.nn as nn
import paddle.nn.functional as F

UNFOLDED = 1 << 26  # floats in the buffer of a convolution on the CPU, 256 MB


def batch_norm(channels: int) -> nn.Layer:
    """Batch norm over all GPUs when there are several; Paddle has no synchronised kernel for the CPU."""
    several_gpus = paddle.get_device() != 'cpu' and paddle.distributed.get_world_size() > 1
    return (nn.SyncBatchNorm if several_gpus else nn.BatchNorm2D)(channels)


class ConvBN(nn.Layer):
    """(N, in, H, W) -> (N, out, ceil(H / stride), ceil(W / stride)): k x k convolution, batch norm, optional ReLU.

    Padding is (kernel_size - 1) / 2 on every side, also at stride 2: the variant of NVIDIA's HRNet, which is where the
    names *_NV come from ('same' padding, used by PaddleSeg's own HRNet, is one-sided there and shifts the features).
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 1, stride: int = 1, relu: bool = True,
                 bias: bool = False) -> None:
        super().__init__()
        self.out_channels, self.stride, self.padding, self.relu = out_channels, stride, kernel_size // 2, relu
        self._conv = nn.Conv2D(in_channels, out_channels, kernel_size, stride, padding=self.padding,
                               weight_attr=nn.initializer.KaimingNormal(), bias_attr=None if bias else False)
        self._batch_norm = batch_norm(out_channels)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        x = self._batch_norm(convolve(x, self._conv.weight, self._conv.bias, self.stride, (self.padding, self.padding)))
        return F.relu(x) if self.relu else x

    def folded(self) -> tuple[np.ndarray, np.ndarray]:
        """(weight (out, in, k, k), bias (out,)), float32: one convolution equivalent to the layer in evaluation."""
        norm = self._batch_norm
        weight, gamma, beta, mean, variance = (
            x.numpy().astype(np.float64)
            for x in (self._conv.weight, norm.weight, norm.bias, norm._mean, norm._variance))
        gain = gamma / np.sqrt(variance + norm._epsilon)
        bias = 0 if self._conv.bias is None else self._conv.bias.numpy().astype(np.float64)
        with np.errstate(over='ignore'):  # inference.fused.check_folding tells
            return ((weight * gain[:, None, None, None]).astype(np.float32),
                    (beta + (bias - mean) * gain).astype(np.float32))


def convolve(x: paddle.Tensor, weight: paddle.Tensor, bias: paddle.Tensor | None = None, stride: int = 1,
             padding: Sequence[int] = (0, 0)) -> paddle.Tensor:
    """Convolution with zero padding (vertical, horizontal); on a CPU in strips of rows if it would take much memory.

    Paddle's CPU kernel first unfolds its input, to nine times its size for 3x3: 850 MB for the 720 channels of
    HRNet-W48 at 128x256. Strips of at most UNFOLDED floats are no slower. In mixed precision the result has 16 bits,
    with a bias, too: Paddle would add one of 32 bits in 32, and batch norm and ReLU would keep as much.
    """
    y = _convolve(x, weight, stride, padding)
    return y if bias is None else y + cast(bias, y.dtype).reshape([1, -1, 1, 1])


def _convolve(x: paddle.Tensor, weight: paddle.Tensor, stride: int, padding: Sequence[int]) -> paddle.Tensor:
    size = weight.shape[2] * weight.shape[3]
    height = (x.shape[2] + 2 * padding[0] - weight.shape[2]) // stride + 1
    width = (x.shape[3] + 2 * padding[1] - weight.shape[3]) // stride + 1
    rows = max(1, UNFOLDED // (size * x.shape[1] * width))
    if size == 1 or rows >= height or not x.place.is_cpu_place():
        return F.conv2d(x, weight, stride=stride, padding=list(padding))
    strips = []
    for start in range(0, height, rows):
        first = start * stride - padding[0]
        last = (min(start + rows, height) - 1) * stride - padding[0] + weight.shape[2]  # exclusive
        above, below = max(-first, 0), max(last - x.shape[2], 0)  # rows of padding; the rest overlaps adjacent strips
        strips.append(F.conv2d(x[:, :, first + above:last - below], weight, stride=stride,
                               padding=[above, below, padding[1], padding[1]]))
    return paddle.concat(strips, axis=2)


def classifier(in_channels: int, out_channels: int, bias: bool = True) -> nn.Conv2D:
    """1x1 convolution to logits, initialised to keep the variance of its input."""
    return nn.Conv2D(in_channels, out_channels, 1, weight_attr=nn.initializer.Normal(std=in_channels**-0.5),
                     bias_attr=None if bias else False)


def cast(x: paddle.Tensor, dtype: paddle.dtype) -> paddle.Tensor:
    """x converted to a dtype; x itself if it already has it, as with Paddle 3's astype; 2.6 does not promise it."""
    return x if x.dtype == dtype else x.astype(dtype)


def scaled_size(size: Sequence[int], scale: float) -> list[int]:
    """(H, W) of an image at a scale; rounded down, as in the published code."""
    return [max(1, int(side * scale)) for side in size]


def resize(x: paddle.Tensor, size: Sequence[int], align_corners: bool = False) -> paddle.Tensor:
    """Bilinear (N, C, H, W) -> (N, C, *size), half-pixel centres unless align_corners; x if it has that size.

    The result has the dtype of x, also where automatic mixed precision interpolates in float32.
    """
    if tuple(x.shape[2:]) == tuple(size):
        return x
    return cast(F.interpolate(x, size=list(size), mode='bilinear', align_corners=align_corners), x.dtype)


def scale_image(x: paddle.Tensor, scale: float) -> paddle.Tensor:
    """An image (N, 3, H, W) at a scale."""
    return resize(x, scaled_size(x.shape[2:], scale))


def resize_logits(x: paddle.Tensor, size: Sequence[int], align_corners: bool = False) -> paddle.Tensor:
    """As `resize`, always in float32: for inputs of a softmax or of the fusion of scales."""
    return resize(cast(x, paddle.float32), size, align_corners)
