"""One row with PyTorch: the plain ONNX graph node by node as torch functions, so that no second network is defined.

**It has never run with PyTorch**: tests/benchmarks/test_gpu_inference.py runs it with a stand-in made of NumPy.
"""
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .rows import Row

TYPES = {1: 'float32', 2: 'uint8', 10: 'float16'}  # of onnx.TensorProto.DataType


def operators(torch: Any, channels_last: bool) -> dict[str, Callable[..., Any]]:
    """{ONNX's operator: function of its attributes and inputs}, those that the plain graph of a fixed size has."""
    functional = torch.nn.functional

    def conv(attributes: Mapping[str, Any], x: Any, weight: Any, bias: Any = None) -> Any:
        top, left, bottom, right = attributes['pads']
        if (top, left) != (bottom, right):
            raise ValueError(f'Conv: expected equal pads on both sides, found {attributes["pads"]}')
        x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
        return functional.conv2d(x, weight, bias, attributes.get('strides', [1, 1]), [top, left],
                                 groups=attributes.get('group', 1))

    def resize(attributes: Mapping[str, Any], x: Any, _: Any, __: Any, sizes: Sequence[int]) -> Any:
        if (attributes['mode'], attributes['coordinate_transformation_mode']) != ('linear', 'half_pixel'):
            raise ValueError(f'Resize: expected linear and half_pixel, found {attributes}')
        return functional.interpolate(x, size=list(sizes[2:]), mode='bilinear', align_corners=False)

    def mirror(_: Mapping[str, Any], x: Any, starts: Sequence[int], ends: Sequence[int], axes: Sequence[int],
               steps: Sequence[int]) -> Any:
        if (*starts, *steps) != (-1, -1):
            raise ValueError(f'Slice: expected a whole axis backwards, found {starts}, {ends}, {steps}')
        return torch.flip(x, list(axes))

    def flatten(attributes: Mapping[str, Any], x: Any) -> Any:
        return torch.reshape(x, [int(np.prod(x.shape[:attributes['axis']])), -1])

    def unsqueeze(_: Mapping[str, Any], x: Any, axes: Sequence[int]) -> Any:
        for axis in sorted(axes):
            x = torch.unsqueeze(x, axis)
        return x

    return {
        'Add': lambda _, x, y: x + y, 'Sub': lambda _, x, y: x - y, 'Mul': lambda _, x, y: x * y,
        'Div': lambda _, x, y: x / y, 'Relu': lambda _, x: torch.relu(x), 'Sigmoid': lambda _, x: torch.sigmoid(x),
        'Conv': conv, 'Resize': resize, 'Slice': mirror, 'Flatten': flatten, 'Unsqueeze': unsqueeze,
        'MatMul': lambda _, x, y: torch.matmul(x, y),
        'Softmax': lambda attributes, x: torch.softmax(x, attributes['axis']),
        'ArgMax': lambda attributes, x: torch.argmax(x, attributes['axis']),  # keepdims is 0
        'Squeeze': lambda _, x, axes: torch.squeeze(x, axes[0]),
        'Concat': lambda attributes, *xs: torch.cat(xs, attributes['axis']),
        'Transpose': lambda attributes, x: torch.permute(x, attributes['perm']),
        'Reshape': lambda _, x, shape: torch.reshape(x, list(shape)),
        'Cast': lambda attributes, x: x.to(getattr(torch, TYPES[attributes['to']]))}


class Program:
    """The nodes of a graph one after the other; a value is let go after the last node that reads it.

    graph: onnx.GraphProto with its weights. place: from an array to a tensor on the device.
    """

    def __init__(self, graph: Any, torch: Any, place: Callable[[np.ndarray], Any], channels_last: bool) -> None:
        import onnx
        table = operators(torch, channels_last)
        missing = {node.op_type for node in graph.node} - set(table)
        if missing:
            raise ValueError(f'expected nodes of {", ".join(table)}, found {", ".join(sorted(missing))}')
        self.constants: dict[str, Any] = {'': None}
        for array in graph.initializer:
            value = onnx.numpy_helper.to_array(array)
            self.constants[array.name] = value.tolist() if value.dtype == np.int64 else place(np.array(value))
        self.entry, self.output = graph.input[0].name, graph.output[0].name
        last = {name: number for number, node in enumerate(graph.node) for name in node.input}
        self.steps = []
        for number, node in enumerate(graph.node):
            attributes = {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}
            attributes = {key: value.decode() if isinstance(value, bytes) else value
                          for key, value in attributes.items()}
            done = [name for name in dict.fromkeys(node.input) if last[name] == number and name not in self.constants]
            self.steps.append((table[node.op_type], attributes, list(node.input), node.output[0], done))

    def __call__(self, image: Any) -> Any:
        values = {self.entry: image}
        for function, attributes, inputs, output, done in self.steps:
            values[output] = function(attributes, *[
                self.constants[name] if name in self.constants else values[name] for name in inputs])
            for name in done:
                del values[name]
        return values[self.output]


def load(row: Row, folder: Path, output: str, cuda: bool, threads: int | None) -> Callable[[np.ndarray], np.ndarray]:
    """As onnx_row.load."""
    try:
        import torch
    except ImportError:
        raise SystemExit('torch is not installed') from None
    try:
        import onnx
    except ImportError:
        raise SystemExit('the package onnx is not installed, which reads the graph for torch') from None
    if not cuda and row.precision == 'tf32':
        raise SystemExit('tf32 needs --provider cuda')
    if cuda and not torch.cuda.is_available():
        raise SystemExit('torch has no CUDA here')
    if threads:
        torch.set_num_threads(threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = row.precision == 'tf32'
    torch.backends.cudnn.benchmark = True  # as ONNX Runtime, which tries every algorithm too
    device, channels_last = 'cuda' if cuda else 'cpu', row.precision == 'fp16'

    def place(array: np.ndarray) -> Any:
        tensor = torch.from_numpy(array).to(device)
        return tensor.contiguous(memory_format=torch.channels_last) if channels_last and array.ndim == 4 else tensor

    program: Callable[[Any], Any] = Program(
        onnx.load(str(folder / row.graph(output))).graph, torch, place, channels_last)
    if row.variant == 'compile':
        program = torch.compile(program)

    def run(image: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return program(torch.from_numpy(image).to(device)).cpu().numpy()  # waits for the device

    return run
