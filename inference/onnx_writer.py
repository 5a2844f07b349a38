"""The parts of inference.fused as ONNX graphs, for images of any size; written directly, without a converter."""
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from inference import fused
from models.mscale_ocrnet import MscaleOCRNet

OPSET = 18
PARTS = ('backbone', 'pixels', 'logits', 'logits_and_attention')


class OnnxOps(fused.FoldedOperations):
    """The operations of inference.fused as nodes of a graph: names of values in, the name of a value out."""

    def __init__(self) -> None:
        super().__init__()
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.channels: dict[str, int] = {}  # of the outputs of `linear`, resized or not
        self._constants: dict[tuple[int, ...], str] = {}
        self._shifts: dict[tuple[int, int], str] = {}

    def node(self, kind: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        names = [f'{kind.lower()}_{len(self.nodes)}_{i}' for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, inputs, names, **attributes))
        return names[0] if outputs == 1 else names

    def tensor(self, array: np.ndarray) -> str:
        name = f'weight_{len(self.initializers)}'
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def weight(self, array: np.ndarray | str) -> str:
        return array if isinstance(array, str) else self.once(array, lambda: (array,))[0]

    def ints(self, *values: int) -> str:
        """A constant of int64."""
        if values not in self._constants:
            self._constants[values] = self.tensor(np.array(values, np.int64))
        return self._constants[values]

    def conv(self, x: str, weight: np.ndarray | str, bias: np.ndarray | str | None = None, stride: int = 1,
             padding: int | Sequence[int] = (0, 0), add: str | None = None, relu: bool = False) -> str:
        vertical, horizontal = (padding, padding) if isinstance(padding, int) else padding
        inputs = [x, self.weight(weight)] + ([] if bias is None else [self.weight(bias)])
        y = self.node('Conv', *inputs, strides=[stride, stride], pads=[vertical, horizontal] * 2)
        y = y if add is None else self.add(y, add)
        return self.relu(y) if relu else y

    def linear(self, x: str, weight: np.ndarray, bias: np.ndarray | None = None) -> str:
        y = self.conv(x, self.once(weight, lambda: (weight[:, :, None, None],))[0], bias)
        self.channels[y] = len(weight)
        return y

    def sum(self, terms: Sequence[str]) -> str:
        first, *rest = terms
        for term in rest:
            first = self.add(first, term)
        return first

    def sum_shifted(self, columns: Sequence[str]) -> str:
        # As depthwise convolutions: OpenVINO and ONNX Runtime have faster kernels for them than for Slice and Pad.
        left, middle, right = columns
        channels = self.channels[middle]
        for x, place in ((left, 0), (right, 2)):
            if (channels, place) not in self._shifts:
                weight = np.zeros([channels, 1, 1, 3], np.float32)
                weight[..., place] = 1
                self._shifts[channels, place] = self.tensor(weight)
            shifted = self.node('Conv', x, self._shifts[channels, place], pads=[0, 1, 0, 1], group=channels)
            middle = self.add(shifted, middle)
        self.channels[middle] = channels
        return middle

    def mix_rows(self, matrix: str, xs: Sequence[str]) -> str:
        return self.node('MatMul', matrix, self.node('Concat', *xs, axis=2))

    def resize(self, x: str, like: str) -> str:
        return self._resize(x, like, 2)

    def resize_width(self, x: str, like: str) -> str:
        return self._resize(x, like, 3)

    def _resize(self, x: str, like: str, axis: int) -> str:
        """Bilinear; the axes from `axis` on get the lengths of `like`."""
        size = self.node('Concat', self.node('Shape', x, end=axis), self.node('Shape', like, start=axis), axis=0)
        y = self.node('Resize', x, '', '', size, mode='linear', coordinate_transformation_mode='half_pixel')
        if x in self.channels:
            self.channels[y] = self.channels[x]
        return y

    def _slice(self, x: str, axis: int, start: int, stop: int) -> str:
        return self.node('Slice', x, self.ints(start), self.ints(stop), self.ints(axis))

    def rows(self, x: str, start: int, stop: int) -> str:
        return self._slice(x, 2, start, stop)

    def like(self, x: str, other: str) -> str:
        size = self.node('Concat', self.ints(1, -1), self.node('Shape', other, start=2), axis=0)
        return self.node('Reshape', x, size)

    def flat(self, x: str) -> str:
        return self.node('Flatten', x, axis=2)

    def concat(self, xs: Sequence[str]) -> str:
        return self.node('Concat', *xs, axis=1)

    def vectors(self, x: str) -> str:
        return self.node('Unsqueeze', x, self.ints(0, 3))

    def matmul(self, x: str, y: str, transpose_x: bool = False, transpose_y: bool = False) -> str:
        x, y = (self.node('Transpose', value, perm=[1, 0]) if transpose else value
                for value, transpose in ((x, transpose_x), (y, transpose_y)))
        return self.node('MatMul', x, y)

    def add(self, x: str, y: str) -> str:
        return self.node('Add', x, y)

    def subtract(self, x: str, y: str) -> str:
        return self.node('Sub', x, y)

    def multiply(self, x: str, y: str) -> str:
        return self.node('Mul', x, y)

    def relu(self, x: str) -> str:
        return self.node('Relu', x)

    def max(self, x: str) -> str:
        return self.node('ReduceMax', x, self.ints(1))

    def mean(self, x: str) -> str:
        return self.node('ReduceMean', x, self.ints(1))

    def exp(self, x: str) -> str:
        return self.node('Exp', x)

    def total(self, x: str) -> str:
        return self.node('ReduceSum', x, self.ints(1))

    def softmax(self, x: str, axis: int = 0) -> str:
        return self.node('Softmax', x, axis=axis)

    def sigmoid(self, x: str) -> str:
        return self.node('Sigmoid', x)

    def full_precision(self, x: str) -> str:
        return x

    def cast_as(self, x: str, other: str) -> str:
        return x


