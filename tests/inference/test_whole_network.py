"""The form for GPUs, run on a CPU: the model's logits, and strips where memory is short."""
import math
from types import SimpleNamespace

import paddle
import pytest

from inference import backends, forms, memory
from inference.backends import paddle_backend
from inference.predictor import Predictor
from inference.whole_network import WholeNetwork
from tests import fill, rounding
from tests.inference.test_memory import GB, W48, network


@pytest.fixture
def model():
    return network(n_scales=[0.5, 1.0, 2.0])


@pytest.fixture
def plain(model, monkeypatch):
    monkeypatch.setattr(memory, 'on_gpu', lambda device: True)
    monkeypatch.setattr(memory, 'used', lambda device: 0)
    monkeypatch.setattr(memory, 'available', lambda device: math.inf)
    found = backends.fuse_for_inference(model)
    assert isinstance(found, WholeNetwork)
    return found


def test_logits_are_the_models(model, plain):
    x = paddle.to_tensor(fill.image(1, [1, 3, 97, 130]))
    reference = rounding.of_network(lambda x: model(x)[0])
    condition = rounding.sensitivity(reference, x.numpy(), trials=2)
    rounding.assert_close(Predictor(plain).logits(x).numpy(), reference(x.numpy()), condition)


def test_strips_where_memory_is_short(plain, monkeypatch):
    """With --memory_limit, and by itself where less is free."""
    size, x = (256, 320), paddle.to_tensor(fill.image(1, [1, 3, 256, 320]))
    plain.footprint = plain.footprint._replace(features=512)  # so that the head decides
    whole, limit = plain.peak(size), plain.peak(size, 1 << 14)
    assert limit < plain.peak(size, paddle_backend.CPU_STRIP) <= whole
    expected = Predictor(plain).logits(x)
    assert plain.executor.strip == memory.WHOLE
    for kwargs, have in (({'memory_limit': limit}, math.inf), ({}, limit)):
        monkeypatch.setattr(memory, 'available', lambda device, have=have: have)
        found = Predictor(plain, **kwargs).logits(x)
        assert plain.executor.strip == 1 << 14
        assert rounding.error(found.numpy(), expected.numpy()) < 1e-4


def test_a_cpu_keeps_its_form(model):
    assert backends.fuse_for_inference(model).strips[0] == paddle_backend.CPU_STRIP


def test_the_estimate_of_a_scale_at_once():
    """HRNet-W48 at 1024x2048 in OpenVINO: measured peaks beyond the loaded network, in GB."""
    for scales, precision, measured in (([1.0], 'fp32', 2.66), ([2.0], 'bf16', 5.75), ([0.5, 1.0, 2.0], 'bf16', 7.2)):
        executor = SimpleNamespace(name='openvino', device='CPU', strip=1 << 14)
        found = WholeNetwork(executor, scales, W48, extra=forms.extra_bytes(precision, W48))
        assert measured < found.peak((1024, 2048)) / GB < 1.4 * measured
        assert found.peak((1024, 2048), 1 << 14) < 3.5 * GB
