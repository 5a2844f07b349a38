"""Networks of any kind through OpenVINO and ONNX Runtime: traced, written, checked; or refused by name."""
import json

import numpy as np
import paddle
import pytest
from paddle import nn

import predict
import val
from common.errors import UserError
from inference import backends, paddle_program, program_operations, program_writer, traced_network
from tests import fill, zoo_backends
from tests.test_paddleseg_models import run, write_config

ENGINES = [pytest.param(name, marks=pytest.mark.skipif(name not in backends.installed(), reason='not installed'))
           for name in ('openvino', 'onnxruntime')]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv('MSCALE_CACHE', str(tmp_path / 'cache'))
    return tmp_path / 'cache'


@pytest.mark.parametrize('backend', ENGINES)
# Adaptive pooling; a transformer; unpooling and transposed convolutions; PaddleSeg's code with our arithmetic.
@pytest.mark.parametrize('name', ['PPLiteSeg', 'SegFormer', 'ENet', pytest.param('SFNet', marks=pytest.mark.slow)])
def test_classes_are_those_of_paddle_for_any_size(name, backend, tmp_path):
    config, weights = zoo_backends.write(tmp_path, name)
    assert zoo_backends.compared(config, weights, backend) == 'yes'


class Network(nn.Layer):
    """A network for create: `layers` in a row, then a classifier."""

    def __init__(self, *layers):
        super().__init__()
        self.layers, self.last = nn.LayerList(layers), nn.Conv2D(3, 5, 1)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return [self.last(x)]


class Apply(nn.Layer):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def graph(network, *sizes):
    """[(logits of the layers, logits of the graph in ONNX Runtime)] for images of (H, W)."""
    onnxruntime = pytest.importorskip('onnxruntime')
    fill.weights(network)
    network.eval()
    images = [fill.image(seed, [1, 3, *size]) for seed, size in enumerate(sizes)]
    wanted = [network(paddle.to_tensor(image))[0].numpy() for image in images]
    model = program_writer.write(paddle_program.trace(network), program_operations.OPERATIONS)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=['CPUExecutionProvider'])
    return [(want, session.run(None, {'image': image})[0]) for image, want in zip(images, wanted)]


F = nn.functional


