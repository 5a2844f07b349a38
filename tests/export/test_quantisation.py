"""int8 exports: what of the graph is quantised, classes, metadata, choice of images, refusals with nothing written."""
import importlib
import importlib.util
import json
import os
import re
from collections import Counter

import cv2
import numpy as np
import onnx
import paddle
import pytest
from onnx import numpy_helper

from common.export_table import FORMATS
from common.processor import processor
from inference.export import check, onnx_graph, quantisation
from inference.export.quantisation import Images
from inference.export.whole import Settings
from tests import fill
from tests.conftest import write_tiny_config
from tests.export import networks
from tests.export.test_export import ONE_SCALE, exported, refused, weights  # noqa: F401

needs_nncf = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ('nncf', 'onnxruntime')),
    reason='needs nncf and onnxruntime (requirements-int8.txt)')
# Whether OpenVINO multiplies 8-bit numbers exactly here; else it adds pairs of products in 16 bits.
VNNI = any('vnni' in name for name in processor()['instructions']) and not re.fullmatch(
    'SSE41|AVX|AVX2|AVX512_CORE', os.environ.get('ONEDNN_MAX_CPU_ISA', ''))
SETTINGS = Settings(preprocessing=True, mean=networks.MEAN, std=networks.STD)


def pictures(count, start=0, size=(64, 96)):
    return [networks.picture(start + seed, size) for seed in range(count)]


@pytest.fixture(scope='module')
def graphs():
    """(fp32, int8) of a small network."""
    model = networks.network((0.5, 1.0))
    return (onnx_graph.build(model, SETTINGS, {'version': '1'}),
            quantisation.quantised(onnx_graph.build(model, SETTINGS, {'version': '1'}), pictures(6)))


def makers(graph):
    return {name: node for node in graph.graph.node for name in node.output}


@needs_nncf
def test_convolutions_take_8_bits(graphs):
    """Activations and weights of all, but of the classifiers; weights stored once, with a scale per output channel."""
    graph = graphs[1]
    found, stored = makers(graph), {array.name: array for array in graph.graph.initializer}
    kinds = Counter()
    for node in graph.graph.node:
        if node.op_type != 'Conv':
            continue
        sources = [found.get(name) for name in node.input[:2]]
        quantised = [source is not None and source.op_type == 'DequantizeLinear' for source in sources]
        assert quantised[0] == quantised[1]
        kinds[quantised[0]] += 1
        if quantised[0]:
            weight, scale = (numpy_helper.to_array(stored[name]) for name in sources[1].input[:2])
            assert weight.dtype == np.int8 and scale.shape == weight.shape[:1]
            assert 2 * 255 * np.abs(weight.astype(int)).max() < 1 << 15  # without VNNI the sum of two has 16 bits
            assert found[sources[0].input[0]].op_type == 'QuantizeLinear'
    # At two scales: classifier and auxiliary classifier; at the lower one, the attention's last.
    assert kinds[False] == 2 * 2 + 1 and kinds[True] > 80
    assert len([array for array in graph.graph.initializer if array.data_type == onnx.TensorProto.INT8
                and len(array.dims) == 4]) < 0.6 * kinds[True]  # the scales share them


@needs_nncf
def test_the_rest_stays_float(graphs):
    plain, graph = graphs
    found = makers(graph)
    for node in graph.graph.node:
        if node.op_type in ('Softmax', 'MatMul', 'Sigmoid', 'Resize', 'Sub', 'ArgMax'):
            assert all(name not in found or found[name].op_type != 'DequantizeLinear' for name in node.input), node.name
    kinds, before = (Counter(node.op_type for node in one.graph.node) for one in (graph, plain))
    assert {kind: kinds[kind] for kind in before} == before
    assert set(kinds) - set(before) == {'QuantizeLinear', 'DequantizeLinear'}
    assert {entry.key: entry.value for entry in graph.metadata_props} == {'version': '1'}


# ---------------------------------------------------------------- as a user runs it

GROUPS = np.full(256, 255)  # two classes, so that margins are as wide as after training: sky and all else
GROUPS[:19], GROUPS[10] = 2, 10


@pytest.fixture(scope='module')
def trained(toy, tmp_path_factory):
    """(config, weights) of a very small network whose classifier is fitted to the toy labels by least squares."""
    from common.builder import Builder
    from common.config import Config

    folder = tmp_path_factory.mktemp('trained')
    config = write_tiny_config(folder / 'tiny.yml', toy, n_scales='[0.5, 1.0]')
    builder = Builder(Config(config))
    model, dataset = builder.model, builder.val_dataset
    fill.weights(model)
    model.eval()
    classifier = model.ocrnet.head.layers().classifier
    features, labels = [], []
    hook = classifier.register_forward_pre_hook(lambda layer, inputs: features.append(inputs[0].numpy()))
    for sample in (dataset[i] for i in range(len(dataset))):
        networks.plain(model)(sample['img'][None])
        for x in features[len(labels):]:
            labels.append(cv2.resize(sample['label'].astype(np.uint8), x.shape[:1:-1], interpolation=0).ravel())
    hook.remove()
    x = np.concatenate([x[0].reshape(x.shape[1], -1).T for x in features]).astype(np.float64)
    y = GROUPS[np.concatenate(labels)]
    x, y = np.hstack([x, np.ones([len(x), 1])])[y < 255], y[y < 255]
    solution = np.linalg.solve(x.T @ x + 1e-3 * len(x) * np.eye(x.shape[1]), x.T @ np.eye(len(classifier.bias))[y])
    classifier.weight.set_value(solution[:-1].T[:, :, None, None].astype(np.float32))
    classifier.bias.set_value(solution[-1].astype(np.float32))
    paddle.save(model.state_dict(), str(folder / 'run' / 'model.pdparams'))
    return config, folder / 'run' / 'model.pdparams'


