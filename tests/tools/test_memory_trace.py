import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np
import paddle
import pytest

from common.errors import UserError
from models import layers
from tools import check_machine
from tools.machine import cards, memory_trace
from tools.machine.rows import GB, Row, Settings

ROOT = Path(__file__).resolve().parents[2]
SIZES = (96, 192), (128, 256)
PIXELS = 192  # of the image below


class Network(paddle.nn.Layer):
    """Every kind of operator once: in 16 bits, in 32 bits, and in those of its inputs."""

    def __init__(self):
        super().__init__()
        self.conv = paddle.nn.Conv2D(3, 4, 3, padding=1, bias_attr=False)

    def forward(self, x):
        y = paddle.nn.functional.relu(self.conv(x))
        return paddle.nn.functional.softmax(layers.cast(y, paddle.float32), axis=1)


def counted(model, image):
    kept = memory_trace.Kept(model)
    with kept.counted():
        y = model(image)
    assert not y.stop_gradient
    return kept


def test_what_is_kept_in_the_precision_of_each_operator():
    model, image = Network(), paddle.rand([1, 3, 8, 24])
    kept = counted(model, image)
    # The convolution keeps its input, relu and softmax their outputs; softmax computes in 32 bits, of a copy that is
    # not kept.
    assert kept.full == 4 * PIXELS * (3 + 4 + 4)
    assert kept.mixed == 2 * PIXELS * (3 + 4) + 4 * PIXELS * 4
    assert kept.rounded == 2 * (4 * 3 * 9)


def test_an_operator_of_both_precisions_computes_in_32_bits():
    class Sum(Network):
        def forward(self, x):
            y = self.conv(x)
            wide = paddle.nn.functional.softmax(y, axis=1)  # 32 bits, kept
            large = paddle.nn.functional.relu(layers.resize(y, [16, 48]))
            return paddle.nn.functional.relu(y + wide) + large[:, :, :8, :24]

    kept = counted(Sum(), paddle.rand([1, 3, 8, 24]))
    assert kept.full == 4 * PIXELS * (3 + 4 + 4) + 4 * 4 * PIXELS * 4
    assert kept.mixed == 2 * PIXELS * 3 + 4 * PIXELS * 4 + 4 * PIXELS * 4 + 2 * 4 * PIXELS * 4


def test_a_bias_leaves_16_bits():
    model = layers.ConvBN(3, 4, 3, bias=True)
    kept = counted(model, paddle.rand([1, 3, 8, 24]))
    assert kept.full == pytest.approx(4 * PIXELS * (3 + 4 + 4), rel=0.01)  # and batch norm's statistics
    assert kept.mixed == pytest.approx(kept.full / 2, rel=0.01)


def test_without_autocast_everything_has_32_bits():
    class Off(Network):
        def forward(self, x):
            with paddle.amp.auto_cast(enable=False):
                return super().forward(x)

    kept = counted(Off(), paddle.rand([1, 3, 8, 24]))
    assert kept.full == kept.mixed == 4 * PIXELS * (3 + 4 + 4)
    assert not kept.rounded


needs_paddle_3 = pytest.mark.skipif(not hasattr(paddle.base.core, 'host_memory_stat_reset_peak_value'),
                                    reason='a Paddle that can forget a peak of memory')


