"""Score weights on the validation set: python val.py --config configs/toy.yml --model_path .../model.pdparams"""
import argparse
import contextlib
import logging
from collections.abc import Sequence
from pathlib import Path

from common import cli, flags


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = cli.ArgumentParser(description=__doc__)
    flags.add_inference_flags(parser, '--aug_eval')
    parser.add_argument('--official', action='store_true',
                        help="iIoU of classes and categories, too, as the official evaluation; needs instance ids")
    parser.add_argument('--boundary', nargs='*', type=int, metavar='PIXELS',
                        help='boundary F-score and trimap IoU at these distances (default: 3 5 9 12)')
    parser.add_argument('--calibration', action='store_true',
                        help='whether confidence can be believed: expected calibration error, reliability diagram')
    parser.add_argument('--report', metavar='DIR', help='a page with scores, charts and pictures of every image')
    parser.add_argument('--per_image', metavar='FILE', help="each image's scores, into a .csv or .json")
    parser.add_argument('--resume', action='store_true', help='continue an interrupted evaluation with the same flags')
    cli.add_debug_flag(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> None:
    args = parse_args(argv)
    cli.start_paddle()
    import paddle

    from common.atomic_io import write_atomically
    from common.builder import Builder
    from common.config import Config
    from common.model_zoo import local_weights
    from inference import backends, evaluation_report
    from inference.evaluation_journal import EvaluationJournal, settings_of
    from inference.evaluator import evaluate
    from inference.predictor import Predictor
    from inference.records import image_names
    from inference.report.report import ReportWriter, facts
    from inference.scores.base import Score
    from inference.scores.boundary import PIXELS, Boundary
    from inference.scores.calibration import Calibration
    from inference.scores.instances import Instances

    logger = logging.getLogger('val')
    flags.warn_unused(args, logger)
    config = Config(args.config, args.opts, with_pretrained=False)
    vars(args).update(flags.with_test_config(vars(args), config.test_config, augment=True))
    options = flags.predictor_options(vars(args))
    args.model_path = str(local_weights(args.model_path))
    weights = Path(args.model_path)
    report = weights.with_name(f'evaluation_{Path(args.config).stem}{flags.describe(args)}.json')
    builder = Builder(config)
    page = ReportWriter(args.report) if args.report else None
    flags.check_writable(report.parent)
    if args.per_image:
        evaluation_report.check_format('--per_image', args.per_image)
        flags.check_writable(Path(args.per_image).parent)
    builder.check_weights(weights.parent.parent)
    dataset = builder.val_dataset
    labels = builder.labels
    scores: list[Score] = []
    if args.official:
        scores.append(Instances(labels, dataset.file_list))
    if args.boundary is not None:
        scores.append(Boundary(labels, args.boundary or PIXELS))
    if args.calibration or args.report:
        scores.append(Calibration(labels))
    network = backends.create(builder, args.model_path, memory_limit=options.get('memory_limit'),
                              **flags.network_options(args))
    predict = Predictor(network, **options)
    made_of = settings_of(config, weights, labels, image_names(dataset), {
        **options, 'backend': backends.name_of(network), **flags.precision_settings(args),
        'report': page and str(page.path.resolve())}, scores)
    with EvaluationJournal(report.with_suffix(''), made_of, args.resume, page.drawn() if page else None) as journal, \
            page.start(labels, threads=args.num_workers, keep=bool(journal.found)) if page else \
            contextlib.nullcontext():
        logger.info('evaluate %s on %d images of %s', weights, len(dataset), config.val_dataset_cfg.get('dataset_root'))
        if journal.found:
            logger.info('%d of %d images are there from an interrupted evaluation', len(journal.found), len(dataset))
        result = evaluate(predict, dataset, args.num_workers, labels, scores, journal, images=True,
                          watch=page.watch(dataset) if page else None)
    if paddle.distributed.get_rank() == 0:
        print(evaluation_report.text(result, labels, scores))
        print(f'images: {len(dataset)}  mIoU: {100 * result["miou"]:.2f}%  accuracy: {100 * result["accuracy"]:.2f}%')
        made = {'config': args.config, 'model_path': args.model_path, 'opts': args.opts,
                'n_scales': config.model_cfg.get('n_scales'), 'test_time': {
                    'scales': predict.scales, 'flips': len(predict.flips), 'crop_size_hw': predict.crop_size,
                    'stride_hw': predict.stride}}
        data = {**made, **evaluation_report.document(result, labels, scores)}
        files = {report: evaluation_report.to_json(data),
                 report.with_suffix('.csv'): evaluation_report.classes_csv(data)}
        if args.per_image:
            files[Path(args.per_image)] = evaluation_report.images_file(args.per_image, data)
        for path, content in files.items():
            write_atomically(path, content)
        logger.info('written: %s', ', '.join(map(str, files)))
        if page:
            images = config.val_dataset_cfg.get('dataset_root')
            page.finish(f'Evaluation of {Path(args.config).stem}', facts(args, config, predict, images), result,
                        weights.parent.parent)
        journal.delete()


if __name__ == '__main__':
    cli.run(main)
