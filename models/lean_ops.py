"""The operations of models.lean, computed by Paddle, on a CPU or a GPU."""
import paddle
import paddle.nn.functional as F

from models.layers import UNFOLDED, cast, resize
from models.lean import Operations


class PaddleOps(Operations):
    """Tensors in, tensors out. dtype: of weights and activations; softmax and sums over pixels stay float32."""

    def __init__(self, dtype='float32'):
        super().__init__()
        self.dtype = dtype

    def tensor(self, array):
        return paddle.to_tensor(array).astype(self.dtype)

    def weight(self, array):
        """A weight as a tensor; those of HeadWeights are NumPy arrays that live as long as this object."""
        return array if isinstance(array, paddle.Tensor) else self.once(array, lambda: (array,))[0]

    def conv(self, x, weight, bias=None, stride=1, padding=(0, 0), add=None, relu=False):
        weight = self.weight(weight)
        y = _convolve(x, weight, stride, _pair(padding))
        if bias is not None:
            y.add_(self.weight(bias).reshape([1, -1, 1, 1]))
        if add is not None:
            y.add_(add)
        return F.relu_(y) if relu else y

    def linear(self, x, weight, bias=None):
        y = paddle.matmul(self.weight(weight), x.flatten(2)).reshape([1, -1, *x.shape[2:]])
        return y if bias is None else y.add_(self.weight(bias).reshape([1, -1, 1, 1]))

    def sum(self, terms):
        first = terms[0] + terms[1]
        for term in terms[2:]:
            first.add_(term)
        return first

    def sum_shifted(self, columns):
        """Three (1, C, r, W) -> the same: sum of what is to the left in the first, here in the second, to the right."""
        left, middle, right = columns
        middle[..., 1:] = middle[..., 1:] + left[..., :-1]
        middle[..., :-1] = middle[..., :-1] + right[..., 1:]
        return middle

    def mix_rows(self, matrix, xs):
        """(R, sum of r), tensors (1, C, r, W) -> (1, C, R, W): the matrix times all their rows, one below the other."""
        return paddle.matmul(matrix, paddle.concat(xs, axis=2))

    def resize(self, x, like):
        return resize(x, like.shape[2:])

    def resize_width(self, x, like):
        return resize(x, [x.shape[2], like.shape[3]])

    def rows(self, x, start, stop):
        return x[:, :, start:stop]

    def like(self, x, other):
        return x.reshape(other.shape[:1] + [-1] + other.shape[2:])

    def flat(self, x):
        return x.reshape([x.shape[1], -1])

    def matmul(self, x, y, transpose_y=False):
        return paddle.matmul(x, y, transpose_y=transpose_y)

    def add(self, x, y):
        return x.add_(y)

    def subtract(self, x, y):
        return x - y

    def multiply(self, x, y):
        return x * y

    def relu(self, x):
        return F.relu_(x)

    def max(self, x):
        return x.max(axis=1, keepdim=True)

    def exp(self, x):
        return x.exp_()

    def total(self, x):
        return x.sum(axis=1, keepdim=True)

    def softmax(self, x):
        return F.softmax(x, axis=0)

    def sigmoid(self, x):
        return F.sigmoid(x)

    def full_precision(self, x):
        return cast(x, paddle.float32)

    def cast_as(self, x, other):
        return cast(x, other.dtype)


def _pair(padding):
    return (padding, padding) if isinstance(padding, int) else tuple(padding)


def _convolve(x, weight, stride, padding):
    """Convolution; on a CPU in strips of rows where Paddle would unfold its input to more than UNFOLDED floats."""
    size = weight.shape[2] * weight.shape[3]
    height = (x.shape[2] + 2 * padding[0] - weight.shape[2]) // stride + 1
    width = (x.shape[3] + 2 * padding[1] - weight.shape[3]) // stride + 1
    rows = max(1, UNFOLDED // (size * x.shape[1] * width))
    if size == 1 or rows >= height or not x.place.is_cpu_place():
        return F.conv2d(x, weight, stride=stride, padding=list(padding))
    out = []
    for start in range(0, height, rows):
        first = start * stride - padding[0]
        last = (min(start + rows, height) - 1) * stride - padding[0] + weight.shape[2]  # exclusive
        above, below = max(-first, 0), max(last - x.shape[2], 0)
        out.append(F.conv2d(x[:, :, first + above:last - below], weight, stride=stride,
                            padding=[above, below, padding[1], padding[1]]))
    return paddle.concat(out, axis=2)
