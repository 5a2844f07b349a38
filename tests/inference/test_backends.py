"""The engines behind --backend: the plain network's logits, the folder of converted networks, and what is said."""
import functools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import paddle
import pytest

from inference import backends
from inference import converted as converted_networks
from models.hrnet import HRNet
from models.mscale_ocrnet import MscaleOCRNet
from tests import fill, rounding
from tests.built import Built

ENGINES = ['paddle', pytest.param('openvino', marks=pytest.mark.skipif('openvino' not in backends.installed(),
                                                                       reason='not installed')),
           pytest.param('onnxruntime', marks=pytest.mark.skipif('onnxruntime' not in backends.installed(),
                                                                reason='not installed'))]


def network(classes=5):
    backbone = HRNet(8, modules=(1, 1, 1), blocks=1, stem=(1, 16))
    return MscaleOCRNet(classes, backbone, [0], ocr_mid_channels=24, ocr_key_channels=12, attn_channels=8, dropout=0.0)


class Builder:
    """As common.builder.Builder: makes the model when it is asked for."""

    @functools.cached_property
    def model(self):
        return network()

    def release_model(self):
        vars(self).pop('model')


@pytest.fixture
def builder(tmp_path, monkeypatch):
    """With a small network, whose weights lie in tmp_path/model.pdparams."""
    monkeypatch.setenv('MSCALE_CACHE', str(tmp_path / 'cache'))
    model = network()
    fill.weights(model)
    paddle.save(model.state_dict(), str(tmp_path / 'model.pdparams'))
    return Builder()


@pytest.fixture
def weights(builder, tmp_path):
    return str(tmp_path / 'model.pdparams')


def expected(weights, x):
    """(logits of the plain network, their condition) for a float32 array."""
    model = network()
    model.set_state_dict(paddle.load(weights))
    model.eval()
    plain = rounding.of_network(lambda x: model.hierarchy(x, model.n_scales))
    return plain(x), rounding.sensitivity(plain, x, trials=2)


@pytest.mark.parametrize('backend', ENGINES)
def test_logits_are_those_of_the_plain_network_for_any_size(builder, weights, backend):
    run = backends.create(builder, weights, backend)
    run.executor.strip = 300
    for seed, size in enumerate([(64, 96), (75, 106), (32, 200)]):
        x = fill.image(seed, [1, 3, *size])
        (want, condition), found = expected(weights, x), run(paddle.to_tensor(x))[0].numpy()
        assert found.shape == want.shape and found.dtype == np.float32
        rounding.assert_close(found, want, condition)
        assert (found.argmax(1) == want.argmax(1)).mean() > 0.999 and len(np.unique(want.argmax(1))) > 1


def converted(tmp_path):
    return sorted(path for path in (tmp_path / 'cache').iterdir())


@pytest.mark.skipif('openvino' not in backends.installed(), reason='not installed')
class TestCache:
    def test_converts_once_for_a_weights_file(self, builder, weights, tmp_path, monkeypatch):
        backends.create(builder, weights, 'openvino')
        folder, = converted(tmp_path)
        monkeypatch.setattr(converted_networks, 'load_weights', None)  # must not be needed again
        backends.create(builder, weights, 'openvino')
        assert converted(tmp_path) == [folder]

    def test_other_weights_are_another_network(self, builder, weights, tmp_path):
        x = paddle.to_tensor(fill.image(0, [1, 3, 64, 64]))
        before = backends.create(builder, weights, 'openvino')(x)[0].numpy()
        state = paddle.load(weights)
        state['ocrnet.head.cls_head.bias'] = state['ocrnet.head.cls_head.bias'] + 1
        paddle.save(state, weights)
        after = backends.create(builder, weights, 'openvino')(x)[0].numpy()
        # The fusion weighs the constant by a and 1 - a, which need not add up to exactly 1.
        rounding.assert_close(after, before + 1)
        assert len(converted(tmp_path)) == 2

    def test_a_damaged_one_is_converted_again(self, builder, weights, tmp_path):
        backends.create(builder, weights, 'openvino')
        folder, = converted(tmp_path)
        size = (folder / 'backbone.onnx').stat().st_size
        (folder / 'backbone.onnx').write_bytes(b'cut short')
        backends.create(builder, weights, 'openvino')
        assert (folder / 'backbone.onnx').stat().st_size == size and converted(tmp_path) == [folder]

    def test_no_cache_leaves_nothing(self, builder, weights, tmp_path, monkeypatch):
        monkeypatch.setattr(tempfile, 'gettempdir', lambda: str(tmp_path / 'temporary'))
        x = fill.image(0, [1, 3, 64, 64])
        found = backends.create(builder, weights, 'openvino', cache=False)(paddle.to_tensor(x))[0].numpy()
        rounding.assert_close(found, *expected(weights, x))
        assert not (tmp_path / 'cache').exists() and not list((tmp_path / 'temporary').iterdir())

    def test_two_processes_at_once(self, weights, tmp_path):
        code = ('import sys; from tests.built import Built; from inference import backends; '
                'from tests.inference.test_backends import network; '
                'backends.create(Built(network()), sys.argv[1], "openvino"); print("fine")')
        both = [subprocess.Popen([sys.executable, '-W', 'ignore', '-c', code, weights], stdout=subprocess.PIPE,
                                 cwd=Path(__file__).parents[2]) for _ in range(2)]
        assert [b'fine' in process.communicate()[0] for process in both] == [True, True]
        assert len(converted(tmp_path)) == 1
        sizes = json.loads((converted(tmp_path)[0] / 'sizes.json').read_text())
        assert set(sizes) == {'weights.bin', 'objects.npz', *(f'{part}.onnx' for part in (
            'backbone', 'pixels', 'logits', 'logits_and_attention', 'scale', 'scale_and_attention', 'hierarchy'))}
        assert len(list(converted(tmp_path)[0].glob('*.times'))) == 1

    def test_a_folder_that_cannot_be_made(self, builder, weights, tmp_path, monkeypatch):
        (tmp_path / 'file').write_text('')
        monkeypatch.setenv('MSCALE_CACHE', str(tmp_path / 'file' / 'cache'))
        with pytest.raises(OSError, match=r'file/cache: expected a folder .* set MSCALE_CACHE .* --no_cache'):
            backends.create(builder, weights, 'openvino')


