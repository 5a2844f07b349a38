"""Segment images, a video, or a test split: python predict.py --config ... --model_path ... --image_path ..."""
import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from common import cli, flags
from common.errors import UserError

MAPS = ('confidence', 'entropy', 'attention')


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = cli.ArgumentParser(description=__doc__)
    flags.add_inference_flags(parser, '--aug_pred')
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument('--image_path', help='image, folder (searched recursively), list file (.txt), or video')
    what.add_argument('--submission', metavar='ZIP',
                      help="predict the test split of the config's dataset for the Cityscapes server, into this file")
    parser.add_argument('--save_dir', default='output/result', help='folder of the predictions')
    parser.add_argument('--skip_existing', action='store_true', help='skip images that already have their predictions')
    parser.add_argument('--report', metavar='DIR', help='a page with charts and pictures of every image')
    parser.add_argument('--custom_color', nargs='+', type=int, metavar='RGB', help='R G B of every class, 0-255')
    parser.add_argument('--save_confidence', action='store_true', help='the probability of the predicted class')
    parser.add_argument('--save_entropy', action='store_true', help='the entropy of the probabilities, 0-1')
    parser.add_argument('--save_attention', action='store_true', help='the weight of every scale, and which decided')
    parser.add_argument('--every', type=int, default=1, metavar='N',
                        help='video: predict one frame of N; the others keep the prediction of the one before')
    parser.add_argument('--temporal_smoothing', type=float, default=0.0, metavar='ALPHA',
                        help='video: average the logits over time, ALPHA of the average so far (0: no)')
    cli.add_debug_flag(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int | None:
    args = parse_args(argv)
    cli.start_paddle()
    import paddle

    from common.builder import Builder
    from common.config import Config
    from common.model_zoo import local_weights
    from inference import video
    from inference.folder import Pictures
    from inference.report.report import ReportWriter, facts
    from inference.run_settings import of_prediction
    from inference.segmenter import Segmenter
    from inference.submission import Submission
    from inference.video_prediction import VideoPrediction

    logger = logging.getLogger('predict')
    flags.warn_unused(args, logger)
    flags.predictor_options(vars(args))  # checks them
    flags.check_writable(args.save_dir if args.submission is None else Path(args.submission).parent)
    maps = [kind for kind in MAPS if vars(args)[f'save_{kind}']]
    is_video = args.submission is None and video.is_video(args.image_path)
    asked = [*(f'--save_{kind}' for kind in maps), *(['--report'] if args.report else [])]
    if asked and (is_video or args.submission):
        raise UserError(f'{asked[0]}: expected images in --image_path, found none; leave it out')
    if not is_video and (args.every != 1 or args.temporal_smoothing):
        raise UserError('--every, --temporal_smoothing: expected a video in --image_path, found none; leave them out')
    page = ReportWriter(args.report) if args.report else None
    work: Pictures | Submission | VideoPrediction | None = None
    if args.submission is None and not is_video:
        work = Pictures(args.image_path, args.save_dir, maps, args.skip_existing, page)
    weights = local_weights(args.model_path)
    config = Config(args.config, args.opts, with_pretrained=False)
    vars(args).update(flags.with_test_config(vars(args), config.test_config))
    test_time = flags.predictor_options(vars(args))
    builder = Builder(config)
    if work is None:  # what it leaves behind is continued by a run with the same settings only
        settings = of_prediction(config, weights, test_time=test_time, **flags.precision_settings(args))
        if is_video:
            work = VideoPrediction(args.image_path, args.save_dir, args.every, args.temporal_smoothing,
                                   {**settings, 'custom_color': args.custom_color}, args.skip_existing)
        else:
            root = config.val_dataset_cfg.get('dataset_root') or ''
            work = Submission(args.submission, root, builder.labels, settings)
    segmenter = Segmenter(builder, weights, custom_color=args.custom_color, **flags.segmenter_options(args))
    failed, done = work.run(segmenter, args.num_workers)
    logger.info(done)
    if page:
        page.finish(f'Predictions of {Path(args.config).stem}',
                    facts(args, config, segmenter.predictor, args.image_path))
    rank = paddle.distributed.get_rank()
    for line in failed if rank == 0 else ():
        print(f'error: {line}', file=sys.stderr, flush=True)
    if paddle.distributed.get_world_size() > 1:
        paddle.distributed.barrier()
    # Of the main process alone: at the first status that is not 0 the launcher ends the others, and passes on theirs.
    return cli.EXIT_ERROR if failed and rank == 0 else None


if __name__ == '__main__':
    cli.run(main)
