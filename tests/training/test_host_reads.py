"""What a training step reads from the device, counted on a CPU with the forms of the losses for a GPU."""
import numpy as np
import paddle
import pytest

import losses
from losses import functional, statistics
from tests.training.test_trainer_options import Images, Net
from training.trainer import Trainer

READS = ('numpy', 'item', 'tolist', '__float__', '__bool__', '__int__', '__array__', '__index__')
WAITING = ('bincount', 'masked_select', 'nonzero')  # functions whose GPU kernels copy something to the host


@pytest.fixture
def reads(monkeypatch):
    """The names of the reads so far; one within another counts once.

    Paddle 2.6 checks the indices of take_along_axis on the host, which cannot be switched off: not counted there.
    """
    found, inside = [], []

    def counted(name, original):
        def read(*args, **kwargs):
            if not inside and name:
                found.append(name)
            inside.append(name)
            try:
                return original(*args, **kwargs)
            finally:
                inside.pop()
        return read

    for name in READS:
        monkeypatch.setattr(paddle.Tensor, name, counted(name, getattr(paddle.Tensor, name)))
    for name in WAITING:
        monkeypatch.setattr(paddle, name, counted(name, getattr(paddle, name)))
    if paddle.__version__.startswith('2.'):
        monkeypatch.setattr(paddle, 'take_along_axis', counted(None, paddle.take_along_axis))
    for module in (functional, statistics):
        monkeypatch.setattr(module, 'is_on_host', lambda _: False)
    return found


@pytest.mark.parametrize('options', [{}, {'on_nan': 'skip', 'options': {'ema': 0.9}}, {'accum_steps': 2}])
def test_a_step_reads_once(tmp_path, reads, options):
    model = Net()
    optimizer = paddle.optimizer.Momentum(paddle.optimizer.lr.PolynomialDecay(0.1, 20), parameters=model.parameters())
    types = [losses.DiceLoss(), losses.BootstrappedCrossEntropyLoss(min_K=5, loss_th=9.0)]
    trainer = Trainer(model, Images(), {'types': types, 'coef': [1.0, 1.0]}, optimizer, save_dir=tmp_path, iters=6,
                      batch_size=2, log_iters=3, **options)
    per_step, step = [], trainer.gradient_step.backward

    def noting(batches):
        per_step.append(len(reads))
        return step(batches)

    trainer.gradient_step.backward = noting
    trainer.run()
    # Six steps; the third ends with a log line, which reads the sums of the losses.
    assert np.diff(per_step).tolist() == [1, 1, 2, 1, 1], reads


def test_labels_outside_of_the_classes_stop_the_run_also_on_a_gpu(tmp_path, monkeypatch):
    for module in (functional, statistics):
        monkeypatch.setattr(module, 'is_on_host', lambda _: False)

    class Wrong(Images):
        def __getitem__(self, index):
            sample = super().__getitem__(index)
            sample['label'][0, 0] = 7
            return sample

    model = Net()
    optimizer = paddle.optimizer.SGD(paddle.optimizer.lr.PolynomialDecay(0.1, 20), parameters=model.parameters())
    trainer = Trainer(model, Wrong(), {'types': [losses.DiceLoss()], 'coef': [1.0]}, optimizer, save_dir=tmp_path,
                      iters=2, batch_size=2, on_nan='skip')
    with pytest.raises(ValueError, match=r'labels: expected ids 0..1 or 255 \(void\), found \[7\]'):
        trainer.run()
