"""How a network is run: the layers say what follows what (`walk`), an object of this kind says what each step does.

Training and plain evaluation run the layers themselves (`LAYERS`). Inference runs the same walk with batch norm folded
into the convolutions, in Paddle, or writes it down as an ONNX graph (inference.fused). So a backbone that is written
once as a walk works everywhere.
"""
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import paddle
import paddle.nn.functional as F

from models.layers import ConvBN, resize
from models.recompute import checkpointed

Value = Any  # what flows through a walk: a tensor (N, C, H, W), or the name of one in a graph


class Operations(Protocol):
    """The steps that a walk is made of."""

    def conv_bn(self, layer: ConvBN, x: Value, shortcut: Value | None = None) -> Value:
        """The layer; with a shortcut, ReLU of their sum."""

    def resize(self, x: Value, like: Value) -> Value:
        """x, bilinearly at the height and width of `like`."""

    def sum_relu(self, terms: Iterable[Value]) -> Value:
        """ReLU of the sum of two or more terms, added from the left."""

    def run(self, layer: Any, *inputs: Value) -> Value:
        """Go on with the walk of another layer."""

    def recompute(self, function: Callable[..., Value], layers: Sequence[paddle.nn.Layer], *inputs: Value) -> Value:
        """function(*inputs), whose activations may be computed again for the backward pass."""


class LayerOperations:
    """Operations by the layers themselves, in training and evaluation."""

    def conv_bn(self, layer: ConvBN, x: Value, shortcut: Value | None = None) -> Value:
        return layer(x) if shortcut is None else F.relu(shortcut + layer(x))

    def resize(self, x: Value, like: Value) -> Value:
        return resize(x, like.shape[2:])

    def sum_relu(self, terms: Iterable[Value]) -> Value:
        terms = iter(terms)  # one after the other: each is as large as the sum
        total = next(terms)
        for term in terms:
            total = total + term
        return F.relu(total)

    def run(self, layer: Any, *inputs: Value) -> Value:
        return layer(*inputs)

    def recompute(self, function: Callable[..., Value], layers: Sequence[paddle.nn.Layer], *inputs: Value) -> Value:
        return checkpointed(function, layers, *inputs)


LAYERS = LayerOperations()
