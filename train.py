"""Train a model: python train.py --config configs/toy.yml --do_eval. See README.md for the recipe on 8 GPUs."""
import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import cli, flags

if TYPE_CHECKING:
    from common.config import Config

LAUNCHER = ('Several processes: python -m paddle.distributed.launch train.py ... The launcher shares the GPUs named in '
            'CUDA_VISIBLE_DEVICES; if that variable is set but empty, it fails with "IndexError: list index out of '
            'range" before this script starts: unset it (env -u CUDA_VISIBLE_DEVICES) to train on CPU processes.')


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = cli.ArgumentParser(description=__doc__, epilog=LAUNCHER)
    parser.add_argument('--config', required=True, help='YAML file, see configs/')
    parser.add_argument('--iters', type=int, help='number of iterations, instead of the config\'s')
    parser.add_argument('--batch_size', type=int, help='images per process, instead of the config\'s')
    parser.add_argument('--learning_rate', type=float, help='initial learning rate, instead of the config\'s')
    parser.add_argument('--save_interval', type=int, default=1000, help='iterations from checkpoint to checkpoint')
    parser.add_argument('--resume', choices=['auto'], help='continue from the newest undamaged checkpoint in '
                                                           '--save_dir, or start if there is none')
    parser.add_argument('--resume_model', help='checkpoint folder to continue from, like output/iter_1000')
    parser.add_argument('--save_dir', default='output', help='folder of checkpoints, best model, curves')
    parser.add_argument('--keep_checkpoint_max', type=int, default=5, help='checkpoints to keep (0: all)')
    parser.add_argument('--num_workers', type=int, help='processes that read and augment images (0: none; default: '
                        '1 on a CPU, on a GPU the cores of the process but one, at most 8)')
    parser.add_argument('--do_eval', action='store_true', help='evaluate at every checkpoint, keep the best model')
    parser.add_argument('--log_iters', type=int, default=10, help='iterations between log lines')
    parser.add_argument('--use_vdl', action='store_true', help='write curves for VisualDL into --save_dir')
    parser.add_argument('--seed', type=int, default=0, help='seed of weights, data order, augmentation, dropout')
    parser.add_argument('--accum_steps', type=int, default=1, help='micro-batches per update')
    parser.add_argument('--precision', choices=['fp32', 'tf32', 'fp16', 'bf16'], default='fp32',
                        help='of the network; all but fp32 on GPUs only')
    parser.add_argument('--recompute', action='store_true', help='activation checkpointing: half the memory, slower')
    parser.add_argument('--on_nan', choices=['stop', 'skip'], default='stop',
                        help='what to do when loss or gradient are not finite')
    parser.add_argument('--deterministic', action='store_true', help='deterministic GPU kernels (slower)')
    parser.add_argument('--opts', nargs='+', default=[], metavar='KEY=VALUE', help='override keys of the config')
    cli.add_debug_flag(parser)
    args = parser.parse_args(argv)
    for name in ('save_interval', 'log_iters', 'accum_steps'):
        if getattr(args, name) < 1:
            parser.error(f'--{name}: expected at least 1, found {getattr(args, name)}')
    for name in ('keep_checkpoint_max', 'num_workers', 'seed'):
        if (getattr(args, name) or 0) < 0:
            parser.error(f'--{name}: expected at least 0, found {getattr(args, name)}')
    return args


def record_start(args: argparse.Namespace, config: 'Config', resume_from: Path | str | None, threads: int,
                 iteration: int, logger: logging.Logger) -> None:
    """Save what is needed to repeat this run: an entry in run.json; config.yml stays that of the first start."""
    import paddle

    from training import run_record

    start = run_record.entry(vars(args), paddle.get_device(), threads, paddle.distributed.get_world_size(), iteration)
    earlier = run_record.read(Path(resume_from).parent) if resume_from else []
    if earlier and (difference := run_record.difference(earlier[-1], start)):
        logger.warning('continued on another machine or with other threads (%s): the results are as good, but differ '
                       'in their last bits from those of a run that was never interrupted', difference)
    start['config'] = config.save_once(args.save_dir, iteration)
    run_record.append(args.save_dir, start, earlier)


def main(argv: Sequence[str]) -> int | None:
    args = parse_args(argv)
    threads = cli.start_paddle()
    import paddle

    from common import gpu
    from common.atomic_io import FolderLock
    from common.builder import Builder
    from common.config import Config
    from inference.backends import fuse_for_inference
    from inference.evaluation_pictures import evaluation_pictures
    from inference.evaluator import evaluate
    from inference.predictor import Predictor
    from training import checkpoint, run_log
    from training.loader import default_workers
    from training.trainer import Trainer

    # ---------------------------------------------------------------- config and starting point
    if args.num_workers is None:
        args.num_workers = default_workers(cli.cores(), on_gpu=paddle.get_device() != 'cpu')
    logger = logging.getLogger('train')
    main_process = paddle.distributed.get_rank() == 0
    resume_from = checkpoint.latest(args.save_dir) if args.resume else args.resume_model
    config = Config(args.config, args.opts, args.iters, args.batch_size, args.learning_rate,
                    with_pretrained=resume_from is None)
    if args.recompute:
        config.dic['model']['recompute'] = True
    lock = FolderLock(args.save_dir) if main_process else None
    if resume_from is None:
        checkpoint.check_fresh(args.save_dir)
    elif args.resume_model:
        checkpoint.check_newest(args.save_dir, args.resume_model)
    gpu.allow_tf32(args.precision == 'tf32')
    if args.deterministic:
        gpu.use_deterministic_kernels()

    # ---------------------------------------------------------------- the objects
    paddle.seed(args.seed)
    builder = Builder(config)
    if resume_from:
        builder.check_weights(Path(resume_from).parent)
    dataset = builder.train_dataset
    dataset.seed = args.seed
    val_dataset: Any = builder.val_dataset if args.do_eval else None

    def evaluate_model(model: paddle.nn.Layer) -> dict[str, Any]:
        predictor = Predictor(fuse_for_inference(model), **flags.predictor_options(config.test_config))
        result = evaluate(predictor, val_dataset, args.num_workers)
        if args.use_vdl and main_process:
            result['pictures'] = evaluation_pictures(predictor, val_dataset, builder.labels)
        return result

    trainer = Trainer(builder.model, dataset, builder.loss, builder.optimizer, iters=config.iters,
                      batch_size=config.batch_size, save_dir=args.save_dir, seed=args.seed,
                      accum_steps=args.accum_steps, precision=args.precision, num_workers=args.num_workers,
                      log_iters=args.log_iters, save_interval=args.save_interval,
                      keep_checkpoint_max=args.keep_checkpoint_max, evaluate=evaluate_model if args.do_eval else None,
                      on_nan=args.on_nan, options=config.dic.get('options'))
    if resume_from:
        trainer.resume(resume_from)

    # ---------------------------------------------------------------- train
    logger.info('Paddle %s on %s, %d thread(s); run folder %s', paddle.__version__, paddle.get_device(), threads,
                args.save_dir)
    if lock is None:  # not the main process
        return trainer.run()
    record_start(args, config, resume_from, threads, trainer.state['iteration'], logger)
    builder.save_description(args.save_dir)
    with lock, run_log.RunLog(args.save_dir, builder.labels.names, args.use_vdl, trainer.state['iteration'],
                           trainer.state['evaluated']) as record:
        trainer.run_log = record
        return trainer.run()


if __name__ == '__main__':
    cli.run(main)
