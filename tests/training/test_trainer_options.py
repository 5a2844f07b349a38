"""Accumulation, averaged weights, frozen batch norm, early stop, steps that are not finite: against plain NumPy."""
import logging

import numpy as np
import paddle
import pytest

from common.errors import UserError
from training import ema
from training.gradient_step import freeze_batch_norm
from training.trainer import Trainer


class Images(paddle.io.Dataset):
    """Eight images and labels of noise; `bad` is a set of (epoch, index) that are not finite."""

    def __init__(self, bad=()):
        self.bad = bad

    def __len__(self):
        return 8

    def files(self, epoch, index):
        return f'/data/image_{index}.png', f'/data/label_{index}.png'

    def __getitem__(self, index):
        rng = np.random.default_rng([1, *index])
        image = rng.standard_normal([3, 6, 6]).astype('float32')
        return {'img': image * np.float32(np.nan) if index in self.bad else image, 'label': rng.integers(0, 2, [6, 6])}


class Net(paddle.nn.Layer):
    def __init__(self):
        super().__init__()
        self.conv = paddle.nn.Conv2D(3, 4, 3, padding=1)
        self.norm = paddle.nn.BatchNorm2D(4)
        self.classify = paddle.nn.Conv2D(4, 2, 1)

    def forward(self, x):
        return [self.classify(self.norm(self.conv(x)))]


def build(tmp_path, dataset=None, lr=0.1, **kwargs):
    paddle.seed(2)
    model = Net()
    schedule = paddle.optimizer.lr.PolynomialDecay(lr, 20)
    optimizer = paddle.optimizer.Momentum(schedule, parameters=model.parameters())
    losses = {'types': [lambda logits, labels: paddle.nn.functional.cross_entropy(logits, labels, axis=1)],
              'coef': [1.0]}
    return Trainer(model, dataset or Images(), losses, optimizer, save_dir=tmp_path, **{'iters': 4, **kwargs})


def weights(model):
    return {name: value.numpy().copy() for name, value in model.state_dict().items()}


def test_accumulation_is_the_update_of_the_large_batch(tmp_path):
    frozen = {'options': {'freeze_batch_norm': True}}  # batch statistics of a quarter are not those of the whole
    large = build(tmp_path / 'large', batch_size=4, **frozen)
    small = build(tmp_path / 'small', batch_size=1, accum_steps=4, **frozen)
    large.run()
    small.run()
    assert large.images_per_step == small.images_per_step == 4
    start = weights(build(tmp_path / 'start', batch_size=1).model)
    for name, value in weights(large.model).items():
        # Four updates of 0.1 times a sum over 4 * 36 pixels, of_sum(144) = 1.4e-6 each; all numbers are below 1
        np.testing.assert_allclose(weights(small.model)[name], value, atol=1e-6, err_msg=name)
    moved = max(np.abs(value - start[name]).max() for name, value in weights(large.model).items())
    assert moved > 1e-2


def test_frozen_batch_norm_keeps_statistics_scale_and_bias(tmp_path):
    trainer = build(tmp_path, batch_size=2, options={'freeze_batch_norm': True})
    before = weights(trainer.model)
    trainer.run()
    after = weights(trainer.model)
    for name in before:
        assert np.array_equal(before[name], after[name]) == name.startswith('norm.'), name


def test_frozen_batch_norm_of_several_gpus():
    """SyncBatchNorm ignores the setting and has no CPU kernel: frozen, it equals a frozen BatchNorm2D."""
    layers = [paddle.nn.SyncBatchNorm(4), paddle.nn.BatchNorm2D(4)]
    rng = np.random.default_rng(0)
    state = {name: rng.random(4).astype('float32') + 0.5 for name in ('weight', 'bias', '_mean', '_variance')}
    image = rng.standard_normal([2, 4, 3, 3]).astype('float32')
    found = []
    for layer in layers:
        layer.set_state_dict(state)
        freeze_batch_norm(paddle.nn.Sequential(layer))
        for train in (True, False):
            layer.train() if train else layer.eval()
            x = paddle.to_tensor(image, stop_gradient=False)
            y = layer(x)
            (y * y).sum().backward()
            found.append((y.numpy(), x.grad.numpy()))
        for name, value in state.items():
            np.testing.assert_array_equal(layer.state_dict()[name].numpy(), value)
    for sync, plain in zip(found[:2], found[2:]):
        np.testing.assert_array_equal(sync, plain)
    np.testing.assert_array_equal(found[0], found[1])


def test_averages_have_the_bits_of_one_parameter_at_a_time(monkeypatch):
    monkeypatch.setattr(ema, 'GROUP', 20)
    paddle.seed(0)
    model = Net()
    average = ema.EMA(model, 0.9)
    expected = {name: p.clone() for name, p in model.named_parameters() if not p.stop_gradient}
    for iteration in range(1, 12):
        decay = min(0.9, (1 + iteration) / (10 + iteration))
        for p in model.parameters():
            p.set_value(paddle.randn(p.shape))
        average.update(iteration)
        for name, p in model.named_parameters():
            if name in expected:
                expected[name] = decay * expected[name] + (1 - decay) * p
    for state in (average.state_dict(), copy_of(average, model).state_dict()):
        assert list(state) == list(model.state_dict())
        for name, value in state.items():
            np.testing.assert_array_equal(value.numpy(), expected.get(name, model.state_dict()[name]).numpy(), name)


def copy_of(average, model):
    copy = ema.EMA(model, 0.9)
    copy.set_state_dict({name: paddle.to_tensor(value.numpy()) for name, value in average.state_dict().items()})
    return copy


