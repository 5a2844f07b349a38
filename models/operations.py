"""How a network runs: a layer's `walk` defines the order of the steps, an Operations object carries out each step.

Training and plain evaluation run the layers themselves (`LAYERS`). Fused inference runs the same walk in Paddle with
batch norm folded into the convolutions, or records it as an ONNX graph (inference.fused). A backbone written once as a
walk thus works everywhere.
"""
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import paddle
import paddle.nn.functional as F

from models.layers import ConvBN, resize
from models.recompute import checkpointed

Value = Any  # the data of a walk: a tensor (N, C, H, W), or its name in a graph


class Operations(Protocol):
    """The steps that a walk is made of."""

    def conv_bn(self, layer: ConvBN, x: Value, shortcut: Value | None = None) -> Value:
        """The layer's output; with a shortcut, the ReLU of their sum."""

    def resize(self, x: Value, like: Value) -> Value:
        """x resized bilinearly to the height and width of `like`."""

    def sum_relu(self, terms: Iterable[Value]) -> Value:
        """ReLU of the sum of two or more terms, added from the left."""

    def run(self, layer: Any, *inputs: Value) -> Value:
        """The output of another layer's walk."""

    def recompute(self, function: Callable[..., Value], layers: Sequence[paddle.nn.Layer], *inputs: Value) -> Value:
        """function(*inputs), whose activations may be recomputed in the backward pass."""


class LayerOperations:
    """Operations that call the layers themselves, for training and evaluation."""

    def conv_bn(self, layer: ConvBN, x: Value, shortcut: Value | None = None) -> Value:
        return layer(x) if shortcut is None else F.relu(shortcut + layer(x))

    def resize(self, x: Value, like: Value) -> Value:
        return resize(x, like.shape[2:])

    def sum_relu(self, terms: Iterable[Value]) -> Value:
        terms = iter(terms)  # one at a time: each is as large as the sum
        total = next(terms)
        for term in terms:
            total = total + term
        return F.relu(total)

    def run(self, layer: Any, *inputs: Value) -> Value:
        return layer(*inputs)

    def recompute(self, function: Callable[..., Value], layers: Sequence[paddle.nn.Layer], *inputs: Value) -> Value:
        return checkpointed(function, layers, *inputs)


LAYERS = LayerOperations()
