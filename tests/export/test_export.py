"""export.py as a user runs it: what it writes in each format, and what it refuses with nothing written."""
import importlib
import json
import signal

import cv2
import numpy as np
import onnx
import paddle
import pytest
import yaml
from PIL import Image

import export
import predict
import val
from common.export_table import FORMATS, LARGEST_SIDE
from datasets.labels import CITYSCAPES
from inference.export import description, onnx_graph, whole
from tests import fill
from tests.conftest import run_script as run
from tests.conftest import write_tiny_config
from tests.export import networks

FILES = {'onnx': {'model.onnx'}, 'openvino': {'model.xml', 'model.bin'},
         'paddle': {'model.pdiparams', 'model.json' if paddle.__version__.startswith('3') else 'model.pdmodel'}}
ONE_SCALE = ('--opts', 'model.n_scales=[1.0]')  # the quickest
ALWAYS = {'deploy.yaml', 'model.safetensors', 'config.json', 'README.md'}


@pytest.fixture(scope='module')
def weights(toy, tmp_path_factory):
    """(config, weights) of a very small network with varied results."""
    from common.builder import Builder
    from common.config import Config

    folder = tmp_path_factory.mktemp('weights')
    config = write_tiny_config(folder / 'tiny.yml', toy)
    model = Builder(Config(config)).model
    fill.weights(model)
    paddle.save(model.state_dict(), str(folder / 'run' / 'model.pdparams'))
    return config, folder / 'run' / 'model.pdparams'


def exported(weights, folder, *flags):
    assert run(export.main, '--config', weights[0], '--model_path', weights[1], '--save_dir', folder, *flags) is None
    return folder


def refused(weights, folder, capsys, *flags):
    """The text of the error, with nothing left of the export."""
    before = {path.relative_to(folder.parent) for path in folder.parent.rglob('*')}
    status = run(export.main, '--config', weights[0], '--model_path', weights[1], '--save_dir', folder, *flags)
    printed = capsys.readouterr().err.splitlines()
    text, = (line for line in printed if line and not line.startswith(('check, ', 'calibration:')))  # bars
    assert status in (1, 2) and text.startswith('error: '), text
    assert {path.relative_to(folder.parent) for path in folder.parent.rglob('*')} == before
    return text


def test_flags_and_table_agree():
    for name, entry in FORMATS.items():
        module = importlib.import_module(entry.module)
        assert callable(module.write) and callable(module.load), name
    assert export.parse_args(['--config', 'a', '--model_path', 'b']).output in whole.OUTPUTS


@pytest.mark.parametrize('flags', [['--with_preprocessing'], ['--input_shape', '64', '128', '--with_preprocessing']],
                         ids=' '.join)
@pytest.mark.parametrize('name', FILES)
def test_classes_are_those_of_predict(weights, toy, tmp_path, name, flags):
    """Pixel by pixel, on the toy images."""
    folder = exported(weights, tmp_path / 'out', '--format', name, *flags)
    assert {path.name for path in folder.iterdir()} == ALWAYS | FILES[name]
    assert [path.name for path in tmp_path.iterdir()] == ['out']
    images = toy / 'leftImg8bit' / 'val'
    assert run(predict.main, '--config', weights[0], '--model_path', weights[1], '--image_path', images, '--save_dir',
               tmp_path / 'predicted') is None
    network = importlib.import_module(FORMATS[name].module).load(folder)
    pictures = sorted(images.rglob('*.png'))
    for path in pictures:
        found = network(cv2.imread(str(path))[..., ::-1])
        with Image.open(tmp_path / 'predicted/pseudo_color_prediction' / path.relative_to(images)) as wanted:
            np.testing.assert_array_equal(found, np.asarray(wanted))
        assert found.dtype == np.uint8 and len(np.unique(found)) > 1
    assert len(pictures) == 3


@pytest.mark.parametrize('name', FILES)
def test_logits_with_flip_for_any_size(weights, tmp_path, name):
    from common.builder import Builder
    from common.config import Config

    scales = 'model.n_scales=[0.7,1.0]'  # 0.7 has no fraction
    folder = exported(weights, tmp_path / 'out', '--format', name, '--flip', '--output', 'logits', '--opts', scales)
    model = Builder(Config(weights[0], [scales])).model
    model.set_state_dict(paddle.load(str(weights[1])))
    model.eval()
    network = importlib.import_module(FORMATS[name].module).load(folder)
    for seed, size in enumerate([(40, 61), (97, 64)]):
        x = fill.image(seed, [1, 3, *size])
        np.testing.assert_allclose(network(x), networks.plain(model, flip=True)(x), atol=2e-4)


@pytest.mark.parametrize('name', [name for name in FILES if 'fp16' in FORMATS[name].precisions])
def test_half_precision(weights, tmp_path, name):
    folder = exported(weights, tmp_path / 'out', '--format', name, '--precision', 'fp16', *ONE_SCALE)
    largest = max((folder / file).stat().st_size for file in FILES[name])
    assert largest < 0.55 * (folder / 'model.safetensors').stat().st_size