@needs_nncf
@pytest.mark.parametrize('name,flags', [('onnx', []), ('openvino', ['--flip', '--with_preprocessing', *ONE_SCALE])],
                         ids=['onnx', 'openvino'])
def test_an_export(trained, toy, tmp_path, capsys, name, flags):
    """99 % of its classes are those of the layers, on images that it was not calibrated on; what it says of itself."""
    from common.builder import Builder
    from common.config import Config

    if name == 'openvino' and not VNNI:
        pytest.skip('without VNNI, 98.3 % of the classes are equal, and the export is refused')
    folder = exported(trained, tmp_path / 'out', '--format', name, '--precision', 'int8', '--calibration_count', '5',
                      *flags)
    printed = capsys.readouterr().out
    network = importlib.import_module(FORMATS[name].module).load(folder)
    model = Builder(Config(trained[0], ONE_SCALE[1:] if flags else [])).model
    model.set_state_dict(paddle.load(str(trained[1])))
    model.eval()
    equal, seen = [], set()
    for path in sorted((toy / 'leftImg8bit/val').rglob('*.png')):
        image = cv2.imread(str(path))[..., ::-1]
        x = networks.normalised(image)
        wanted = networks.plain(model, flip=bool(flags))(x).argmax(1)[0]
        equal.append((network(image if flags else x).reshape(wanted.shape) == wanted).mean())
        seen |= set(np.unique(wanted))
    assert np.mean(equal) >= 0.99 and {2, 10} <= seen
    share = f'{100 * np.mean(equal):.2f} % of the classes'  # the check takes the same three images
    card = (folder / 'README.md').read_text()
    assert f'{share} are equal' in printed and f'calibrated on 5 images; {", ".join(quantisation.FLOAT)} are' in card
    assert f'{share} are those of fp32 on 3 images' in card
    assert 'check on 3 others of the validation images of the config' in printed
    values = json.loads(metadata(folder, 'quantisation'))
    assert json.loads(metadata(folder, 'precision')) == 'int8' and values['float32'] == list(quantisation.FLOAT)
    assert values['calibration_images'] == 5 and values['method'].startswith('NNCF 3.')
    network_file, = {'model.onnx', 'model.bin'} & {path.name for path in folder.iterdir()}
    assert (folder / network_file).stat().st_size < 0.5 * (folder / 'model.safetensors').stat().st_size


def metadata(folder, key):
    if (folder / 'model.onnx').is_file():
        return {entry.key: entry.value for entry in onnx.load(folder / 'model.onnx').metadata_props}[key]
    import openvino
    return openvino.Core().read_model(folder / 'model.xml').get_rt_info('model_info').value[key]


@needs_nncf
def test_too_many_other_classes(weights, tmp_path, capsys, monkeypatch):  # noqa: F811
    """Nothing is written. With a limit that 8 bits never hold; the limit itself is tested below."""
    monkeypatch.setitem(check.CLASSES, 'int8', 0.0)
    text = refused(weights, tmp_path / 'out', capsys, '--precision', 'int8', '--calibration_count', '2', *ONE_SCALE)
    found = re.fullmatch(r'error: check of the exported file with 3 images: expected at least 100% of the classes of '
                         r'the network of val\.py, found ([\d.]+)%; nothing was written: give more images '
                         r"\(--calibration_count\) that are like the network's own \(--calibration_images\), or try "
                         r'--precision fp32', text)
    assert found and 30 < float(found[1]) < 100


# ---------------------------------------------------------------- choice of images and refusals

@pytest.fixture
def photographs(tmp_path):
    """A folder of 12 images whose colour is their number."""
    folder = tmp_path / 'photographs'
    folder.mkdir()
    for i in range(12):
        cv2.imwrite(str(folder / f'{i}.png'), np.full([300, 20, 3], (i, 0, 100), np.uint8))
    return folder


def numbers(images):
    return [int(image[0, 0, 2]) for image in images]


