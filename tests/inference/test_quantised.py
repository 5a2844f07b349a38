"""--precision int8: what is in 8 bits, how it is calibrated and kept, and that its classes are nearly those of fp32."""
import argparse
import logging
from types import SimpleNamespace

import cv2
import numpy as np
import onnx
import paddle
import pytest
from paddleseg.transforms import Normalize

from common import flags
from common.builder import Builder
from common.config import Config
from inference import backends, forms, memory, onnx_writer, quantised
from inference.export import quantisation
from inference.predictor import Predictor
from models.paddleseg_mscale_ocrnet import PaddleSegMscaleOCRNet
from tests.export.test_quantisation import VNNI, needs_nncf, trained  # noqa: F401 (a fixture)
from tests.inference.test_backends import ENGINES
from tests.inference.test_forms import fastest
from tests.models.test_paddleseg_mscale_ocrnet import PaddleSegs, filled

# Of the classes, see tests/export/test_quantisation.py.
LEAST = {'openvino': 0.99 if VNNI else 0.97, 'onnxruntime': 0.99}


@pytest.fixture
def created(trained, tmp_path, monkeypatch):  # noqa: F811
    """A function of a backend and options of inference.backends.create: (network, validation dataset)."""
    monkeypatch.setenv('MSCALE_CACHE', str(tmp_path / 'cache'))

    def create(backend, **options):
        builder = Builder(Config(trained[0]))
        options = {'precision': 'int8', 'calibration': (None, 4), **options}
        return backends.create(builder, trained[1], backend, **options), builder.val_dataset

    return create


def folders(tmp_path):
    """Those of networks in int8."""
    return sorted(path.parent for path in (tmp_path / 'cache').glob('*/check.json'))


def kinds(path):
    graph = onnx.load(path, load_external_data=False).graph
    return {node.op_type for node in graph.node}, [value.name for value in graph.output]


@needs_nncf
@pytest.mark.parametrize('backend', ENGINES[1:])
@pytest.mark.parametrize('form', [forms.STRIPS, 'plain'])
def test_classes_are_nearly_those_of_fp32(created, tmp_path, monkeypatch, backend, form):
    fastest(monkeypatch, form)
    network, dataset = created(backend)
    assert (network.strips[0] == memory.WHOLE) == (form == 'plain')
    ran = []
    monkeypatch.setattr(network.executor, 'run', lambda part, inputs, run=network.executor.run: (
        ran.append(part), run(part, inputs))[1])
    predict, wanted = Predictor(network), Predictor(created(backend, precision='fp32')[0])
    equal = np.mean([(predict(sample) == wanted(sample)).mean() for sample in map(dataset.__getitem__, range(3))])
    assert LEAST[backend] <= equal < 1  # 8 bits are not float32
    assert set(ran) == ({'scale', 'scale_and_attention'} if form == 'plain' else set(onnx_writer.PARTS))


@needs_nncf
def test_what_is_in_8_bits(created, tmp_path):
    """Backbone and scale graphs, but not the strips of the head; no graph has outputs, or arrays, that nobody reads."""
    created('openvino')
    folder, = folders(tmp_path)
    outputs = {}
    for path in folder.glob('*.onnx'):
        found, outputs[path.stem] = kinds(path)
        assert ('QuantizeLinear' in found) == (path.stem in ('backbone', 'scale', 'scale_and_attention')), path.stem
    assert len(outputs['backbone']) == 4
    assert (outputs['scale'], outputs['scale_and_attention']) == (['logits'], ['logits', 'attention'])
    sizes = {stem: len(onnx.load(folder / f'{stem}.onnx', load_external_data=False).graph.initializer)
             for stem in ('backbone', 'scale', 'scale_and_attention')}
    assert sizes['backbone'] < sizes['scale'] < sizes['scale_and_attention']
    float_folder, = {path.parent for path in (tmp_path / 'cache').glob('*/scale.onnx')} - {folder}
    assert (folder / 'weights.bin').stat().st_size < 0.6 * (float_folder / 'weights.bin').stat().st_size


