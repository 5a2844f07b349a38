"""Activation checkpointing changes memory and time, nothing else; what is not needed is not kept; what stays float32.

As a script, which the last test launches in two processes: steps of DataParallel, of which the gradients are saved.
"""
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from paddle import nn

sys.path.insert(0, str(Path(__file__).parents[2]))

from models import layers, recompute
from models.hrnet import BasicBlock, HRNet
from models.layers import ConvBN, convolve, resize, resize_logits
from models.mscale_ocrnet import MscaleOCRNet
from models.ocr import gather_regions
from tests import rounding
from tests.rounding import assert_close


def build(recompute, dropout=0.5):
    paddle.seed(4)
    backbone = HRNet(2, modules=(1, 2, 1), blocks=1, stem=(2, 4))
    model = MscaleOCRNet(3, backbone, [0], ocr_mid_channels=8, ocr_key_channels=4, attn_channels=4, dropout=dropout,
                         recompute=recompute)
    model.train()
    return model


def image(requires_gradient=False, size=(64, 96)):
    x = np.random.default_rng(1).standard_normal((2, 3, *size)).astype('float32')
    return paddle.to_tensor(x, stop_gradient=not requires_gradient)


def above(outputs):
    """Gradients of a loss for the outputs, which are of one shape: float32 (len(outputs), *shape)."""
    return np.random.default_rng(2).random((len(outputs), *outputs[0].shape), 'float32')


def backward(outputs, gradients=None):
    gradients = above(outputs) if gradients is None else gradients
    sum((y * paddle.to_tensor(g)).sum() for y, g in zip(outputs, gradients)).backward()


def gradients(model):
    """{name: gradient}. That of a bias ahead of batch norm is 0, and the rounding of it: it is compared in one array
    with that of batch norm's bias, on whose scale it is small."""
    found = {name: p.grad.numpy() for name, p in model.named_parameters() if p.grad is not None}
    return {name: np.stack([value, found[name.replace('_conv', '_batch_norm')]]) if name.endswith('_conv.bias')
            else value for name, value in found.items()}


def gradients_above(values):
    """{name: gradient} of the plain network, and that of the image, for the gradients of the outputs."""
    model, x = build(False), image(requires_gradient=True)
    paddle.seed(7)
    backward(model(x), values)
    return {**gradients(model), 'image': x.grad.numpy()}


@pytest.fixture(scope='module')
def condition():
    """Of the backward pass alone: the activations are equal to the bit, only sums of gradients change their order."""
    return rounding.sensitivity(gradients_above, np.random.default_rng(2).random((4, 2, 3, 64, 96), 'float32'))


@pytest.fixture(scope='module')
def pair():
    """A step without and with recompute: model, outputs, gradients, gradient of the image, a number drawn after it."""
    steps = []
    for on in (False, True):
        model, x = build(on), image(requires_gradient=True)
        paddle.seed(7)  # as the trainer does before every step
        outputs = model(x)
        backward(outputs)
        steps.append(SimpleNamespace(model=model, outputs=[y.numpy() for y in outputs], gradients=gradients(model),
                                     image=x.grad.numpy(), drawn=float(paddle.rand([1]))))
    return steps


def test_outputs_and_gradients_are_the_same(pair, condition):
    plain, again = pair
    for a, b in zip(plain.outputs, again.outputs):
        np.testing.assert_array_equal(b, a)
    assert_close({**again.gradients, 'image': again.image}, {**plain.gradients, 'image': plain.image}, condition)


def test_statistics_move_once_and_names_stay(pair):
    plain, again = ({name: value.numpy() for name, value in step.model.state_dict().items()} for step in pair)
    assert list(plain) == list(again)
    fresh = build(False).state_dict()
    for name, value in plain.items():
        np.testing.assert_array_equal(again[name], value, err_msg=name)
        if name.endswith(('._mean', '._variance')):
            assert (value != fresh[name].numpy()).any(), name
    for layer in pair[1].model.sublayers():
        assert getattr(layer, '_momentum', 0.9) == 0.9