def test_images_of_a_folder(photographs):
    """Three of twelve are kept for the check; as many of the others as asked for; RGB windows; the same every time."""
    chosen = quantisation.choose(Images(str(photographs), 4), None)
    calibration, held_out = numbers(chosen.calibration), numbers(chosen.held_out)
    assert (len(calibration), len(held_out)) == (4, 3) and len({*calibration, *held_out}) == 7
    assert {image.shape for image in chosen.calibration} == {(256, 20, 3)}
    assert {image.shape for image in chosen.held_out} == {(300, 20, 3)}
    assert all(image[0, 0, 0] == 100 for image in chosen.calibration)
    again = quantisation.choose(Images(str(photographs), 4), None)
    assert (numbers(again.calibration), numbers(again.held_out)) == (calibration, held_out)
    rest = quantisation.choose(Images(str(photographs), 32), None)
    assert sorted(numbers(rest.calibration) + numbers(rest.held_out)) == list(range(12))


def test_images_have_the_size_of_the_network(photographs):
    """Transforms of the validation images that resize come before the window."""
    from paddleseg.transforms import Resize

    chosen = quantisation.choose(Images(str(photographs), 4), None, [Resize(target_size=(10, 150))])  # w, h
    assert {image.shape for image in chosen.calibration + chosen.held_out} == {(150, 10, 3)}
    chosen = quantisation.choose(Images(str(photographs), 4), None, [Resize(target_size=(30, 400))])
    assert {image.shape for image in chosen.calibration} == {(256, 30, 3)}
    assert all(image.dtype == np.uint8 and image[0, 0, 0] == 100 for image in chosen.calibration)


@pytest.mark.parametrize('opts', [[], ['train_dataset.add_val=True']], ids=['train', 'trainval'])
def test_images_of_the_config(toy, tmp_path, opts):
    from common.builder import Builder
    from common.config import Config

    chosen = quantisation.choose(Images(), Builder(Config(write_tiny_config(tmp_path / 'tiny.yml', toy), opts)))
    calibration, held_out = ({image.tobytes() for image in images} for images in (chosen.calibration, chosen.held_out))
    wanted = [{np.ascontiguousarray(cv2.imread(str(path))[..., ::-1]).tobytes()
               for path in (toy / 'leftImg8bit' / part).rglob('*.png')} for part in ('train', 'val')]
    assert [calibration, held_out] == wanted and [len(paths) for paths in wanted] == [6, 3]


def test_refusals_of_images(weights, toy, tmp_path, capsys, monkeypatch, photographs):  # noqa: F811
    monkeypatch.setattr(quantisation, 'INT8_PACKAGES', ())
    int8 = ['--precision', 'int8', '--calibration_images']
    for path in list(photographs.iterdir())[1:]:
        path.unlink()
    assert refused(weights, tmp_path / 'out', capsys, *int8, photographs) == (
        'error: --calibration_images: expected an image to calibrate on and another one to check with, found 0 in '
        f'{photographs} and 1 in {photographs}; add images')
    assert refused(weights, tmp_path / 'out', capsys, *int8, tmp_path / 'none').startswith(
        f'error: --calibration_images {tmp_path / "none"}: expected an image, a folder or a list file, found nothing')
    text = refused(weights, tmp_path / 'out', capsys, '--precision', 'int8', '--opts',
                   f'train_dataset.dataset_root={tmp_path / "gone"}')
    assert str(tmp_path / 'gone') in text and text.endswith('; or name other images by --calibration_images DIR')


@pytest.mark.parametrize('flags,text', [
    (['--calibration_images', 'x'], '--calibration_images: expected --precision int8, found fp32; leave it out'),
    (['--precision', 'int8', '--calibration_count', '0'], '--calibration_count: expected at least 1, found 0'),
    (['--precision', 'int8', '--input_shape', '64', '128'],
     '--precision int8: expected --input_shape any, found a fixed size; leave --input_shape out'),
    (['--precision', 'int8', '--format', 'paddle'],
     '--precision int8: expected fp32 with --format paddle; choose it, or another --format')], ids=lambda value: '')
def test_refusals_of_flags(weights, tmp_path, capsys, flags, text):  # noqa: F811
    assert refused(weights, tmp_path / 'out', capsys, *flags) == f'error: {text}'


def test_without_nncf(weights, tmp_path, capsys, monkeypatch):  # noqa: F811
    monkeypatch.setattr(quantisation, 'INT8_PACKAGES', ('not_there',))
    assert refused(weights, tmp_path / 'out', capsys, '--precision', 'int8') == (
        'error: --precision int8: expected the package not_there, found none; pip install --no-deps -r '
        'requirements-int8.txt')


def test_the_limit_of_the_check(monkeypatch):
    """1 % of all pixels, not of each image."""
    logits = np.zeros([1, 2, 20, 50], np.float32)
    logits[:, 1] = 1
    cases = [check.Case(np.zeros(1), logits) for _ in range(2)]

    def compared(others):
        results = iter([np.ones([1, 20, 50], np.uint8) for _ in cases])

        def run_one(image):
            classes = next(results)
            classes.flat[:others.pop()] = 0
            return classes

        return check.compare(run_one, cases, Settings(precision='int8'))

    assert compared([0, 20]) == 1 - 20 / 2000
    with pytest.raises(ValueError, match=r'with 2 images: expected at least 99% of the classes .* found 98\.95%; '):
        compared([10, 11])
