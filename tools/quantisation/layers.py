"""Which layers cost the most in 8 bits: the network in int8, with one group of layers after the other in float32."""
from __future__ import annotations

import tempfile
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import paddle
from onnx.utils import Extractor
from tqdm import tqdm

from inference import backends, memory, quantised, scale_graph
from inference.export import quantisation
from inference.export.onnx_graph import WholeOps
from inference.whole_network import WholeNetwork
from models.mscale_ocrnet import MscaleOCRNet
from models.weights import load_weights

DEPTH = 3  # names of the state dict that a group has in common: 'backbone.st3.stage_st3_1'
NONE, ALL, OTHERS = 'none', 'all', 'others'  # of the groups; sums of branches are others, too


class Row(NamedTuple):
    """group: in float32. convolutions: how many. error: of the logits, their root mean square difference from
    float32, relative to the standard deviation of those. equal: share of the pixels with the class of float32.
    """
    group: str
    convolutions: int
    error: float
    equal: float


class NamingOps(WholeOps):
    """WholeOps that remembers which node is whose."""

    def __init__(self, model: MscaleOCRNet) -> None:
        super().__init__()
        self.groups: dict[str, list[str]] = {}  # names of nodes
        self._names = {id(layer): name.removeprefix('ocrnet.') for name, layer in model.named_sublayers()}

    def conv_bn(self, layer: Any, x: Any, shortcut: Any = None) -> Any:
        first = len(self.nodes)
        y = super().conv_bn(layer, x, shortcut)
        group = '.'.join(self._names[id(layer)].split('.')[:DEPTH])
        self.groups.setdefault(group, []).extend(node.output[0] for node in self.nodes[first:])
        return y


def partly_float(graph: onnx.ModelProto, plain: onnx.ModelProto, names: Collection[str]) -> onnx.ModelProto:
    """A copy of an int8 graph with these nodes as in the float32 graph that it was made from."""
    found = onnx.ModelProto()
    found.CopyFrom(graph)
    makers = {name: node for node in found.graph.node for name in node.output}
    weights = {array.name: array for array in plain.graph.initializer}
    stored = {node.output[0]: node.input for node in plain.graph.node if node.op_type == 'Conv'}
    added: set[str] = set()
    for node in found.graph.node:
        if node.name not in names:
            continue
        if node.op_type == 'Conv':
            weight = stored[node.name][1]
            node.input[1] = f'float_{weight}'
            if weight not in added:
                added.add(weight)
                array = found.graph.initializer.add()
                array.CopyFrom(weights[weight])
                array.name = node.input[1]
        node.input[:] = [makers[makers[name].input[0]].input[0] if _of_8_bits(makers, name) else name
                         for name in node.input]
    return found


def _of_8_bits(makers: Mapping[str, onnx.NodeProto], name: str) -> bool:
    return name in makers and makers[name].op_type == 'DequantizeLinear'


def measure(builder: Any, model_path: str, backend: str, images: Sequence[Any]) -> list[Row]:
    """A row for int8, one for each group in float32, which lose the least first, and one for all in float32.

    images: what quantisation.Images takes.
    """
    model = builder.model
    load_weights(model, model_path)
    model.eval()
    taken = quantisation.choose(quantisation.Images(*images), builder, quantisation.resizing(builder))
    inputs, shown = quantised.calibration(builder, model, taken)
    ops = NamingOps(model)
    plain = scale_graph.build(model, True, ops=ops)
    graph = quantisation.quantised(scale_graph.build(model, True), inputs)
    makers = {name: node for node in graph.graph.node for name in node.output}
    eight = {node.name: node.op_type for node in graph.graph.node if any(
        _of_8_bits(makers, name) for name in node.input)}
    groups = {group: found for group, names in ops.groups.items() if (found := eight.keys() & names)}
    if others := eight.keys() - set().union(*groups.values()):
        groups[OTHERS] = others
    logits = partial(_logits, model, backend, shown)
    wanted = logits(plain)

    def row(group: str, names: Collection[str]) -> Row:
        found = logits(partly_float(graph, plain, names))
        difference = np.concatenate([(a - b).ravel() for a, b in zip(found, wanted)])
        spread = np.std(np.concatenate([a.ravel() for a in wanted]))
        equal = np.mean([(a.argmax(1) == b.argmax(1)).mean() for a, b in zip(found, wanted)])
        convolutions = sum(eight[name] == 'Conv' for name in names)
        return Row(group, convolutions, float(np.sqrt(np.mean(np.square(difference))) / spread), float(equal))

    rows = [row(group, names) for group, names in tqdm(groups.items(), desc='layers', unit='group')]
    return [row(NONE, ()), *sorted(rows, key=lambda found: found.error), row(ALL, eight)]


def _logits(model: MscaleOCRNet, backend: str, images: Sequence[np.ndarray],
            graph: onnx.ModelProto) -> list[np.ndarray]:
    """Of all scales, each with this graph."""
    with tempfile.TemporaryDirectory() as name:
        for attend in {False, len(model.n_scales) > 1}:
            outputs = [scale_graph.LOGITS, scale_graph.ATTENTION][:1 + attend]
            part = Extractor(graph).extract_model([scale_graph.IMAGE], outputs)
            onnx.save(part, Path(name) / f'{scale_graph.part(attend)}.onnx')
        executor = backends.executor_of(backend)(Path(name), 'int8')
        network = WholeNetwork(executor, model.n_scales, memory.footprint(model), model.scale_image)
        executor.strip = memory.WHOLE
        return [network(paddle.to_tensor(image))[0].numpy() for image in images]


def table(rows: Sequence[Row]) -> str:
    """A line per row."""
    width = max(len(row.group) for row in rows)
    lines = [f'{"in float32":{width}}{"convolutions":>14}{"error of logits":>17}{"equal classes":>15}']
    return '\n'.join([*lines, *(f'{row.group:{width}}{row.convolutions:14}{row.error:17.2%}{row.equal:15.2%}'
                                for row in rows)])
