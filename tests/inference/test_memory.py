"""What --memory_limit picks, and what is said of an image that will not fit."""
import json
import logging
import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import paddle
import pytest

from common import flags
from inference import backends, memory
from inference.predictor import Predictor
from models import hrnet
from models.hrnet import HRNet
from models.mscale_ocrnet import MscaleOCRNet
from tests import fill, rounding

GB = 1 << 30
WEIGHTS = 4 * sum(math.prod(entry['shape']) for entry in json.loads(
    (Path(__file__).parents[1] / 'reference/state_dict_HRNet_W48_NV.json').read_text()))
W48 = memory.Footprint(stage1=256, branch=48, features=512, classes=19, weights=WEIGHTS)


@pytest.fixture
def w48():
    """As a network of inference.backends, W48 at 0.5/1/2 with OpenVINO, loaded into 0.75 GB."""
    network = SimpleNamespace(footprint=W48, n_scales=[0.5, 1.0, 2.0], base=0.75 * GB, strips=memory.halves(1 << 15),
                              device='CPU')
    network.peak = lambda size, strip=1 << 15: W48.peak(size, network.n_scales, strip, 'openvino')
    return network


def network(**kwargs):
    backbone = HRNet(8, modules=(1, 1, 1), blocks=1, stem=(1, 16))
    model = MscaleOCRNet(5, backbone, [0], ocr_mid_channels=24, ocr_key_channels=12, attn_channels=8, **kwargs)
    fill.weights(model)
    model.eval()
    return model


def test_footprint_of_w48():
    assert memory.footprint(MscaleOCRNet(19, hrnet.HRNet_W48_NV(), [0])) == W48


def test_the_estimate_holds_the_arrays_that_must_exist():
    """Pixel features of 512 channels at a quarter of 2048x4096 alone take 1 GB; a stage-1 array 0.5 GB."""
    peak = W48.peak((1024, 2048), [0.5, 1, 2], 1 << 13, 'openvino')
    assert 512 * 512 * 1024 * 4 < peak < 4 * GB
    assert W48.peak((1024, 2048), [0.5, 1, 2.5], 1 << 13, 'openvino') > peak
    assert W48.peak((1024, 2048), [0.5, 1], 1 << 13, 'openvino') < peak


def test_the_least_that_has_to_be_done(w48):
    whole = (1024, 2048)
    found = [memory.plan_within(w48, whole, limit * GB) for limit in (8, 3.6, 2.8, 2.1)]
    assert [plan.window == whole for plan in found] == [True, True, False, False]
    assert [plan.strip for plan in found[:2]] == [1 << 15, 1 << 14]
    assert found[2].window == (1024, 1024) and np.prod(found[3].window) < np.prod(found[2].window)
    assert all(plan.need <= limit * GB for plan, limit in zip(found, (8, 3.6, 2.8, 2.1)))


def test_a_limit_below_everything(w48):
    with pytest.raises(ValueError, match=r'--memory_limit 1\.05: expected at least 1\.\d\d GB, of which the loaded '
                                         r'network takes 0\.75, found 1\.05; raise it, or use fewer scales'):
        memory.plan_within(w48, (1024, 2048), 1.05 * GB)


def test_a_line_before_an_image_that_will_not_fit(w48, caplog, monkeypatch):
    monkeypatch.setattr(memory, 'available', lambda device: 2 * GB)
    with caplog.at_level(logging.WARNING):
        assert memory.fit(w48, (1024, 2048), None, None, None) == (None, None, 1 << 15)
    line, = caplog.messages
    assert 'an image of 1024x2048 at scales [0.5, 1.0, 2.0] may need 3.' in line
    assert '2.0 GB are there: use --memory_limit 1.8, --is_slide' in line
    caplog.clear()
    memory.fit(w48, (128, 256), None, None, None)
    assert not caplog.messages


def test_a_limited_prediction_is_that_of_its_windows(monkeypatch, caplog):
    monkeypatch.setattr(memory, 'used', lambda device: 0)
    model = backends.fuse_for_inference(network(n_scales=[0.5, 1.0]))
    x = paddle.to_tensor(fill.image(1, [1, 3, 256, 576]))
    limit = model.peak((256, 320), memory.SMALLEST_STRIP) + 8 * 5 * 256 * 576
    with caplog.at_level(logging.INFO):
        found = Predictor(model, memory_limit=limit).logits(x)
    assert 'images of 256x576 go through windows of 256x288' in caplog.text
    expected = Predictor(model, crop_size=(256, 288), stride=(192, 216)).logits(x)
    np.testing.assert_array_equal(found.numpy(), expected.numpy())
    whole = Predictor(model, memory_limit=8 * GB).logits(x)
    plain = rounding.of_network(Predictor(model).logits)
    condition = rounding.sensitivity(plain, x.numpy(), trials=2)
    rounding.assert_close(whole.numpy(), plain(x.numpy()), condition)
    assert rounding.error(whole.numpy(), expected.numpy()) > 10 * rounding.allowed(condition), 'windows see less'


