"""Segment an image, a folder or a list of images: python predict.py --config ... --model_path ... --image_path ..."""
import argparse
import contextlib
import itertools
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import cli, flags
from common.errors import UserError, is_expected


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = cli.ArgumentParser(description=__doc__)
    flags.add_inference_flags(parser, '--aug_pred')
    parser.add_argument('--image_path', required=True, help='image, folder (searched recursively) or list file (.txt)')
    parser.add_argument('--save_dir', default='output/result', help='folder of the predictions')
    parser.add_argument('--skip_existing', action='store_true', help='skip images that already have their predictions')
    parser.add_argument('--report', metavar='DIR', help='a page with charts and pictures of every image')
    parser.add_argument('--custom_color', nargs='+', type=int, metavar='RGB', help='R G B of every class, 0-255')
    cli.add_debug_flag(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int | None:
    args = parse_args(argv)
    cli.start_paddle()
    import numpy as np
    import paddle
    from paddleseg.transforms import Compose
    from tqdm import tqdm

    from common.builder import Builder
    from common.config import Config
    from common.model_zoo import local_weights
    from datasets.sampling import shard
    from inference import backends, pictures
    from inference.predictor import Predictor
    from inference.prefetch import prefetch
    from inference.report.report import ReportWriter, facts

    logger = logging.getLogger('predict')
    flags.warn_unused(args, logger)
    options = flags.predictor_options(vars(args))
    inputs = pictures.find_inputs(args.image_path, exclude=[args.save_dir, args.report])
    found, rank, processes = len(inputs), paddle.distributed.get_rank(), paddle.distributed.get_world_size()
    images = [inputs[index] for index in shard(found, rank, processes)]  # before a faster process writes predictions
    if args.skip_existing:
        images = [item for item in images if not pictures.is_written(args.save_dir, item[1])]
        logger.info('%d of %d images have their predictions already', found - _sum(len(images)), found)
    if args.report and args.skip_existing:
        raise UserError('--report: expected every image to be predicted, found --skip_existing; leave one of them out')
    args.model_path = str(local_weights(args.model_path))
    config = Config(args.config, args.opts, with_pretrained=False)
    builder = Builder(config)
    builder.check_weights(Path(args.model_path).parent.parent)
    colors = pictures.color_table(builder.labels, args.custom_color)
    flags.check_writable(args.save_dir)
    page = ReportWriter(args.report, builder.labels, colors, args.num_workers) if args.report else None
    places = {name: place for place, (_, name) in enumerate(inputs)}
    network = backends.create(builder, args.model_path, **flags.network_options(args))
    predict = Predictor(network, **options)
    transforms = Compose(builder.val_transforms)

    def load(item: tuple[Path, Path]) -> tuple[np.ndarray, dict[str, Any]]:
        image = pictures.read_image(item[0])
        return image, transforms({'img': image.astype('float32')})

    failed = []
    with pictures.Writer(args.save_dir, colors) as writer, page or contextlib.nullcontext():
        for (path, name), loaded, error in tqdm(prefetch(load, images, args.num_workers), total=len(images),
                                                desc='predict', unit='image', disable=True if rank else None):
            if error is not None and not is_expected(error):
                raise error
            if error is None:
                image, sample = loaded
                if page:
                    maps = predict.maps(sample)
                    page.add(places[name], name.as_posix(), image, maps)
                writer.write(name, image, maps.classes if page else predict(sample))
            else:
                failed.append(f'{path}: {error}' if str(path) not in str(error) else str(error))
    failures: list[list[str]] = [failed]
    if processes > 1:
        failures = []
        paddle.distributed.all_gather_object(failures, failed)
    total, count = _sum(len(images)), sum(map(len, failures))
    logger.info('predicted %d of %d images; pictures in %s and %s', total - count, total,
                Path(args.save_dir) / 'pseudo_color_prediction', Path(args.save_dir) / 'added_prediction')
    if page:
        page.finish(f'Predictions of {Path(args.config).stem}', facts(args, config, predict, args.image_path))
    for line in itertools.chain(*failures) if rank == 0 else ():
        print(f'error: {line}', file=sys.stderr, flush=True)
    if processes > 1:
        paddle.distributed.barrier()
    # Of the main process alone: at the first status that is not 0 the launcher ends the others, and passes on theirs.
    return cli.EXIT_ERROR if count and rank == 0 else None


def _sum(number: int) -> int:
    """The sum over the processes."""
    import paddle

    total = paddle.to_tensor(number)
    if paddle.distributed.get_world_size() > 1:
        paddle.distributed.all_reduce(total)
    return int(total)


if __name__ == '__main__':
    cli.run(main)
