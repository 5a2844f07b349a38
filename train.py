"""Train a model: python train.py --config configs/toy.yml --do_eval. See README.md for the recipe on 8 GPUs."""
import argparse
import logging
from pathlib import Path

from engine import cli, flags


def parse_args(argv):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--config', required=True, help='YAML file, see configs/')
    parser.add_argument('--iters', type=int, help='number of iterations, instead of the config\'s')
    parser.add_argument('--batch_size', type=int, help='images per process, instead of the config\'s')
    parser.add_argument('--learning_rate', type=float, help='initial learning rate, instead of the config\'s')
    parser.add_argument('--save_interval', type=int, default=1000, help='iterations from checkpoint to checkpoint')
    parser.add_argument('--resume_model', help='checkpoint folder to continue from, like output/iter_1000')
    parser.add_argument('--save_dir', default='output', help='folder of checkpoints, best model, curves')
    parser.add_argument('--keep_checkpoint_max', type=int, default=5, help='checkpoints to keep (0: all)')
    parser.add_argument('--num_workers', type=int, default=0, help='processes that read and augment images')
    parser.add_argument('--do_eval', action='store_true', help='evaluate at every checkpoint, keep the best model')
    parser.add_argument('--log_iters', type=int, default=10, help='iterations between log lines')
    parser.add_argument('--use_vdl', action='store_true', help='write curves for VisualDL into --save_dir')
    parser.add_argument('--seed', type=int, default=0, help='seed of weights, data order, augmentation, dropout')
    parser.add_argument('--opts', nargs='+', default=[], metavar='KEY=VALUE', help='override keys of the config')
    cli.add_debug_flag(parser)
    args = parser.parse_args(argv)
    for name in ('save_interval', 'log_iters'):
        if getattr(args, name) < 1:
            parser.error(f'--{name}: expected at least 1, found {getattr(args, name)}')
    return args


def main(argv):
    args = parse_args(argv)
    threads = cli.start_paddle()
    import paddle

    from engine import checkpoint
    from engine.config import Builder, Config
    from engine.evaluator import evaluate
    from engine.inference import Predictor
    from engine.trainer import train

    logger = logging.getLogger('train')
    config = Config(args.config, args.opts, args.iters, args.batch_size, args.learning_rate,
                    with_pretrained=args.resume_model is None)
    if args.resume_model is None:
        checkpoint.check_fresh(args.save_dir)
    paddle.seed(args.seed)
    builder = Builder(config)
    dataset = builder.train_dataset
    dataset.seed = args.seed
    val_dataset = builder.val_dataset if args.do_eval else None
    model, optimizer = builder.model, builder.optimizer
    resumed = checkpoint.resume(args.resume_model, model, optimizer) if args.resume_model else None
    if resumed and resumed['iteration'] >= config.iters:
        raise ValueError(f'--resume_model {args.resume_model}: expected a checkpoint before iteration {config.iters}, '
                         f'found {resumed["iteration"]}; raise --iters to train on')
    if paddle.distributed.get_rank() == 0:
        config.save(Path(args.save_dir) / 'config.yml')
    logger.info('Paddle %s on %s, %d thread(s); run folder %s', paddle.__version__, paddle.get_device(), threads,
                args.save_dir)

    def evaluate_model(model):
        return evaluate(Predictor(model, **flags.predictor_options(config.test_config)), val_dataset, args.num_workers)

    train(model, dataset, builder.loss, optimizer, iters=config.iters, batch_size=config.batch_size,
          save_dir=args.save_dir, seed=args.seed, num_workers=args.num_workers, log_iters=args.log_iters,
          save_interval=args.save_interval, keep_checkpoint_max=args.keep_checkpoint_max,
          evaluate=evaluate_model if args.do_eval else None, use_vdl=args.use_vdl, resumed=resumed)


if __name__ == '__main__':
    cli.run(main)