@pytest.fixture(scope='module')
def traced(tmp_path_factory):
    """What two sizes of the toy network need."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cards, 'SIZES', SIZES)
        settings = Settings(network='toy', folder=str(tmp_path_factory.mktemp('trace')))
        return cards.trace(settings, lambda line: None)


# In a process of its own: the most bytes of tensors that Paddle counts during a second step, with those that a
# convolution on a CPU needs for itself.
MEASURED = '''
import sys
from common import cli
cli.load_paddle()
import paddle
from tools.machine import networks
from tools.machine.rows import Settings
from training.gradient_step import GradientStep
network, height, width, recompute = sys.argv[1:]
settings = Settings(network=network, size=(int(height), int(width)))
builder = networks.builder_of(settings, f'model.recompute={recompute}')
builder.model.train()
batch = networks.batch_of(settings.size, 1, 0)
run = GradientStep(builder.model, builder.loss, builder.optimizer)
for _ in range(2):
    paddle.base.core.host_memory_stat_reset_peak_value('Allocated', 0)
    run.backward([batch])
    run.step()
print(paddle.base.core.host_memory_stat_peak_value('Allocated', 0))
'''


def predicted_and_counted(found, sizes, network, size, recompute):
    """Bytes of a step in fp32."""
    needs = {need.flags: need for need in cards.training_needs(
        found['memory'], found['memory recompute'], [h * w for h, w in sizes], size[0] * size[1])}
    need = needs['--precision fp32' + ' --recompute' * recompute]
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', MEASURED, network, *map(str, size), str(recompute)],
                          capture_output=True, text=True, check=True, cwd=ROOT)
    return GB * need.peak_gb(1), int(done.stdout)


@needs_paddle_3
@pytest.mark.parametrize('recompute', [False, True])
def test_the_prediction_for_a_larger_crop_is_what_is_measured_there(traced, recompute):
    predicted, counted = predicted_and_counted(traced, SIZES, 'toy', (256, 512), recompute)
    assert predicted == pytest.approx(counted, rel=0.1)


@needs_paddle_3
@pytest.mark.slow
def test_the_prediction_for_the_recipes_network(tmp_path):
    found = cards.trace(Settings(network='recipe', folder=str(tmp_path)), lambda line: None)
    for recompute in (False, True):
        predicted, counted = predicted_and_counted(found, cards.SIZES, 'recipe', (512, 1024), recompute)
        print(f'512x1024{", --recompute" * recompute}: {predicted / GB:.2f} GiB predicted, {counted / GB:.2f} counted')
        # What a convolution on a CPU unfolds is counted, and not predicted.
        assert 0.9 * counted <= predicted + 4 * layers.UNFOLDED and predicted <= 1.1 * counted


def test_needs_from_two_sizes_by_hand():
    # 100 bytes constant; per pixel: 6 kept, 4 of them with 16 bits; the losses take 3 beside, the network 8 in all.
    plain = [{'fixed': 100, 'network': 100 + 8 * n, 'losses': 100 + 9 * n, 'kept': 6 * n, 'kept_mixed': 4 * n,
              'rounded': 30} for n in (10, 20)]
    less = [{'network': 100 + 5 * n, 'losses': 100 + 4 * n} for n in (10, 20)]
    needs = cards.training_needs(plain, less, [10, 20], crop=1000)
    assert [(need.flags, need.fixed) for need in needs] == [
        ('--precision fp32', 100), ('--precision fp16 or bf16', 130), ('--precision fp32 --recompute', 100),
        ('--precision fp16 or bf16 --recompute', 130)]
    # 16 bits: the larger of 2/3 * 8 and 2/3 * 6 + 3; with recomputation of 2/3 * 5 and 2/3 * 1 + 3
    np.testing.assert_allclose([need.each for need in needs], [9000, 7000, 5000, 3000 + 2000 / 3])


def test_batches_for_cards():
    need = cards.Need('', fixed=GB, each=4 * GB)
    assert [need.batch_for(room) for room in (4.9, 5, 12, 17, 40)] == [0, 1, 2, 4, 8]
    assert cards.room_gb(24) == pytest.approx(24 * 0.95 - 1.5)


@needs_paddle_3
def test_the_table(traced, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(cards, 'SIZES', SIZES)
    monkeypatch.setattr(cards, 'trace', lambda settings, say: traced)
    args = argparse.Namespace(network='toy', size=[256, 512], seed=0, card=[0.5, 24.0])
    assert check_machine.predict(args, str(tmp_path)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert ('toy network, 256x512, predicted from the tensors of smaller steps on this CPU; no GPU has confirmed it'
            in lines)
    first = next(i for i, line in enumerate(lines) if line.startswith('GiB of one training step'))
    rows = [[float(word) for word in line[44:].split()] for line in lines[first + 1:first + 5]]
    assert lines[first].split()[-4:] == ['1', '2', '4', '8']
    assert all(row == sorted(row) and row[0] > 0 for row in rows)
    assert rows[2][-1] < rows[0][-1] and rows[1][-1] < rows[0][-1]  # recomputation, 16 bits
    assert lines[first + 6].split()[-4:] == ['0.5', 'GB', '24', 'GB']
    assert all(line.split()[-2:] == ['-', '8'] for line in lines[first + 7:first + 11])
    assert [line.split()[-2:] for line in lines[first + 13:]] == [['-', 'yes']] * 2
    assert [line.split(':')[0] for line in lines[first + 13:]] == ['each scale at once', 'in strips']


def test_another_paddle_is_refused(monkeypatch):
    monkeypatch.setattr(memory_trace.paddle.base, 'core', argparse.Namespace())
    with pytest.raises(UserError, match=r'expected Paddle 3, found \d.*; install paddlepaddle 3'):
        next(iter(memory_trace.step(Settings(network='toy'), recompute=False)))


def test_a_trace_that_fails_says_where(monkeypatch, tmp_path):
    monkeypatch.setattr(cards.checks, 'run', lambda name, settings: [Row(name, status='FAILED', reason='no memory')])
    with pytest.raises(UserError, match='--card: expected a step at 192x384 to run here, found: no memory; see '
                                        'python tools/check_machine.py'):
        cards.trace(Settings(folder=str(tmp_path)), lambda line: None)


@pytest.mark.parametrize('arguments', [['--card', '0'], ['--card', '24', '--quick'], ['--card', '24', '--only', 'step'],
                                       ['--card', '24', '--device', 'gpu']])
def test_wrong_flags(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        check_machine.parse_args(arguments)
    assert stop.value.code == 2
    assert '--card: expected positive numbers and no more than --network, --size and --seed' in capsys.readouterr().err