def test_random_numbers_go_on_as_if_nothing_was_repeated(pair):
    assert pair[0].drawn == pair[1].drawn


def test_an_image_without_gradient_is_fine(pair, condition):
    model = build(True)
    paddle.seed(7)
    x = image()
    backward(model(x))
    assert x.grad is None
    assert_close(gradients(model), pair[0].gradients, condition)


def test_activations_are_dropped_and_computed_again(monkeypatch):
    calls, held = [], []
    forward = BasicBlock.forward
    monkeypatch.setattr(BasicBlock, 'forward', lambda self, x: calls.append(1) or forward(self, x))
    stat = paddle.base.core.host_memory_stat_current_value
    for on in (False, True):
        model, before = build(on), len(calls)
        start = stat('Allocated', 0)
        outputs = model(image(size=(128, 128)))
        held.append(stat('Allocated', 0) - start)
        forward_calls = len(calls) - before
        backward(outputs)
        assert len(calls) - before == forward_calls * (2 if on else 1)
        del outputs
    assert held[1] < 0.6 * held[0]  # half of the rest are the outputs, which a wider network makes small


@pytest.mark.parametrize('training', [True, False])
def test_without_gradients_nothing_is_different(training, condition):
    found, name = [], 'ocrnet.backbone.conv_layer1_1._conv.weight'
    for on in (False, True):
        model = build(on, dropout=0.0)
        model.training = training
        for layer in model.sublayers():
            layer.training = training
        with paddle.no_grad():
            found.append([y.numpy() for y in model(image())])
        if not training:  # evaluation with gradients enabled, and with gradients asked for
            outputs = model(image())
            np.testing.assert_array_equal(outputs[0].numpy(), found[-1][0])
            backward(outputs)
            found[-1].append(gradients(model)[name])
    for a, b in zip(*found):  # the last one of evaluation is the gradient
        assert_close(b, a, 0 if a.shape[1:] == (3, 64, 96) else condition[name])


def test_lists_in_and_out_in_their_places():
    layer = nn.Linear(2, 2)

    def function(pair, x):
        return [layer(pair[1]) + x, pair[0] * 2]

    a, b, c = (paddle.full([1, 2], value, 'float32') for value in (1, 2, 3))
    a.stop_gradient = False
    outputs = recompute.checkpointed(function, [layer], [a, b], c)
    assert isinstance(outputs, list)
    np.testing.assert_array_equal(outputs[0].numpy(), (layer(b) + c).numpy())
    sum(y.sum() for y in outputs).backward()
    assert a.grad.tolist() == [[2, 2]] and b.grad is None and layer.weight.grad.tolist() == [[2, 2], [2, 2]]
    alone = recompute.checkpointed(lambda x: x * 3, [], a)
    assert isinstance(alone, paddle.Tensor) and alone.tolist() == [[3, 3]]


def test_mixed_precision_of_the_forward_pass_is_that_of_the_second(monkeypatch):
    """Paddle has no mixed precision on the CPU, so only what is asked for can be seen here."""
    tracer = SimpleNamespace(_amp_level=SimpleNamespace(name='O1'), _amp_dtype='bfloat16')
    asked, auto_cast = [], paddle.amp.auto_cast
    monkeypatch.setattr(recompute, '_dygraph_tracer', lambda: tracer)
    monkeypatch.setattr(paddle.amp, 'auto_cast', lambda **kwargs: asked.append(kwargs) or auto_cast(enable=False))
    layer = nn.Linear(2, 2)
    y = recompute.checkpointed(layer, [layer], paddle.ones([1, 2]))
    assert not asked
    y.sum().backward()
    assert asked == [{'enable': True, 'level': 'O1', 'dtype': 'bfloat16'}]