def test_auto_takes_the_fastest_that_is_there(builder, weights, monkeypatch):
    monkeypatch.setattr(backends, 'installed', lambda: ['paddle'])
    assert type(backends.create(builder, weights).executor).__name__ == 'PaddleExecutor'


def test_a_backend_that_is_not_installed(builder, weights, monkeypatch):
    monkeypatch.setattr(backends, 'installed', lambda: ['onnxruntime', 'paddle'])
    with pytest.raises(ValueError, match=r'--backend openvino: expected one that is installed \(onnxruntime, paddle\)'
                                         r'.* pip install openvino onnx'):
        backends.create(builder, weights, 'openvino')


@pytest.mark.parametrize('backend,text', [('paddle', 'leave it out, or try --backend openvino'),
                                          ('onnxruntime', 'expected fp32 or int8 with --backend onnxruntime')])
def test_a_precision_that_is_not_there(builder, weights, backend, text):
    if backend not in backends.installed():
        pytest.skip('not installed')
    with pytest.raises(ValueError, match=text):
        backends.create(builder, weights, backend, 'fp16')
    with pytest.raises(ValueError, match=text):
        backends.create(builder, weights, backend, 'tf32')


@pytest.mark.skipif('openvino' not in backends.installed(), reason='not installed')
def test_a_precision_that_is_hidden_from_the_kernels(builder, weights, monkeypatch):
    monkeypatch.setenv('ONEDNN_MAX_CPU_ISA', 'AVX2')
    with pytest.raises(ValueError, match=r'bf16: expected what this processor has \(fp32, int8\), found bf16'):
        backends.create(builder, weights, 'openvino', 'bf16')


def test_another_network_runs_in_paddle_as_it_is(weights):
    class Other(paddle.nn.Layer):
        def forward(self, x):
            return [x]

    builder = Built(Other())
    with pytest.raises(ValueError, match='found Other, which runs with --precision fp32 or --backend openvino'):
        backends.create(builder, weights, precision='bf16')
    for backend in backends.installed():
        with pytest.raises(ValueError, match='--precision int8: expected a MscaleOCRNet on an HRNet, found Other; '
                                             'leave it out'):
            backends.create(builder, weights, backend, 'int8')


def test_engines_get_the_threads_of_paddle():
    """Paddle's flag does not follow set_num_threads by itself: an engine would run on one core."""
    code = 'from inference.backends import engine; from common import cli; print(cli.start_paddle(), engine.threads())'
    for threads in '12':
        done = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True, check=True,
                              cwd=Path(__file__).parents[2], env={**os.environ, 'OMP_NUM_THREADS': threads})
        assert done.stdout.splitlines()[-1] == f'{threads} {threads}'


SIGNALS = '''
import gc, os, signal, sys
from common import cli
from inference import backends
from tests.built import Built
from tests.inference.test_backends import network
cli.start_paddle()
signal.signal(signal.SIGUSR1, lambda *_: print('alive'))
networks = [backends.create(Built(network()), sys.argv[1], 'openvino') for _ in range(2)]
while networks:  # the first one first
    networks.pop(0)
    gc.collect()
os.kill(os.getpid(), signal.SIGUSR1)
'''


@pytest.mark.skipif('openvino' not in backends.installed(), reason='not installed')
def test_a_signal_after_networks_are_gone(weights):
    """OpenVINO gives the thread a stack for signals, and frees one that is in use if there is more than one Core."""
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', SIGNALS, weights], capture_output=True, text=True,
                          cwd=Path(__file__).parents[2])
    assert (done.returncode, done.stdout.split()[-1:]) == (0, ['alive']), done.stderr
