"""Run by test_distributed.py: python parallel_run.py CONFIG SAVE_DIR BATCH_SIZE, alone or under the launcher."""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from common import cli


def main(argv):
    config_path, save_dir, batch_size = argv
    cli.start_paddle()
    import paddle

    from common.builder import Builder
    from common.config import Config
    from tests import rounding

    builder = Builder(Config(config_path, opts=[
        'model.dropout=0.0', 'lr_scheduler.learning_rate=0.0000001',
        'loss.types=[{"type": "BootstrappedCrossEntropyLoss", "min_K": 1, "loss_th": 0.0}]',
        'loss.coef=[1, 0.4, 0.05, 0.05]']))
    paddle.seed(5)
    model = builder.model
    # In float64: in float32 the last bit of the input moves a gradient by up to 2e-2, where a ReLU is at its corner.
    model.register_forward_pre_hook(lambda layer, inputs: inputs[0].astype('float64'))
    with rounding.in_float64(model):
        train(model, builder, int(batch_size), save_dir)


def train(model, builder, batch_size, save_dir):
    from inference.evaluator import evaluate
    from inference.predictor import Predictor
    from training.trainer import Trainer

    Trainer(model, builder.train_dataset, builder.loss, builder.optimizer, iters=3, batch_size=batch_size,
            save_dir=save_dir, log_iters=1, save_interval=3,
            options={'freeze_batch_norm': True},  # the statistics of a half batch are not those of the whole
            evaluate=lambda m: evaluate(Predictor(m), builder.val_dataset)).run()


if __name__ == '__main__':
    cli.run(main)