def test_the_unused_attention_leaves_its_statistics_and_the_used_one_its_gradients():
    found = []
    for shortcut in (True, False):
        model = build(False, dropout=0.0)
        if not shortcut:
            model.scale_attn.update_statistics = model.scale_attn.forward  # all of it, with a graph
        backward(model(image()))
        found.append((gradients(model), {k: v.numpy() for k, v in model.scale_attn.state_dict().items()}))
    assert_close(found[0][0], found[1][0], floor=rounding.EPS)  # the same numbers, to some of which zeros are added
    assert any(name.startswith('scale_attn') for name in found[0][0])
    for name, value in found[1][1].items():
        np.testing.assert_array_equal(found[0][1][name], value)


def test_convolution_in_strips_is_the_convolution(monkeypatch):
    found = []
    for floats in (1 << 26, 9 * 5 * 7 * 3):  # strips of 3 rows, the last of 2
        monkeypatch.setattr(layers, 'UNFOLDED', floats)
        paddle.seed(0)
        conv = ConvBN(5, 4, 3, bias=True)._conv
        x = paddle.rand([2, 5, 11, 7])
        x.stop_gradient = False
        y = convolve(x, conv.weight, conv.bias, 1, (1, 1))
        if not found:
            np.testing.assert_array_equal(y.numpy(), F.conv2d(x, conv.weight, conv.bias, padding=1).numpy())
        backward([y])
        found.append({'y': y.numpy(), 'x': x.grad.numpy(), 'w': conv.weight.grad.numpy(), 'b': conv.bias.grad.numpy()})
    for key, terms in {'y': 5 * 9, 'x': 4 * 9, 'w': 2 * 11 * 7, 'b': 2 * 11 * 7}.items():
        assert_close(found[1][key], found[0][key], floor=rounding.of_sum(terms), name=key)


@pytest.mark.parametrize('dtype', ['float16', 'bfloat16'])
def test_what_stays_float32(dtype):
    """Half-precision layers have no CPU kernels in Paddle; what is between them has, and what comes out is float32."""
    x = paddle.rand([1, 3, 4, 6]).astype(dtype)
    assert resize(x, [8, 12]).dtype == x.dtype
    exact = F.interpolate(x.astype('float32'), [8, 12], mode='bilinear')
    np.testing.assert_array_equal(resize_logits(x, [8, 12]).numpy(), exact.numpy())
    assert resize_logits(x, [4, 6]).dtype == paddle.float32
    # 200 x 300 pixels: a weight of 1 / 60000 is among float16's subnormal numbers
    regions = gather_regions(paddle.ones([1, 2, 200, 300]).astype(dtype), paddle.zeros([1, 3, 200, 300]).astype(dtype))
    assert regions.dtype == paddle.float32
    # Equal terms round alike, so their errors add up faster than independent ones: 4 times those. Weights in float16
    # would be off by 1.3e-3, in bfloat16 by up to 2e-3.
    assert_close(regions.numpy(), np.ones(regions.shape), floor=4 * rounding.of_sum(200 * 300))


def test_two_processes_agree_on_the_gradient(tmp_path, condition):
    """A parameter serves both scales within segments: DataParallel must see its gradient once, and average it."""
    command = [sys.executable, '-W', 'ignore', '-m', 'paddle.distributed.launch', '--nproc_per_node', '2', '--log_dir',
               str(tmp_path / 'logs'), __file__, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    logs = ''.join(p.read_text() for p in sorted((tmp_path / 'logs').glob('workerlog.*')))
    assert done.returncode == 0, done.stderr[-1000:] + logs[-2000:]
    ranks = [dict(np.load(tmp_path / f'{on}_{rank}.npz')) for on in (False, True) for rank in range(2)]
    for found in ranks[1:]:
        assert_close(found, ranks[0], max(condition.values()))  # measured on both images in one process


def parallel_step(folder):
    paddle.distributed.init_parallel_env()
    rank = paddle.distributed.get_rank()
    for on in (False, True):
        model = build(on, dropout=0.0)
        parallel = paddle.DataParallel(model)
        for _ in range(2):  # the second step finds a reducer that has been through one
            model.clear_gradients()
            backward(parallel(image()[rank:rank + 1]))
        np.savez(f'{folder}/{on}_{rank}.npz', **gradients(model))


if __name__ == '__main__':
    parallel_step(sys.argv[1])
