"""Segment an image, a folder or a list of images: python predict.py --config ... --model_path ... --image_path ..."""
import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import cli, flags
from common.errors import is_expected


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = cli.ArgumentParser(description=__doc__)
    flags.add_inference_flags(parser, '--aug_pred')
    parser.add_argument('--image_path', required=True, help='image, folder (searched recursively) or list file (.txt)')
    parser.add_argument('--save_dir', default='output/result', help='folder of the predictions')
    parser.add_argument('--skip_existing', action='store_true', help='skip images that already have their predictions')
    parser.add_argument('--custom_color', nargs='+', type=int, metavar='RGB', help='R G B of every class, 0-255')
    cli.add_debug_flag(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int | None:
    args = parse_args(argv)
    cli.start_paddle()
    import numpy as np
    from paddleseg.transforms import Compose
    from tqdm import tqdm

    from common.builder import Builder
    from common.config import Config
    from common.model_zoo import local_weights
    from inference import backends, pictures
    from inference.predictor import Predictor
    from inference.prefetch import prefetch

    logger = logging.getLogger('predict')
    flags.warn_unused(args, logger)
    options = flags.predictor_options(vars(args))
    images = pictures.find_inputs(args.image_path, exclude=args.save_dir)
    if args.skip_existing:
        found = len(images)
        images = [item for item in images if not pictures.is_written(args.save_dir, item[1])]
        logger.info('%d of %d images have their predictions already', found - len(images), found)
    args.model_path = str(local_weights(args.model_path))
    builder = Builder(Config(args.config, args.opts, with_pretrained=False))
    builder.check_weights(Path(args.model_path).parent.parent)
    colors = pictures.color_table(builder.labels, args.custom_color)
    flags.check_writable(args.save_dir)
    network = backends.create(builder, args.model_path, **flags.network_options(args))
    predict = Predictor(network, **options)
    transforms = Compose(builder.val_transforms)

    def load(item: tuple[Path, Path]) -> tuple[np.ndarray, dict[str, Any]]:
        image = pictures.read_image(item[0])
        return image, transforms({'img': image.astype('float32')})

    failed = []
    with pictures.Writer(args.save_dir, colors) as writer:
        for (path, name), loaded, error in tqdm(prefetch(load, images, args.num_workers), total=len(images),
                                                desc='predict', unit='image', disable=None):
            if error is not None and not is_expected(error):
                raise error
            if error is None:
                image, sample = loaded
                writer.write(name, image, predict(sample))
            else:
                failed.append(f'{path}: {error}' if str(path) not in str(error) else str(error))
    done = len(images) - len(failed)
    logger.info('predicted %d of %d images; pictures in %s and %s', done, len(images),
                Path(args.save_dir) / 'pseudo_color_prediction', Path(args.save_dir) / 'added_prediction')
    for line in failed:
        print(f'error: {line}', file=sys.stderr)
    return cli.EXIT_ERROR if failed else None


if __name__ == '__main__':
    cli.run(main)