def test_averaged_weights_follow_the_formula(tmp_path):
    """average_t = d_t average_{t-1} + (1 - d_t) weights_t with d_t = min(0.5, (1 + t) / (10 + t)), in NumPy."""
    trainer = build(tmp_path, batch_size=2, options={'ema': 0.5})
    history, step = [weights(trainer.model)], trainer.gradient_step.step

    def noting():
        step()
        history.append(weights(trainer.model))

    trainer.gradient_step.step = noting
    scored = []
    trainer.evaluate = lambda model: (scored.append(weights(model)), {'miou': len(scored) / 10, 'accuracy': 1})[1]
    trainer.run()
    average = history[0]
    for t, value in enumerate(history[1:], 1):
        d = min(0.5, (1 + t) / (10 + t))
        average = {name: d * average[name] + (1 - d) * value[name] for name in value}
    found = {name: value.numpy() for name, value in trainer.ema.state_dict().items()}
    for name in ('conv.weight', 'norm.weight', 'classify.bias'):
        # Four times two products and a sum of weights below 1, rounded here and there: 8 * 2**-23
        np.testing.assert_allclose(found[name], average[name], atol=1e-6)
        np.testing.assert_array_equal(scored[0][name], history[-1][name])  # first its own weights, then the average
        np.testing.assert_array_equal(scored[1][name], found[name])
        np.testing.assert_array_equal(weights(trainer.model)[name], history[-1][name])
    np.testing.assert_array_equal(found['norm._mean'], history[-1]['norm._mean'])
    assert (tmp_path / 'ema_best_model' / 'ema_model.pdparams').exists()
    assert (trainer.state['best_miou'], trainer.state['best_ema_miou']) == (0.1, 0.2)


@pytest.mark.parametrize('decay', [0.0, 1.0, 2])
def test_a_decay_out_of_range(tmp_path, decay):
    with pytest.raises(ValueError, match=r'options.ema: expected a decay between 0 and 1'):
        from training.ema import EMA
        EMA(Net(), decay)


def test_early_stop(tmp_path, caplog):
    scores = iter([0.5, 0.4, 0.3, 0.2, 0.1, 0.0])
    trainer = build(tmp_path, batch_size=1, iters=6, save_interval=1, options={'early_stop': 2},
                    evaluate=lambda model: {'miou': next(scores), 'accuracy': 1.0})
    with caplog.at_level(logging.INFO):
        trainer.run()
    assert trainer.state['iteration'] == 3
    assert 'early stop: no better mIoU in 2 evaluations since iteration 1' in caplog.text


def test_a_step_that_is_not_finite_stops_with_iteration_files_and_checkpoint(tmp_path):
    everything = {(epoch, index) for epoch in range(1, 9) for index in range(8)}
    trainer = build(tmp_path, Images(everything), batch_size=4, iters=6, save_interval=1)
    with pytest.raises(UserError) as error:
        trainer.run()
    text = str(error.value)
    assert text.startswith('iteration 3: expected a finite loss and gradient, found loss nan with the batch /data/')
    assert text.count('/data/image_') == 4
    assert f'last good checkpoint: {tmp_path / "iter_2"}' in text and '--on_nan skip' in text


def test_a_gradient_that_is_not_finite_is_found_though_the_loss_is(tmp_path):
    trainer = build(tmp_path, batch_size=4)
    trainer.gradient_step._losses = {'types': [lambda logits, labels: (logits - logits.detach()).sqrt().sum()],
                              'coef': [1.0]}
    with pytest.raises(UserError, match='iteration 1: expected a finite loss and gradient, found loss 0'):
        trainer.run()


def test_skip_drops_the_step_and_what_batch_norm_saw(tmp_path, caplog):
    """Epoch 1 (iterations 3 and 4) is broken: the weights after it are those before it; epoch 2 trains on."""
    bad = {(1, index) for index in range(8)}
    trainer = build(tmp_path, Images(bad), batch_size=4, iters=6, save_interval=2, on_nan='skip')
    with caplog.at_level(logging.WARNING):
        trainer.run()
    assert 'step dropped (2 in a row)' in caplog.text and trainer.state['skipped'] == 0
    at = {i: {n: v.numpy() for n, v in paddle.load(str(tmp_path / f'iter_{i}' / 'model.pdparams')).items()}
          for i in (2, 4, 6)}
    assert all(np.array_equal(at[2][name], at[4][name]) for name in at[2])
    assert all(np.isfinite(value).all() for value in at[6].values())
    assert not np.array_equal(at[4]['conv.weight'], at[6]['conv.weight'])


def test_skip_gives_up_after_ten_in_a_row(tmp_path):
    bad = {(epoch, index) for epoch in range(20) for index in range(8)}
    trainer = build(tmp_path, Images(bad), batch_size=4, iters=30, on_nan='skip')
    with pytest.raises(UserError, match='iteration 10: .* 10 times in a row'):
        trainer.run()


def test_resume_refuses_another_order_of_the_data(tmp_path):
    build(tmp_path, batch_size=2, iters=2).run()
    with pytest.raises(ValueError, match=r'--seed: expected 0, with which .*iter_2 was made, found 1'):
        build(tmp_path, batch_size=2, seed=1).resume(tmp_path / 'iter_2')
    with pytest.raises(ValueError, match=r'--batch_size x --accum_steps x processes: expected 2, .* found 4'):
        build(tmp_path, batch_size=2, accum_steps=2).resume(tmp_path / 'iter_2')
    build(tmp_path, batch_size=1, accum_steps=2).resume(tmp_path / 'iter_2')


def test_half_precision_on_a_cpu_is_refused(tmp_path):
    with pytest.raises(ValueError, match='--precision bf16: expected a GPU, found a CPU'):
        build(tmp_path, batch_size=1, precision='bf16')