def build(model: MscaleOCRNet, part: str) -> onnx.ModelProto:
    """One of PARTS of an MscaleOCRNet: inputs and outputs as the function of inference.fused has them."""
    ops = OnnxOps()
    net, head = model.ocrnet.backbone, model.ocrnet.head
    inputs: dict[str, tuple[int | str, ...]] = {}

    def take(name: str, *shape: int | str) -> str:
        inputs[name] = shape
        return name

    if part == 'backbone':
        found = net.walk(ops, take('image', 1, 3, 'H', 'W'))
    else:
        found = _HEAD_PARTS[part](ops, model, fused.head_weights(head, net.branch_channels), take)
    results = [name for name in found if name is not None]
    graph = helper.make_graph(
        ops.nodes, part,
        [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in results], ops.initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid('', OPSET)], ir_version=9)


def _pixels(ops: OnnxOps, model: MscaleOCRNet, weights: fused.HeadWeights, take: Callable[..., str]) -> Sequence[str]:
    channels = model.ocrnet.backbone.branch_channels
    finest = take('finest', 1, channels[0], 'R+2', 'W')
    coarser = [take(f'branch_{b}', 1, channels[b], f'r{b}', f'w{b}') for b in (1, 2, 3)]
    return fused.pixels_and_statistics(ops, weights, finest, coarser, take('enlarge', 'R', 'r'),
                                       take('enlarge_shifted', 'R', '3r'))


def _logits(ops: OnnxOps, model: MscaleOCRNet, weights: fused.HeadWeights, take: Callable[..., str],
            attend: bool = False) -> Sequence[str | None]:
    features, classes, keys = len(weights.pixels_bias), weights.num_classes, len(weights.query[0][1])
    arguments = (take('pixels', 1, features, 'R', 'W'), take('key', classes, keys), take('context', features, classes))
    inside = take('inside', 1, 1, 'R', 1) if attend else None
    return fused.logits_and_attention(ops, weights, model.scale_attn if attend else None, *arguments, inside)


_HEAD_PARTS: dict[str, Callable[..., Sequence[str | None]]] = {
    'pixels': _pixels, 'logits': _logits, 'logits_and_attention': partial(_logits, attend=True)}
