"""Run by test_distributed.py python broken_run.py loss|gradient; that of process 1 is not finite."""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from common import cli


def main(argv):
    cli.start_paddle()
    import numpy as np
    import paddle

    from training.trainer import Trainer

    broken = argv[0]
    rank = paddle.distributed.get_rank()

    class Images(paddle.io.Dataset):
        def __len__(self):
            return 8

        def files(self, epoch, index):
            return (f'/data/image_{index}.png',)

        def __getitem__(self, index):
            value = np.nan if rank == 1 and broken == 'loss' else 1.0
            return {'img': np.full([3, 4, 4], value, 'float32'), 'label': np.zeros([4, 4], 'int64')}

    class Net(paddle.nn.Layer):
        def __init__(self):
            super().__init__()
            self.conv = paddle.nn.Conv2D(3, 2, 1)

        def forward(self, x):
            return [self.conv(x)]

    def loss(logits, labels):
        if rank == 1 and broken == 'gradient':
            return (logits - logits.detach()).sqrt().sum()
        return logits.square().mean()

    model = Net()
    optimizer = paddle.optimizer.SGD(paddle.optimizer.lr.PolynomialDecay(0.01, 10), parameters=model.parameters())
    trainer = Trainer(model, Images(), {'types': [loss], 'coef': [1.0]}, optimizer, iters=2, batch_size=2,
                      save_dir=None, seed=1)
    for number in range(2):
        print('process', number, 'has', ', '.join(
            path for epoch, index in trainer._samples(1, number) for path in trainer._files(epoch, index)))
    return trainer.run()


if __name__ == '__main__':
    cli.run(main)
