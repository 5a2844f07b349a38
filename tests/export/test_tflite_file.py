"""export.py --format tflite: classes of predict.py pixel by pixel, in LiteRT; sizes, metadata, errors."""
import dataclasses
import importlib.util
import json
import sys

import numpy as np
import paddle
import pytest
from PIL import Image

import export
import predict
from inference.export import tflite_file
from tests import fill
from tests.conftest import run_script, write_tiny_config

MISSING = [name for name in tflite_file.PACKAGES if importlib.util.find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f'no {" ".join(MISSING)}: requirements-tflite.txt')


@pytest.fixture(scope='module')
def network(toy, tmp_path_factory):
    """(command line's config and weights, folder) of a very small network of two scales."""
    from common.builder import Builder
    from common.config import Config

    folder = tmp_path_factory.mktemp('network')
    config = write_tiny_config(folder / 'tiny.yml', toy, n_scales=[0.5, 1.0])
    weights = folder / 'model/model.pdparams'
    model = Builder(Config(config, [], with_pretrained=False)).model
    fill.weights(model)
    paddle.save(model.state_dict(), str(weights))
    return ('--config', config, '--model_path', weights), folder


def exported(network, name, *flags):
    folder = network[1] / name
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(network[1])  # a relative --save_dir, as most are
        assert not run_script(export.main, *network[0], '--save_dir', name, '--format', 'tflite', *flags)
    return folder


def content(folder):
    from ai_edge_litert import schema_py_generated as schema
    return schema.ModelT.InitFromPackedBuf((folder / 'model.tflite').read_bytes(), 0)


@pytest.fixture(scope='module')
def classes(network):
    return exported(network, 'classes', '--input_shape', 64, 128, '--with_preprocessing')


def test_classes_are_those_of_predict(network, classes, toy):
    from ai_edge_litert.interpreter import Interpreter

    images = toy / 'leftImg8bit/val'
    assert not run_script(predict.main, *network[0], '--image_path', images, '--save_dir', network[1] / 'out')
    interpreter = Interpreter(str(classes / 'model.tflite'))
    interpreter.allocate_tensors()
    (entry,), (result,) = interpreter.get_input_details(), interpreter.get_output_details()
    assert (entry['name'], entry['dtype'], entry['shape'].tolist()) == ('image', np.uint8, [64, 128, 3])
    assert (result['name'], result['dtype'], result['shape'].tolist()) == ('classes', np.uint8, [64, 128])
    found = sorted(images.rglob('*.png'))
    assert len(found) == 3
    for path in found:
        interpreter.set_tensor(entry['index'], np.array(Image.open(path).convert('RGB')))
        interpreter.invoke()
        wanted = network[1] / 'out/pseudo_color_prediction' / path.relative_to(images)
        np.testing.assert_array_equal(interpreter.get_tensor(result['index']), np.array(Image.open(wanted)))


def test_every_weight_is_there_once_and_the_metadata_is_in_the_file(network, classes):
    from safetensors import safe_open

    model = content(classes)
    with safe_open(classes / 'model.safetensors', 'numpy') as weights:
        numbers = sum(weights.get_tensor(name).size for name in weights.keys())  # noqa: SIM118
    size = (classes / 'model.tflite').stat().st_size
    # The auxiliary classifiers are left out, batch norm is folded; a thousand operators take about 150 bytes each.
    assert 0.8 * 4 * numbers < size < 4 * numbers + 300_000
    (entry,) = [entry for entry in model.metadata if entry.name == tflite_file.METADATA.encode()]
    metadata = json.loads(bytes(model.buffers[entry.buffer].data))
    assert len(json.loads(metadata['classes'])) == len(json.loads(metadata['palette'])) == 19
    assert len(metadata['weights_sha256']) == 64