def test_paddle_classes_are_what_paddleseg_reads(weights, tmp_path):
    """int32, as PaddleSeg's own export; and its class for deploy.yaml finds files and transforms."""
    from paddleseg.deploy.infer import DeployConfig

    folder = exported(weights, tmp_path / 'out', '--format', 'paddle', '--input_shape', '48', '64')
    deploy = DeployConfig(str(folder / 'deploy.yaml'))
    image = networks.picture(0, (48, 64))
    x = deploy.transforms({'img': image[..., ::-1].astype('float32')})['img']
    np.testing.assert_allclose(x[None], networks.normalised(image), atol=1e-5)
    from paddle import inference

    config = inference.Config(deploy.model, deploy.params)
    config.disable_gpu()
    if hasattr(config, 'disable_mkldnn'):
        config.disable_mkldnn()
    predictor = inference.create_predictor(config)
    handle = predictor.get_input_handle(predictor.get_input_names()[0])
    handle.copy_from_cpu(x[None])
    predictor.run()
    found = predictor.get_output_handle(predictor.get_output_names()[0]).copy_to_cpu()
    assert found.dtype == np.int32 and found.shape == (1, 48, 64)
    assert yaml.safe_load((folder / 'deploy.yaml').read_text())['Deploy']['output_dtype'] == 'int32'


def test_what_lies_beside_the_network(weights, tmp_path):
    from common.atomic_io import sha256_of
    from models.weights import read

    assert run(val.main, '--config', weights[0], '--model_path', weights[1]) is None
    folder = exported(weights, tmp_path / 'out', '--input_shape', '64', '96', '--license', 'apache-2.0',
                      *ONE_SCALE)
    deploy = yaml.safe_load((folder / 'deploy.yaml').read_text())['Deploy']
    assert deploy == {
        'model': 'model.onnx', 'params': 'model.onnx', 'input_shape': [1, 3, 64, 96], 'output_op': 'argmax',
        'output_dtype': 'uint8',
        'transforms': [{'type': 'Normalize', 'mean': list(networks.MEAN), 'std': list(networks.STD)}]}
    found = {entry.key: entry.value for entry in onnx.load(folder / 'model.onnx').metadata_props}
    digest = sha256_of(weights[1])
    assert {key: json.loads(value) for key, value in found.items() if key not in ('version', 'weights_sha256')} == {
        'classes': list(CITYSCAPES.names), 'palette': [list(color) for color in CITYSCAPES.palette], 'scales': [1.0],
        'flip': False, 'mean': list(networks.MEAN), 'std': list(networks.STD), 'label_ids': list(CITYSCAPES.label_ids)}
    assert found['weights_sha256'] == digest and found['version'] == description.version() == '0.1.0'
    state, original = read(folder / 'model.safetensors'), read(weights[1])
    assert state.keys() == original.keys()
    assert all(np.array_equal(state[name], original[name]) for name in state)
    config = json.loads((folder / 'config.json').read_text())
    assert config['id2label']['13'] == 'car' and config['model']['n_scales'] == [1.0]
    assert config['weights_sha256'] == digest and config['image_std'] == list(networks.STD)
    head, card = (folder / 'README.md').read_text().split('---\n')[1:]
    assert yaml.safe_load(head)['license'] == 'apache-2.0'
    report = json.loads((weights[1].parent / 'evaluation_tiny.json').read_text())
    assert f'mIoU {100 * report["miou"]:.2f} %' in card and 'on 3 images' in card and digest in card


def test_no_figures_of_other_weights(weights, tmp_path):
    (tmp_path / 'model.pdparams').write_bytes(weights[1].read_bytes())
    (tmp_path / 'evaluation_a.json').write_text('{"miou": 0.5}')
    (tmp_path / 'evaluation_b.json').write_text('no json')
    folder = exported((weights[0], tmp_path / 'model.pdparams'), tmp_path / 'out', *ONE_SCALE)
    card = (folder / 'README.md').read_text()
    assert 'No evaluation lies beside the weights' in card and 'mIoU' not in card and 'license: unknown' in card


def test_openvino_metadata(weights, tmp_path):
    openvino = pytest.importorskip('openvino')
    folder = exported(weights, tmp_path / 'out', '--format', 'openvino', *ONE_SCALE)
    info = openvino.Core().read_model(folder / 'model.xml').get_rt_info('model_info')
    assert json.loads(info.value['classes'])[13] == 'car' and info.value['flip'] == 'false'


# ---------------------------------------------------------------- refusals

@pytest.mark.parametrize('words', [['64'], ['0', '64'], ['64', '-1'], ['1', '3', '64', '64'], ['64', 'any'],
                                   ['6.4', '64'], [str(LARGEST_SIDE + 1), '64']], ids=' '.join)
def test_input_shapes_that_are_none(weights, tmp_path, capsys, words):
    text = refused(weights, tmp_path / 'out', capsys, '--input_shape', *words)
    if not any(word.startswith('-') for word in words):
        assert text == (f'error: --input_shape: expected any, or height and width of 1 to 16384 pixels, found '
                        f'{" ".join(words)}; for example --input_shape 1024 2048')


