"""The ONNX graph against the plain formula of the layers, and what engines ask of it."""
import dataclasses
import json

import numpy as np
import onnx
import pytest

from inference.export import onnx_graph
from inference.export.whole import Settings
from tests import fill, rounding
from tests.export import networks

ort = pytest.importorskip('onnxruntime')

# https://github.com/onnx/onnx-tensorrt/blob/main/docs/operators.md, the operators marked Y for TensorRT 10.1, of those
# that have to do with networks like this one. Loops and what depends on data are left out on purpose.
TENSORRT = {
    'Abs', 'Add', 'And', 'ArgMax', 'ArgMin', 'AveragePool', 'BatchNormalization', 'Cast', 'Ceil', 'Clip', 'Concat',
    'Constant', 'ConstantOfShape', 'Conv', 'ConvTranspose', 'DepthToSpace', 'Div', 'Einsum', 'Elu', 'Equal', 'Erf',
    'Exp', 'Expand', 'Flatten', 'Floor', 'Gather', 'Gemm', 'GlobalAveragePool', 'Greater', 'HardSigmoid', 'Identity',
    'InstanceNormalization', 'LeakyRelu', 'Less', 'Log', 'MatMul', 'Max', 'MaxPool', 'Mean', 'Min', 'Mod', 'Mul',
    'Neg', 'Not', 'Or', 'Pad', 'Pow', 'PRelu', 'Range', 'Reciprocal', 'ReduceMax', 'ReduceMean', 'ReduceMin',
    'ReduceProd', 'ReduceSum', 'Relu', 'Reshape', 'Resize', 'Round', 'Shape', 'Sigmoid', 'Size', 'Slice', 'Softmax',
    'SpaceToDepth', 'Split', 'Sqrt', 'Squeeze', 'Sub', 'Sum', 'Tanh', 'Tile', 'TopK', 'Transpose', 'Unsqueeze',
    'Upsample', 'Where'}
TENSORRT_OPSETS = range(9, 21)
SIZES_AT_RUN_TIME = {'Shape', 'Gather', 'Max', 'Floor', 'Size', 'ConstantOfShape', 'Expand', 'NonZero'}

PLAIN = Settings(output='logits', mean=networks.MEAN, std=networks.STD)
KINDS = {
    'any': PLAIN, 'fixed': dataclasses.replace(PLAIN, size=(75, 106)),
    'classes': dataclasses.replace(PLAIN, output='classes'),
    'image': dataclasses.replace(PLAIN, output='classes', preprocessing=True),
    'fixed image': dataclasses.replace(PLAIN, output='classes', preprocessing=True, size=(33, 49), flip=True),
    'probabilities': dataclasses.replace(PLAIN, output='probabilities', flip=True),
    'half': dataclasses.replace(PLAIN, precision='fp16', preprocessing=True, output='classes'),
    'half with flip': dataclasses.replace(PLAIN, precision='fp16', flip=True),
    'fixed half': dataclasses.replace(PLAIN, precision='fp16', size=(64, 97))}


def run(graph, x):
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(graph.SerializeToString(), options, ['CPUExecutionProvider'])
    return session.run(None, {'image': x})[0]


def graph_of(model, settings=PLAIN, **changes):
    return onnx_graph.build(model, dataclasses.replace(settings, **changes), {})


# Sizes of which the scaled ones round, odd ones, flat ones, and one below the network's stride.
@pytest.mark.parametrize('scales', [[1.0, 0.5], [2.0, 0.5, 1.0], [0.25, 0.5, 1.0, 1.5, 2.0], [0.7, 1.0, 1.1], [1.0]],
                         ids=str)
def test_logits_of_any_size_are_those_of_the_layers(scales):
    model = networks.network(scales)
    graph = graph_of(model)
    for seed, size in enumerate([(64, 96), (75, 106), (33, 130), (20, 31)]):
        x = fill.image(seed, [1, 3, *size])
        want, condition = networks.expected(model, x)
        found = run(graph, x)
        assert found.dtype == np.float32
        rounding.assert_close(found, want, condition)
        assert (found.argmax(1) == want.argmax(1)).mean() > 0.999 and len(np.unique(want.argmax(1))) > 1


@pytest.mark.parametrize('size', [(75, 106), (64, 96), (31, 1), (1, 1)], ids=str)
@pytest.mark.parametrize('scales', [[0.5, 1.0, 2.0], [0.7, 1.0, 1.1]], ids=str)
def test_logits_of_a_fixed_size(scales, size):
    model, x = networks.network(scales), fill.image(3, [1, 3, *size])
    rounding.assert_close(run(graph_of(model, size=size), x), *networks.expected(model, x))


@pytest.mark.parametrize('size', [None, (41, 63)])
def test_flip_averages_with_the_mirrored_image(size):
    model, x = networks.network(), fill.image(4, [1, 3, 41, 63])
    want, condition = networks.expected(model, x, flip=True)
    rounding.assert_close(run(graph_of(model, size=size, flip=True), x), want, condition)
    assert rounding.error(networks.plain(model)(x), want) > 1e-3, 'the flip must matter'


