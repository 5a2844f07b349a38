"""The rearranged heads in one graph against the plain formula of the layers, and the matrices that enlarge rows."""
import dataclasses

import numpy as np
import onnx
import pytest
from onnx import helper

from inference.export import onnx_graph
from inference.export.whole import Settings
from tests import fill, rounding
from tests.export import networks
from tests.export.test_onnx_graph import TENSORRT, ort, run

PLAIN = Settings(output='logits', mean=networks.MEAN, std=networks.STD)


def graph_of(model, **changes):
    return onnx_graph.build(model, dataclasses.replace(PLAIN, **changes), {}, rearranged=True)


@pytest.mark.parametrize('scales', [[0.5, 1.0, 2.0], [0.7, 1.0, 1.1], [1.0]], ids=str)
def test_logits_of_any_size_are_those_of_the_layers(scales):
    model = networks.network(scales)
    graph = graph_of(model)
    for seed, size in enumerate([(64, 96), (75, 106), (33, 130), (20, 31), (1, 1)]):
        x = fill.image(seed, [1, 3, *size])
        want, condition = networks.expected(model, x)
        rounding.assert_close(run(graph, x), want, condition)


@pytest.mark.parametrize('size', [(75, 106), (64, 96), (31, 1), (1, 1)], ids=str)
def test_logits_of_a_fixed_size(size):
    model, x = networks.network(), fill.image(3, [1, 3, *size])
    graph = graph_of(model, size=size, flip=True)
    rounding.assert_close(run(graph, x), *networks.expected(model, x, flip=True))
    assert {node.op_type for node in graph.graph.node}.isdisjoint({'Shape', 'Range', 'Mod', 'Gather'})


@pytest.mark.parametrize('size', [(75, 106), None], ids=['fixed', 'any'])
def test_half_precision_is_close(size):
    model, x = networks.network(), fill.image(7, [1, 3, 75, 106])
    found, want = run(graph_of(model, size=size, precision='fp16'), x), networks.plain(model)(x)
    # As the plain heads in test_onnx_graph.py, and up to nine sums of channels that are rounded where there was one.
    assert 1e-5 < rounding.error(found, want) < 49**0.5 * 2.0**-11


def test_operators():
    """TensorRT's, for any size too; sums of the coarser branches at their own size: fewer multiply-adds."""
    model = networks.network((0.5, 1.0))
    assert {node.op_type for node in graph_of(model).graph.node} <= TENSORRT
    plain = onnx_graph.build(model, dataclasses.replace(PLAIN, size=(64, 96)), {})
    assert multiply_adds(graph_of(model, size=(64, 96))) < 0.75 * multiply_adds(plain)


def multiply_adds(graph):
    graph = onnx.shape_inference.infer_shapes(graph, data_prop=True)
    shapes = {value.name: [side.dim_value for side in value.type.tensor_type.shape.dim]
              for value in [*graph.graph.value_info, *graph.graph.input, *graph.graph.output]}
    shapes.update({array.name: list(array.dims) for array in graph.graph.initializer})
    total = 0
    for node in graph.graph.node:
        if node.op_type == 'Conv':
            total += np.prod(shapes[node.output[0]]) * np.prod(shapes[node.input[1]][1:])
        elif node.op_type == 'MatMul':
            total += np.prod(shapes[node.output[0]]) * shapes[node.input[0]][-1]
    return int(total)


def rows_by_hand(image, high, shift):
    """Float64, of (r, w): half-pixel centres; rows of the enlarged image moved, 0 outside."""
    low = len(image)
    result = np.zeros([high, image.shape[1]])
    for row in range(high):
        if 0 <= row + shift < high:
            place = min(max((row + shift + 0.5) * low / high - 0.5, 0), low - 1)
            first = int(place)
            result[row] = image[first] + (place - first) * (image[min(first + 1, low - 1)] - image[first])
    return result


@pytest.mark.parametrize('high,low', [(8, 4), (17, 5), (1, 1), (4097, 2049)], ids=str)
@pytest.mark.parametrize('known', [True, False], ids=['fixed', 'any'])
def test_enlarged_rows(high, low, known):
    """Against the formula by hand, for more rows than the square root of what float32 counts."""
    ops, shifts, rng = onnx_graph.WholeOps(), (-1, 0, 1), np.random.default_rng(high)
    images = {f'x{n}': rng.standard_normal([1, 1, low, 2]).astype(np.float32) for n in range(3)}
    like = np.zeros([1, 1, high, 2], np.float32)
    for name, array in {**images, 'like': like}.items():
        ops.take(name, 1, array.shape[2:] if known else None)
    found = ops.enlarged_rows(list(images), 'like', shifts)
    takes = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 1, None, 2]) for name in [*images, 'like']]
    graph = helper.make_graph(ops.nodes, 'rows', takes, [helper.make_tensor_value_info(found, 1, None)],
                              ops.initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', onnx_graph.OPSET)],
                              ir_version=onnx_graph.IR_VERSION)
    session = ort.InferenceSession(model.SerializeToString(), providers=['CPUExecutionProvider'])
    wanted = sum(rows_by_hand(array[0, 0].astype(np.float64), high, shifts[n])
                 for n, array in enumerate(images.values()))
    result = session.run(None, {**images, 'like': like})[0][0, 0]
    # Of each of three images two products and their sum are rounded.
    np.testing.assert_allclose(result, wanted, rtol=0, atol=9 * np.abs(wanted).max() * np.finfo(np.float32).eps)
