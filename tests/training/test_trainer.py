"""The loop on a one-layer model: what it feeds, logs, evaluates and refuses."""
import logging

import numpy as np
import paddle
import pytest

from common.errors import UserError
from training.trainer import Trainer


class Dots(paddle.io.Dataset):
    """Six images of one colour; `bad` of them is not a number."""

    def __init__(self, bad=None):
        self.bad = bad
        self.asked = []

    def __len__(self):
        return 6

    def __getitem__(self, index):
        self.asked.append(index)
        value = np.nan if index[1] == self.bad else index[1]
        return {'img': np.full([3, 4, 4], value, 'float32'), 'label': np.full([4, 4], index[1] % 2, 'int64')}


def run(dataset, tmp_path, **kwargs):
    class Model(paddle.nn.Layer):
        def __init__(self):
            super().__init__()
            self.conv = paddle.nn.Conv2D(3, 2, 1)

        def forward(self, x):
            return [self.conv(x)]

    model = Model()
    schedule = paddle.optimizer.lr.PolynomialDecay(0.01, 10)
    optimizer = paddle.optimizer.SGD(schedule, parameters=model.parameters())
    losses = {'types': [lambda logits, labels: (logits - labels.unsqueeze(1).astype('float32')).square().mean()],
              'coef': [2.0]}
    resumed = kwargs.pop('resumed', {})
    trainer = Trainer(model, dataset, losses, optimizer, save_dir=tmp_path, **kwargs)
    trainer.state.update(resumed)
    trainer.run()
    return trainer.state


def test_an_epoch_shows_every_image_once_and_the_next_another_order(tmp_path):
    dataset = Dots()
    run(dataset, tmp_path, iters=6, batch_size=2, log_iters=1)
    first, second = dataset.asked[:6], dataset.asked[6:12]
    assert [epoch for epoch, _ in first + second] == [0] * 6 + [1] * 6
    assert sorted(i for _, i in first) == sorted(i for _, i in second) == list(range(6))
    assert [i for _, i in first] != [i for _, i in second]


def test_log_lines_and_best_model(tmp_path, caplog):
    scores = iter([0.5, 0.75, 0.25])
    with caplog.at_level(logging.INFO):
        state = run(Dots(), tmp_path, iters=5, batch_size=2, log_iters=2, save_interval=2, keep_checkpoint_max=1,
                    evaluate=lambda model: {'miou': next(scores), 'accuracy': 1.0})
    assert (state['best_miou'], state['best_iteration']) == (0.75, 4)
    lines = [r.getMessage() for r in caplog.records if '[TRAIN]' in r.getMessage()]
    assert [line.split(', loss')[0] for line in lines] == [
        '[TRAIN] epoch: 1, iter: 2/5', '[TRAIN] epoch: 2, iter: 4/5', '[TRAIN] epoch: 2, iter: 5/5']
    assert 'lr: 0.009' in lines[0]
    assert sorted(p.name for p in tmp_path.iterdir()) == ['best_model', 'iter_5']


def test_the_best_score_survives_a_resume(tmp_path):
    state = run(Dots(), tmp_path, iters=3, batch_size=1, evaluate=lambda model: {'miou': 0.6, 'accuracy': 1.0},
                resumed={'iteration': 2, 'best_miou': 0.7, 'best_iteration': 2})
    assert (state['best_miou'], state['best_iteration']) == (0.7, 2)
    assert not (tmp_path / 'best_model').exists()


def test_a_missing_evaluation_is_skipped_if_the_run_continues_without(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        state = run(Dots(), tmp_path, iters=3, batch_size=1, resumed={'iteration': 2, 'evaluated': False})
    assert 'the evaluation of iteration 2 is skipped' in caplog.text and state['evaluated']


@pytest.mark.parametrize('num_workers', [0, 1])
def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, num_workers):
    with pytest.raises(UserError, match=r'iteration \d: expected a finite loss and gradient, found '
                                                 r'loss nan with the batch sample 3'):
        run(Dots(bad=3), tmp_path, iters=6, batch_size=1, num_workers=num_workers)
    assert not list(tmp_path.glob('iter_*'))