@pytest.mark.parametrize('size', [None, (41, 63)])
def test_classes_of_an_image(size):
    model, image = networks.network(), networks.picture(5, (41, 63))
    found = run(graph_of(model, size=size, output='classes', preprocessing=True), image)
    want = networks.plain(model)(networks.normalised(image)).argmax(1)[0]
    assert found.shape == (41, 63) and found.dtype == np.uint8
    np.testing.assert_array_equal(found, want)
    assert len(np.unique(want)) > 2


def test_classes_and_probabilities():
    model, x = networks.network(), fill.image(6, [1, 3, 41, 63])
    logits = networks.plain(model)(x)
    classes = run(graph_of(model, output='classes'), x)
    assert classes.dtype == np.uint8
    np.testing.assert_array_equal(classes, logits.argmax(1))
    powers = np.exp(logits.astype(np.float64))
    np.testing.assert_allclose(run(graph_of(model, output='probabilities'), x), powers / powers.sum(1, keepdims=True),
                               atol=1e-5)


def types(graph):
    """{name of a value: ONNX's type and shape}, strictly inferred."""
    found = onnx.shape_inference.infer_shapes(graph, check_type=True, strict_mode=True, data_prop=True).graph
    return {value.name: value.type.tensor_type for value in (*found.value_info, *found.input, *found.output)}


@pytest.mark.parametrize('kind', KINDS)
def test_what_engines_ask_for(kind):
    settings = KINDS[kind]
    graph = graph_of(networks.network([0.25, 0.7, 1.0, 1.5]), settings)
    onnx.checker.check_model(graph, full_check=True)
    assert {entry.domain: entry.version for entry in graph.opset_import} == {'': onnx_graph.OPSET}
    assert onnx_graph.OPSET in TENSORRT_OPSETS
    operators = {node.op_type for node in graph.graph.node}
    assert operators <= TENSORRT and all(not node.domain for node in graph.graph.node)
    known = types(graph)
    names = {name for node in graph.graph.node for name in node.output}
    assert names <= set(known) and all(known[name].HasField('shape') for name in names), 'a value without a rank'
    if settings.size is not None:
        open_sides = [name for name in names if not all(dim.dim_value for dim in known[name].shape.dim)]
        assert not open_sides and not operators & SIZES_AT_RUN_TIME
    # TensorRT takes uint8 only as input and output of the whole network.
    inside = names - {value.name for value in graph.graph.output}
    assert not [name for name in inside if known[name].elem_type == onnx.TensorProto.UINT8]
    # The restrictions of the same table.
    constants = {tensor.name for tensor in graph.graph.initializer}
    for node in graph.graph.node:
        fixed = {'Conv': 1, 'Squeeze': 1, 'Unsqueeze': 1, 'Slice': 3}.get(node.op_type)  # weights, axes
        assert fixed is None or node.input[fixed] in constants, node
        if node.op_type == 'Resize':
            attributes = {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}
            assert attributes['mode'] == b'linear'
            assert attributes['coordinate_transformation_mode'] in (b'half_pixel', b'pytorch_half_pixel')
        if node.op_type == 'ArgMax':
            assert known[node.input[0]].elem_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
        if node.op_type == 'Softmax':  # float16's smallest number is larger than some of its results
            assert known[node.output[0]].elem_type == onnx.TensorProto.FLOAT
        if node.op_type == 'Conv':
            half = settings.precision == 'fp16'
            assert known[node.output[0]].elem_type == (onnx.TensorProto.FLOAT16 if half else onnx.TensorProto.FLOAT)


def test_weights_are_there_once():
    """For all scales and both flips; each convolution has a bias of its own."""
    model = networks.network()
    arrays = sum(np.prod(p.shape) for p in model.parameters())
    for graph in (graph_of(model).graph, graph_of(model, flip=True).graph):
        weights = [tensor for tensor in graph.initializer if len(tensor.dims) != 1]
        assert sum(np.prod(tensor.dims) for tensor in weights) < arrays
        biases = [node.input[2] for node in graph.node if node.op_type == 'Conv' and len(node.input) == 3]
        assert len(set(biases)) == len(biases) > 150


def test_half_precision_is_close():
    model, x = networks.network(), fill.image(7, [1, 3, 75, 106])
    graph = graph_of(model, precision='fp16')
    found, want = run(graph, x), networks.plain(model)(x)
    # 11 bits: of the network's 40 layers each rounds by 2**-12, and errors of random sign add up as the root.
    assert 1e-5 < rounding.error(found, want) < 40**0.5 * 2.0**-11
    assert graph.ByteSize() < 0.6 * graph_of(model).ByteSize()


def test_weights_that_half_precision_cannot_hold():
    model = networks.network()
    model.ocrnet.head.cls_head.weight.set_value(model.ocrnet.head.cls_head.weight * 1e6)
    with pytest.raises(ValueError, match=r'--precision fp16: expected weights within 65504.*use --precision fp32'):
        graph_of(model, precision='fp16')


def test_metadata_is_in_the_file():
    graph = onnx_graph.build(networks.network(), PLAIN, {'classes': json.dumps(['a']), 'version': '1.2'})
    assert {entry.key: entry.value for entry in graph.metadata_props} == {'classes': '["a"]', 'version': '1.2'}
    assert (graph.producer_name, graph.producer_version) == ('mscale_ocrnet', '1.2')