@needs_nncf
def test_calibrated_once_for_weights_and_images(created, toy, tmp_path, monkeypatch, caplog):
    with caplog.at_level(logging.INFO):
        created('openvino')
    assert 'int8: calibrate on 4 windows of up to 256x512 of the training images of the config' in caplog.text
    said, = (line for line in caplog.messages if 'of the classes of' in line)
    assert said.startswith('int8: ') and said.endswith(
        '% of the classes of 3 images that it was not calibrated on are those of fp32')
    calls = []
    monkeypatch.setattr(quantisation, 'quantised', lambda *args, run=quantisation.quantised: (
        calls.append(1), run(*args))[1])
    caplog.clear()
    with caplog.at_level(logging.INFO):
        created('openvino')
    assert not calls and said in caplog.messages, 'and its quality is said again'
    created('openvino', calibration=(None, 3))
    created('openvino', calibration=(str(toy / 'leftImg8bit/val'), 4))
    assert len(calls) == 2 and len(folders(tmp_path)) == 3


@needs_nncf
def test_a_network_that_8_bits_do_not_suit(created, monkeypatch, caplog):
    monkeypatch.setattr(quantised, 'ENOUGH', 1.1)
    created('openvino')
    line, = (record for record in caplog.records if record.levelno == logging.WARNING)
    assert line.getMessage().endswith(
        'are those of fp32; more images (--calibration_count) that are like those to come (--calibration_images) may '
        'help')


@needs_nncf
def test_no_cache_leaves_nothing(created, tmp_path):
    network, dataset = created('openvino', cache=False)
    assert Predictor(network)(dataset[0]).shape == dataset[0]['label'].shape and not (tmp_path / 'cache').exists()


@needs_nncf
def test_paddlesegs_mscale_ocrnet(toy, tmp_path, monkeypatch):
    """Whose polarized self-attention is quantised, too."""
    monkeypatch.setenv('MSCALE_CACHE', str(tmp_path / 'cache'))
    theirs = filled(PaddleSegs, (0.5, 1.0), use_psa=True)
    paddle.save(theirs.state_dict(), str(tmp_path / 'model.pdparams'))
    builder = SimpleNamespace(model=filled(PaddleSegMscaleOCRNet, (0.5, 1.0), use_psa=True), release_model=lambda: None,
                              val_transforms=[Normalize()])
    network = backends.create(builder, tmp_path / 'model.pdparams', 'onnxruntime', 'int8',
                              calibration=(str(toy / 'leftImg8bit/val'), 2))
    image = cv2.imread(str(next((toy / 'leftImg8bit/val').rglob('*.png')))).astype(np.float32)
    x = paddle.to_tensor(Normalize()({'img': image[..., ::-1]})['img'].transpose(2, 0, 1)[None])
    with paddle.no_grad():
        wanted, found = theirs(x)[0].numpy(), network(x)[0].numpy()
    off = np.abs(found - wanted).mean() / np.abs(wanted - wanted.mean(axis=(2, 3), keepdims=True)).mean()
    assert 1e-4 < off < 0.3, off  # 8 bits; another layout of the attention gives values about 1


def test_refusals(created, monkeypatch):
    with pytest.raises(ValueError, match='--precision int8: expected --backend openvino or onnxruntime, found paddle; '
                                         'choose one of them'):
        created('paddle')
    monkeypatch.setattr(quantisation, 'INT8_PACKAGES', ('not_there',))
    with pytest.raises(ValueError, match='expected the package not_there, found none; pip install --no-deps -r '
                                         'requirements-int8.txt'):
        created('openvino')


def test_flags():
    parser = argparse.ArgumentParser()
    flags.add_inference_flags(parser, '--aug_pred')
    common = ['--config', 'a', '--model_path', 'b']
    args = parser.parse_args([*common, '--precision', 'int8', '--calibration_images', 'c', '--calibration_count', '3'])
    assert flags.network_options(args)['calibration'] == ('c', 3)
    assert flags.precision_settings(args) == {'precision': 'int8', 'calibration': ['c', 3]}
    assert flags.precision_settings(parser.parse_args(common)) == {'precision': 'fp32'}
    for given, text in ((['--calibration_images', 'c'], 'expected --precision int8, found fp32; leave it out'),
                        (['--precision', 'int8', '--calibration_count', '0'], 'expected at least 1, found 0')):
        for function in (flags.network_options, flags.precision_settings):
            with pytest.raises(ValueError, match=text):
                function(parser.parse_args([*common, *given]))