@pytest.mark.parametrize('function', [
    lambda x: F.interpolate(x, scale_factor=1.5, mode='bilinear'),
    lambda x: F.interpolate(x, size=[9, 14], mode='bilinear', align_corners=True),
    lambda x: F.interpolate(x, size=paddle.shape(x)[2:] * 2, mode='bilinear', align_mode=1),
    lambda x: F.interpolate(x, size=[21, 40], mode='nearest'),
    lambda x: F.interpolate(x, size=[21, 40], mode='bicubic'),
    lambda x: F.adaptive_avg_pool2d(x, [3, 5]), lambda x: F.adaptive_max_pool2d(x, 1),
    lambda x: F.avg_pool2d(x, 3, 2, padding=1, exclusive=True), lambda x: F.avg_pool2d(x, 3, 2, 1, exclusive=False),
    lambda x: F.max_pool2d(x, 3, 2, 1), lambda x: F.max_pool2d(x, 2, 2, ceil_mode=True),
    lambda x: F.pad(x, [1, 2, 0, 1]), lambda x: x.transpose([0, 1, 3, 2]),
    lambda x: F.gelu(x) + F.hardswish(x) + F.hardsigmoid(x) + F.leaky_relu(x) + F.relu6(x) + F.silu(x),
    lambda x: x * x.mean(axis=[2, 3], keepdim=True) - x.max(axis=1, keepdim=True) / (1 + x.abs().sum(1, keepdim=True)),
    lambda x: F.softmax(x.flatten(2), axis=-1).reshape([1, 3, paddle.shape(x)[2], -1]),
    lambda x: paddle.concat(paddle.split(x, 3, axis=1)[::-1], axis=1), lambda x: x[:, :, 1:-1, ::2],
    lambda x: paddle.matmul(x, x, transpose_y=True), lambda x: F.normalize(x, axis=1), lambda x: x.tile([1, 1, 2, 1]),
    lambda x: paddle.clip(x, -0.5, 0.5)**2,
    lambda x: x * (-paddle.shape(x)[2] // 5).astype('float32'), lambda x: paddle.floor_divide(x, 0.3 + 0 * x)])
def test_an_operation_has_the_values_that_paddle_has(function):
    for want, found in graph(Network(Apply(function)), (12, 16), (15, 21)):
        assert found.shape == want.shape
        np.testing.assert_allclose(found, want, rtol=0, atol=1e-5 * np.abs(want).max())  # sums of at most 21 x 21 terms


@pytest.mark.parametrize('layer', [
    lambda: nn.Conv2D(3, 3, 3, stride=2, padding='same'), lambda: nn.Conv2D(3, 3, 3, padding=[1, 0, 2, 1]),
    lambda: nn.Conv2D(3, 3, 3, dilation=2, groups=3), lambda: nn.Conv2DTranspose(3, 3, 4, 2, 1),
    lambda: nn.Sequential(nn.BatchNorm2D(3), nn.Dropout2D(0.5), nn.PReLU(3)), lambda: nn.GroupNorm(3, 3)])
def test_a_layer_has_the_values_that_paddle_has(layer):
    for want, found in graph(Network(layer()), (12, 16), (15, 21)):
        np.testing.assert_allclose(found, want, rtol=0, atol=1e-5 * np.abs(want).max())


def create(network, tmp_path, backend, precision='fp32'):
    paddle.save(network.state_dict(), str(tmp_path / 'model.pdparams'))
    network.eval()
    executor = backends.executor_of(backend)
    return traced_network.create(network, tmp_path / 'model.pdparams', {}, executor, precision, cache=True)


@pytest.mark.parametrize('backend', ENGINES)
@pytest.mark.parametrize('function, reason', [
    (lambda x: paddle.cumsum(x, axis=2), "no translation of Paddle's cumsum"),
    (lambda x: x * paddle.rand([1]), 'it draws random numbers'),
    (lambda x: F.adaptive_max_pool2d(x, 3), 'in this form: the maximum of a number of windows'),
    (lambda x: x / 0, 'are not finite in Paddle')])
def test_what_cannot_be_converted_is_refused_by_name(function, reason, backend, tmp_path):
    with pytest.raises(UserError) as error:
        create(Network(Apply(function)), tmp_path, backend)
    text = str(error.value)
    assert text.startswith(f'--backend {backend}: expected a network that can be converted, found Network: ')
    assert reason in text and text.endswith('; use --backend paddle') and '\n' not in text


@pytest.mark.parametrize('backend', ENGINES)
def test_logits_that_differ_are_refused(backend, tmp_path, monkeypatch):
    """A wrong translation: the sigmoid's steepness is off by a hundredth."""
    monkeypatch.setitem(program_operations.OPERATIONS, 'sigmoid',
                        lambda ops, step, x: ops.put('Sigmoid', ops.put('Mul', x, np.float32([1.01]))))
    with pytest.raises(UserError, match=r'its logits differ by .* there, where .* would be rounding, for an image of'):
        create(Network(nn.Sigmoid()), tmp_path, backend)


@pytest.mark.parametrize('backend', ENGINES)
def test_a_network_is_converted_and_checked_once(backend, tmp_path, cache, monkeypatch):
    network = Network(nn.Conv2D(3, 3, 3, padding=1))
    fill.weights(network)
    first = create(network, tmp_path, backend)
    x = paddle.to_tensor(fill.image(1, [1, 3, 20, 24]))
    want = first(x)[0].numpy()
    monkeypatch.setattr(paddle_program, 'trace', None)
    monkeypatch.setattr(traced_network, '_references', None)
    assert np.array_equal(create(network, tmp_path, backend)(x)[0].numpy(), want)
    assert len([path for path in cache.iterdir() if not path.name.startswith('.')]) == 1


@pytest.mark.skipif('openvino' not in backends.installed(), reason='not installed')
def test_bf16_is_that_of_fp32_up_to_its_rounding(tmp_path):
    network = Network(nn.Conv2D(3, 3, 3, padding=1), nn.ReLU(), nn.Conv2D(3, 3, 3, padding=1))
    fill.weights(network)
    x = paddle.to_tensor(fill.image(1, [1, 3, 40, 56]))
    try:
        found = create(network, tmp_path, 'openvino', 'bf16')(x)[0].numpy()
    except UserError as error:
        pytest.skip(str(error))
    want = network(x)[0].numpy()
    # Image, weights and activations of three convolutions are rounded, to 8 bits: seven roundings of 2**-9 at most.
    off = np.linalg.norm(found - want) / np.linalg.norm(want)
    assert 0 < off < 7 * 2.0**-9


@pytest.mark.parametrize('backend', ENGINES)
def test_commands_take_a_backend_for_paddlesegs_models(backend, toy, tmp_path, capsys):
    """With windows, flips and scales; every prediction as with Paddle."""
    config = write_config(tmp_path / 'model.yml', toy, {'type': 'FastSCNN'}, 2)
    _, weights = zoo_backends.write(tmp_path, 'FastSCNN')
    options = ['--config', config, '--model_path', weights, '--aug_eval', '--flip_horizontal', '--scales', 0.75, 1.0,
               '--is_slide', '--crop_size', 96, 64, '--stride', 64, 48]
    reports = []
    for name in (backend, 'paddle'):
        assert run(val.main, *options, '--backend', name) is None, capsys.readouterr().err
        reports.append(json.loads(next(tmp_path.glob('evaluation_*.json')).read_text()))
    assert reports[0]['miou'] == pytest.approx(reports[1]['miou'], abs=2e-3) and len(reports[0]['images']) == 3
    image = next((toy / 'leftImg8bit/val').rglob('*.png'))
    assert run(predict.main, '--config', config, '--model_path', weights, '--image_path', image, '--save_dir',
               tmp_path / 'pictures', '--backend', backend) is None


def test_paddle_alone_needs_full_precision(toy, tmp_path, capsys):
    config = write_config(tmp_path / 'model.yml', toy, {'type': 'FastSCNN'}, 2)
    _, weights = zoo_backends.write(tmp_path, 'FastSCNN')
    assert run(val.main, '--config', config, '--model_path', weights, '--precision', 'bf16') == 1
    assert ('--backend auto --precision bf16: expected a MscaleOCRNet on an HRNet, found FastSCNN, which runs with '
            '--precision fp32 or --backend openvino') in capsys.readouterr().err
