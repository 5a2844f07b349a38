"""Convolution + batch norm, under the parameter names of the published weights (`_conv`, `_batch_norm`)."""
import paddle
import paddle.nn as nn
import paddle.nn.functional as F

UNFOLDED = 1 << 26  # floats in the buffer of a convolution on the CPU, 256 MB


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
        x = self._batch_norm(convolve(self._conv, x))
        return F.relu(x) if self._relu else x


def convolve(conv, x):
    """conv(x); on a CPU a large 3x3 convolution of stride 1 goes over strips of rows.

    Paddle's kernel there unfolds its input first, to nine times its size for 3x3: 850 MB for the 720 channels of
    HRNet-W48 at 128x256. In strips it is no slower.
    """
    height, width = x.shape[2:]
    rows = max(1, UNFOLDED // (9 * x.shape[1] * width))
    if not x.place.is_cpu_place() or conv._kernel_size != [3, 3] or conv._stride != [1, 1] or rows >= height:
        return conv(x)
    strips = []
    for start in range(0, height, rows):
        stop = min(start + rows, height)
        above, below = int(start > 0), int(stop < height)  # rows of the neighbouring strips in place of the padding
        strips.append(F.conv2d(x[:, :, start - above:stop + below], conv.weight, conv.bias,
                               padding=[1 - above, 1 - below, 1, 1]))
    return paddle.concat(strips, axis=2)


def classifier(in_channels, out_channels, bias=True):
    """1x1 convolution to logits, initially of about the variance of its input."""
    return nn.Conv2D(in_channels, out_channels, 1, weight_attr=nn.initializer.Normal(std=in_channels**-0.5),
                     bias_attr=None if bias else False)


def cast(x, dtype):
    """x in a dtype; x itself if it has it already, of which Paddle's astype makes a copy."""
    return x if x.dtype == dtype else x.astype(dtype)


def scaled_size(size, scale):
    """(H, W) of an image at a scale; rounded down, as in the published code."""
    return [max(1, int(side * scale)) for side in size]


def resize(x, size):
    """Bilinear (N, C, H, W) -> (N, C, *size), half-pixel centres (align_corners=False); x if it has that size.

    The result has the dtype of x, also where automatic mixed precision interpolates in float32.
    """
    if tuple(x.shape[2:]) == tuple(size):
        return x
    return cast(F.interpolate(x, size=list(size), mode='bilinear', align_corners=False), x.dtype)


def resize_logits(x, size):
    """As `resize`, in float32 whatever the precision of x: for what a softmax or the fusion of scales will read."""
    return resize(cast(x, paddle.float32), size)
