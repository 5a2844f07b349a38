"""Run by test_exact_resume.py: a small training run through Trainer, quick enough to be killed and resumed many times.

python kill_run.py SAVE_DIR NUM_WORKERS [ITERS]: continues from the newest whole checkpoint; log on standard output.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from common import cli


def main(argv):
    save_dir, num_workers, iters = argv[0], int(argv[1]), int(argv[2])
    cli.start_paddle()
    import numpy as np
    import paddle

    from common import registry
    from common.atomic_io import FolderLock
    from training import checkpoint, run_log
    from training.trainer import Trainer

    class Noise(paddle.io.Dataset):
        """Eleven images whose pixels depend on (seed, epoch, index), as those of the real dataset do."""

        def __len__(self):
            return 11

        def files(self, epoch, index):
            return (f'image_{index}.png',)

        def __getitem__(self, index):
            rng = np.random.default_rng([7, *index])
            return {'img': rng.standard_normal([3, 8, 8]).astype('float32'), 'label': rng.integers(0, 3, [8, 8])}

    class Net(paddle.nn.Layer):
        def __init__(self):
            super().__init__()
            self.layers = paddle.nn.Sequential(paddle.nn.Conv2D(3, 8, 3, padding=1), paddle.nn.BatchNorm2D(8),
                                               paddle.nn.ReLU(), paddle.nn.Dropout2D(0.3), paddle.nn.Conv2D(8, 3, 1))

        def forward(self, x):
            return [self.layers(x)]

    registry.register()
    from paddleseg.cvlibs import manager

    paddle.seed(3)
    model = Net()
    optimizer = paddle.optimizer.Momentum(paddle.optimizer.lr.PolynomialDecay(0.1, iters),
                                          parameters=model.parameters(), weight_decay=1e-4)
    losses = {'types': [manager.LOSSES['DiceLoss'](), manager.LOSSES['BootstrappedCrossEntropyLoss'](20, 0.05)],
              'coef': [1.0, 1.0]}

    def evaluate(net):
        outputs = net(paddle.to_tensor(np.random.default_rng(1).standard_normal([2, 3, 8, 8]).astype('float32')))
        return {'miou': float(outputs[0].abs().mean()), 'accuracy': 0.5}

    main_process = paddle.distributed.get_rank() == 0
    trainer = Trainer(model, Noise(), losses, optimizer, iters=iters, batch_size=2, save_dir=save_dir, seed=3,
                      accum_steps=2, num_workers=num_workers, log_iters=3, save_interval=4, keep_checkpoint_max=3,
                      evaluate=evaluate, options={'ema': 0.9})
    resume_from = checkpoint.latest(save_dir)
    if resume_from:
        trainer.resume(resume_from)
    if not main_process:
        return trainer.run()
    with FolderLock(save_dir), run_log.RunLog(save_dir, 'abc', start=trainer.state['iteration'],
                                              evaluated=trainer.state['evaluated']) as trainer.run_log:
        return trainer.run()


if __name__ == '__main__':
    cli.run(main)