@pytest.mark.slow
def test_half_precision_rounds_the_large_weights_and_nothing_else(network, tmp_path):
    """As ONNX Runtime computes it with the same weights rounded."""
    import onnx
    import onnxruntime
    from onnx import numpy_helper

    from common.builder import Builder
    from common.config import Config
    from inference.export import onnx_graph
    from inference.export.whole import Settings
    from models.weights import load_weights

    model = Builder(Config(network[0][1], [], with_pretrained=False)).model
    load_weights(model, network[0][3])
    model.eval()
    settings = Settings((64, 128), 'logits', precision='fp16')
    tflite_file.write(model, settings, {}, tmp_path)
    graph = onnx_graph.build(model, dataclasses.replace(settings, precision='fp32'), {})
    for weight in graph.graph.initializer:
        values = numpy_helper.to_array(weight)
        if weight.data_type == onnx.TensorProto.FLOAT and values.nbytes > tflite_file.SMALL:
            weight.CopyFrom(numpy_helper.from_array(values.astype(np.float16).astype(np.float32), weight.name))
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=['CPUExecutionProvider'])
    image = np.random.default_rng(0).normal(size=[1, 3, 64, 128]).astype(np.float32)
    wanted, found = session.run(None, {'image': image})[0], tflite_file.load(tmp_path)(image)
    assert np.abs(found - wanted).max() < 1e-5 * np.ptp(wanted)  # 6e-7 measured; 3e-4 with the weights as they were


@pytest.mark.slow
def test_probabilities_of_an_odd_size_with_flip(network, classes):
    """export.py itself has compared them; the mirrored image has no weights of its own."""
    odd = exported(network, 'odd', '--input_shape', 61, 99, '--output', 'probabilities', '--flip')
    assert (odd / 'model.tflite').stat().st_size < 1.2 * (classes / 'model.tflite').stat().st_size


def test_weights_that_share_a_buffer_are_halved_once(classes):
    from ai_edge_litert import schema_py_generated as schema

    model = content(classes)
    before = {i: buffer.data for i, buffer in enumerate(model.buffers)}
    part = model.subgraphs[0]
    shapes = {tensor.buffer: tensor.shape for tensor in part.tensors}
    tflite_file.halve_weights(model, part)
    halves = [tensor for tensor in part.tensors if tensor.type == schema.TensorType.FLOAT16]
    assert len({half.buffer for half in halves}) < len(halves)
    for half in halves:
        values = before[half.buffer].view(np.float32)
        np.testing.assert_array_equal(model.buffers[half.buffer].data.view(np.float16), values.astype(np.float16))
        assert len(values) == np.prod(shapes[half.buffer])


@pytest.mark.parametrize('case', ['any size', 'no package', 'no conversion'])
def test_errors(network, tmp_path, monkeypatch, capfd, case):
    find, shape = importlib.util.find_spec, ['any'] if case == 'any size' else [64, 128]
    if case == 'no package':
        monkeypatch.setattr(importlib.util, 'find_spec', lambda name, *a: None if name == 'onnx2tf' else find(name, *a))
    if case == 'no conversion':
        broken = tmp_path / 'python'
        broken.write_text("#!/bin/sh\necho line >&2\nprintf '\\033[31mcannot\\033[0m do that\\n' >&2\nexit 3\n")
        broken.chmod(0o755)
        monkeypatch.setattr(sys, 'executable', str(broken))
    status = run_script(export.main, *network[0], '--save_dir', tmp_path / 'out', '--format', 'tflite',
                        '--input_shape', *shape)
    text = capfd.readouterr().err.strip().splitlines()[-1]
    assert status == 1 and list(tmp_path.iterdir()) == ([broken] if case == 'no conversion' else [])
    assert text == {
        'any size': 'error: --input_shape any: expected height and width with --format tflite, whose files take images '
                    'of one size; for example --input_shape 512 1024',
        'no package': 'error: --format tflite: expected the package onnx2tf, found none; pip install --no-deps '
                      '--ignore-requires-python -r requirements-tflite.txt',
        'no conversion': 'error: --format tflite: expected onnx2tf to convert the network, found status 3: cannot do '
                         'that; use --format onnx, and report it'}[case]