def test_an_export_is_not_overwritten(weights, tmp_path, capsys):
    folder = exported(weights, tmp_path / 'out', *ONE_SCALE)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    text = refused(weights, folder, capsys)
    assert text == (f'error: --save_dir {folder}: expected a new or an empty folder, found README.md; choose another '
                    'one, or delete it')
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    (tmp_path / 'file').write_text('')
    assert 'found a file' in refused(weights, tmp_path / 'file', capsys)
    (tmp_path / 'empty').mkdir()
    exported(weights, tmp_path / 'empty', *ONE_SCALE)


def test_precisions_that_a_format_lacks(weights, tmp_path, capsys):
    assert refused(weights, tmp_path / 'out', capsys, '--format', 'paddle', '--precision', 'fp16') == (
        'error: --precision fp16: expected fp32 with --format paddle; choose it, or another --format')
    text = refused(weights, tmp_path / 'out', capsys, '--precision', 'int4')
    assert "invalid choice: 'int4'" in text
    assert run(export.main, '--help') == 0 and 'fp32,fp16,int8' in capsys.readouterr().out


def test_packages_that_are_missing(weights, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(FORMATS, 'onnx', FORMATS['onnx']._replace(packages=('onnx', 'not_there')))
    assert refused(weights, tmp_path / 'out', capsys) == (
        'error: --format onnx: expected the package not_there, found none; pip install not_there')


def test_another_network(weights, toy, tmp_path, capsys):
    config = tmp_path / 'other.yml'
    config.write_text(f'_base_: {weights[0]}\nmodel: {{_inherited_: False, type: BiSeNetV2}}\n')
    text = refused((config, weights[1]), tmp_path / 'out', capsys)
    assert text == (f'error: {config}: expected a MscaleOCRNet on an HRNet, found BiSeNetV2; PaddleSeg\'s '
                    "tools/export.py exports PaddleSeg's models")


def test_transforms_that_a_graph_does_not_have(weights, toy, tmp_path, capsys):
    config = tmp_path / 'resized.yml'
    config.write_text(f'_base_: {weights[0]}\nval_dataset: {{transforms: [{{type: Resize, target_size: [64, 32]}}, '
                      '{type: Normalize}]}\n')
    assert refused((config, weights[1]), tmp_path / 'out', capsys, '--with_preprocessing') == (
        f"error: {config}: key 'val_dataset.transforms': expected Normalize alone with --with_preprocessing, found "
        'Resize, Normalize; leave --with_preprocessing out')
    folder = exported((config, weights[1]), tmp_path / 'out', *ONE_SCALE)
    assert yaml.safe_load((folder / 'deploy.yaml').read_text())['Deploy']['transforms'][0]['type'] == 'Resize'
    assert json.loads((folder / 'config.json').read_text())['image_mean'] == [0.5] * 3


def test_weights_of_another_network_and_no_file(weights, tmp_path, capsys):
    assert 'found nothing' in refused((weights[0], tmp_path / 'none.pdparams'), tmp_path / 'out', capsys)
    before = set(tmp_path.rglob('*'))
    assert run(export.main, '--config', weights[0], '--model_path', weights[1], '--save_dir', tmp_path / 'out',
               '--opts', 'model.ocr_mid_channels=24') == 1
    assert 'shape: ' in capsys.readouterr().err and set(tmp_path.rglob('*')) == before


def test_an_export_of_one_size_is_refused_before_anything_is_read(weights, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr('inference.export.writing.load_weights', None)
    monkeypatch.setitem(FORMATS, 'onnx', FORMATS['onnx']._replace(any_size=False))
    assert refused(weights, tmp_path / 'out', capsys) == (
        'error: --input_shape any: expected height and width with --format onnx, whose files take images of one size; '
        'for example --input_shape 512 1024')
    assert [name for name, entry in FORMATS.items() if not entry.any_size] == ['onnx', 'tflite']


@pytest.mark.parametrize('status', [143, 130])
def test_nothing_is_left_of_a_stopped_export(weights, tmp_path, capsys, monkeypatch, status):
    def stopped(*_):
        assert [path.name for path in tmp_path.iterdir()][0].startswith('.out.partial-')
        if status == 130:
            raise KeyboardInterrupt
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr('inference.export.model_page.write', stopped)
    before = signal.getsignal(signal.SIGTERM)
    assert run(export.main, '--config', weights[0], '--model_path', weights[1], '--save_dir', tmp_path / 'out',
               *ONE_SCALE) == status
    assert not list(tmp_path.iterdir()) and signal.getsignal(signal.SIGTERM) == before


def test_nothing_is_left_of_a_wrong_export(weights, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(onnx_graph.WholeOps, 'sum', lambda self, terms: terms[0])
    text = refused(weights, tmp_path / 'out', capsys, *ONE_SCALE)
    assert text.startswith('error: check of the exported file with an image of 96x160: expected a difference of at '
                           'most 0.001 of the range from the network of val.py, found ')
    assert text.endswith('of 15360 classes; nothing was written: try --precision fp32, else report it')
