"""The operations of inference.fused, computed by Paddle, on a CPU or a GPU."""
from collections.abc import Sequence
from typing import Literal

import numpy as np
import paddle
import paddle.nn.functional as F

from inference.fused import FoldedOperations
from models.layers import cast, convolve, resize

Dtype = Literal['float32', 'bfloat16', 'float16']


class PaddleOps(FoldedOperations):
    """Tensors in, tensors out. dtype: of weights and activations; softmax and sums over pixels stay float32."""

    def __init__(self, dtype: Dtype = 'float32') -> None:
        super().__init__()
        self.dtype: Dtype = dtype

    def tensor(self, array: np.ndarray) -> paddle.Tensor:
        return paddle.to_tensor(array).astype(self.dtype)

    def weight(self, array: np.ndarray | paddle.Tensor) -> paddle.Tensor:
        """A weight as a tensor; those of HeadWeights are NumPy arrays that live as long as this object."""
        return array if isinstance(array, paddle.Tensor) else self.once(array, lambda: (array,))[0]

    def conv(self, x: paddle.Tensor, weight: np.ndarray | paddle.Tensor, bias: np.ndarray | paddle.Tensor | None = None,
             stride: int = 1, padding: int | Sequence[int] = (0, 0), add: paddle.Tensor | None = None,
             relu: bool = False) -> paddle.Tensor:
        both = (padding, padding) if isinstance(padding, int) else padding
        y = convolve(x, self.weight(weight), None, stride, both)
        if bias is not None:
            y.add_(self.weight(bias).reshape([1, -1, 1, 1]))
        if add is not None:
            y.add_(add)
        return F.relu_(y) if relu else y

    def linear(self, x: paddle.Tensor, weight: np.ndarray, bias: np.ndarray | None = None) -> paddle.Tensor:
        y = paddle.matmul(self.weight(weight), x.flatten(2)).reshape([1, -1, *x.shape[2:]])
        return y if bias is None else y.add_(self.weight(bias).reshape([1, -1, 1, 1]))

    def sum(self, terms: Sequence[paddle.Tensor]) -> paddle.Tensor:
        first = terms[0] + terms[1]
        for term in terms[2:]:
            first.add_(term)
        return first

    def sum_shifted(self, columns: Sequence[paddle.Tensor]) -> paddle.Tensor:
        """Three (1, C, r, W) -> the same: sum of each pixel's left neighbour, itself, and right neighbour."""
        left, middle, right = columns
        middle[..., 1:] = middle[..., 1:] + left[..., :-1]
        middle[..., :-1] = middle[..., :-1] + right[..., 1:]
        return middle

    def mix_rows(self, matrix: paddle.Tensor, xs: Sequence[paddle.Tensor]) -> paddle.Tensor:
        """(R, sum of r), tensors (1, C, r, W) -> (1, C, R, W): the matrix times all their rows, one below the other."""
        return paddle.matmul(matrix, paddle.concat(xs, axis=2))

    def resize(self, x: paddle.Tensor, like: paddle.Tensor) -> paddle.Tensor:
        return resize(x, like.shape[2:])

    def resize_width(self, x: paddle.Tensor, like: paddle.Tensor) -> paddle.Tensor:
        return resize(x, [x.shape[2], like.shape[3]])

    def rows(self, x: paddle.Tensor, start: int, stop: int) -> paddle.Tensor:
        return x[:, :, start:stop]

    def like(self, x: paddle.Tensor, other: paddle.Tensor) -> paddle.Tensor:
        return x.reshape(other.shape[:1] + [-1] + other.shape[2:])

    def flat(self, x: paddle.Tensor) -> paddle.Tensor:
        return x.reshape([x.shape[1], -1])

    def concat(self, xs: Sequence[paddle.Tensor]) -> paddle.Tensor:
        """Side by side in channels."""
        return paddle.concat(xs, axis=1)

    def vectors(self, x: paddle.Tensor) -> paddle.Tensor:
        """(C, K) -> (1, C, K, 1), as an image of K pixels."""
        return x.unsqueeze(0).unsqueeze(3)

    def times(self, x: paddle.Tensor, factor: float, full: bool = False) -> paddle.Tensor:
        return x * factor

    def matmul(self, x: paddle.Tensor, y: paddle.Tensor, transpose_x: bool = False,
               transpose_y: bool = False) -> paddle.Tensor:
        return paddle.matmul(x, y, transpose_x=transpose_x, transpose_y=transpose_y)

    def add(self, x: paddle.Tensor, y: paddle.Tensor) -> paddle.Tensor:
        return x.add_(y)

    def subtract(self, x: paddle.Tensor, y: paddle.Tensor) -> paddle.Tensor:
        return x - y

    def multiply(self, x: paddle.Tensor, y: paddle.Tensor) -> paddle.Tensor:
        return x * y

    def relu(self, x: paddle.Tensor) -> paddle.Tensor:
        return F.relu_(x)

    def max(self, x: paddle.Tensor) -> paddle.Tensor:
        return x.max(axis=1, keepdim=True)

    def mean(self, x: paddle.Tensor) -> paddle.Tensor:
        return x.mean(axis=1, keepdim=True)

    def exp(self, x: paddle.Tensor) -> paddle.Tensor:
        return x.exp_()

    def total(self, x: paddle.Tensor) -> paddle.Tensor:
        return x.sum(axis=1, keepdim=True)

    def softmax(self, x: paddle.Tensor, axis: int = 0) -> paddle.Tensor:
        return F.softmax(x, axis=axis)

    def sigmoid(self, x: paddle.Tensor) -> paddle.Tensor:
        return F.sigmoid(x)

    def full_precision(self, x: paddle.Tensor) -> paddle.Tensor:
        return cast(x, paddle.float32)

    def cast_as(self, x: paddle.Tensor, other: paddle.Tensor) -> paddle.Tensor:
        return cast(x, other.dtype)