def test_a_small_image_in_between_does_not_widen_the_strips_of_a_large_one(monkeypatch):
    monkeypatch.setattr(memory, 'used', lambda device: 0)
    model = backends.fuse_for_inference(network(n_scales=[0.5, 1.0]))
    # Pixels of a strip count only as far as the image has them: 32768 for the large one, 1024 for the small one.
    model.footprint = model.footprint._replace(features=512)
    limit = model.peak((512, 1024), 1 << 14)
    predictor, seen = Predictor(model, memory_limit=limit), []
    model.__class__ = type('Spy', (type(model),), {'__call__': lambda self, x: (
        seen.append(self.executor.strip), [paddle.zeros([1, 5, *x.shape[2:]])])[1]})
    for size in ((512, 1024), (128, 128), (512, 1024)):
        predictor.logits(paddle.zeros([1, 3, *size]))
    assert seen == [1 << 14, 1 << 15, 1 << 14]


def test_the_memory_is_that_of_the_executors_device(monkeypatch):
    """OpenVINO on a machine whose Paddle has a GPU uses the machine's memory, and Paddle there the GPU's."""
    monkeypatch.setattr(paddle, 'get_device', lambda: 'gpu:0')
    monkeypatch.setattr(paddle, 'is_compiled_with_cuda', lambda: True)
    monkeypatch.setattr(paddle.device.cuda, 'device_count', lambda: 1)
    monkeypatch.setattr(paddle.device.cuda, 'memory_allocated', lambda: 123)
    monkeypatch.setattr(paddle.device.cuda, 'get_device_properties', lambda _: SimpleNamespace(total_memory=7 * GB))
    assert (memory.used('gpu:0'), memory.available('gpu:0')) == (123, 7 * GB)
    assert memory.available('CUDAExecutionProvider') == 7 * GB
    trimmed = []
    monkeypatch.setattr(memory.ctypes, 'CDLL', lambda _: SimpleNamespace(malloc_trim=trimmed.append))
    memory.trim('gpu:0')
    assert not trimmed
    for device in ('CPU', 'cpu', 'CPUExecutionProvider'):
        memory.trim(device)
        assert memory.used(device) > 10 << 20 and memory.available(device) > memory.used(device)
    assert trimmed == [0, 0, 0]
    monkeypatch.setattr(paddle, 'is_compiled_with_cuda', lambda: False)
    monkeypatch.setattr(memory.gpu, 'total_memory', lambda: 24 * GB)
    assert memory.available('CUDAExecutionProvider') == 24 * GB


def test_what_can_be_limited():
    with pytest.raises(ValueError, match='--memory_limit: expected a MscaleOCRNet on an HRNet, found function'):
        Predictor(lambda x: [x], memory_limit=GB)
    with pytest.raises(ValueError, match='--memory_limit: expected gigabytes above 0, found -1'):
        flags.predictor_options({'memory_limit': -1})
    assert flags.predictor_options({'memory_limit': 1.5}) == {'memory_limit': 1.5 * GB}


def output_of(code, *args):
    """Words that a process of its own prints."""
    return subprocess.run([sys.executable, '-W', 'ignore', '-c', code, *map(str, args)], capture_output=True, text=True,
                          check=True, cwd=Path(__file__).parents[2]).stdout.split()


MIXED = '''
import sys
import numpy as np
import paddle
from common import cli
from inference import backends
from tests.built import Built
from tests.inference.test_memory import network
cli.start_paddle()
count, backend, weights = int(sys.argv[1]), sys.argv[2], sys.argv[3]
run = backends.create(Built(network(n_scales=[0.5, 1.0])), weights, backend)
sizes = [(160 + 7 * i, 720 - 6 * i) for i in range(49)] + [(800, 800)]
for i in reversed(range(count)):  # the largest one first
    run(paddle.to_tensor(np.ones([1, 3, *sizes[(i + 50 - count) % 50]], 'float32')))
for line in open('/proc/self/status'):
    if line.startswith('VmHWM'):
        print(line.split()[1])
'''


@pytest.mark.slow
@pytest.mark.parametrize('backend', backends.installed())
def test_images_of_many_sizes_need_no_more_than_the_largest(tmp_path, backend):
    paddle.save(network().state_dict(), str(tmp_path / 'model.pdparams'))
    one, many = (int(output_of(MIXED, count, backend, tmp_path / 'model.pdparams')[-1]) for count in (1, 500))
    print(f'{backend}: the largest alone {one / 2**20:.2f} GB, 500 of 50 sizes {many / 2**20:.2f} GB')
    assert many < 1.15 * one


TWO_IMAGES = '''
import sys
import numpy as np
import paddle
from common import cli
from inference import backends
from tests.built import Built
from models import hrnet
from models.mscale_ocrnet import MscaleOCRNet
cli.start_paddle()
model = MscaleOCRNet(19, hrnet.HRNet_W48_NV(), [0], n_scales=[0.5, 1.0, 2.0])
paddle.save(model.state_dict(), sys.argv[2])
run = backends.create(Built(model), sys.argv[2], sys.argv[1], cache=False)
with open('/proc/self/clear_refs', 'w') as file:
    file.write('5')  # VmHWM begins again
for _ in range(2):
    run(paddle.to_tensor(np.ones([1, 3, 384, 768], 'float32')))
peak, = (int(line.split()[1]) for line in open('/proc/self/status') if line.startswith('VmHWM'))
print(peak << 10, run.base + run.peak((384, 768)))
'''


@pytest.mark.slow
@pytest.mark.parametrize('backend', backends.installed())
def test_the_estimate_is_not_exceeded(tmp_path, backend):
    peak, estimate = map(float, output_of(TWO_IMAGES, backend, tmp_path / 'model.pdparams')[-2:])
    print(f'{backend}: {peak / GB:.2f} GB, estimated {estimate / GB:.2f}')
    assert peak < estimate < 1.5 * peak
