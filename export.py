"""Write weights as a network that runs without this repository: python export.py --config ... --model_path ..."""
import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from common import cli, flags
from common.errors import UserError
from common.export_table import FORMATS, LARGEST_SIDE, PRECISIONS


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = cli.ArgumentParser(description=__doc__)
    parser.add_argument('--config', required=True, help='YAML file, see configs/')
    parser.add_argument('--model_path', required=True,
                        help='weights: a file (.pdparams, .safetensors, .pth), a URL, a name in configs/model_zoo.yml')
    parser.add_argument('--save_dir', default='output/export', help='new folder for the network and what belongs to it')
    parser.add_argument('--format', choices=tuple(FORMATS), default='onnx', help='who is to run it')
    parser.add_argument('--precision', choices=PRECISIONS, default='fp32',
                        help='of the network, where the format has it; softmax, fusion and argmax stay fp32; int8 '
                        'needs images and requirements-int8.txt')
    flags.add_calibration_flags(parser, 'images to calibrate on and to check with; default: those of the config')
    parser.add_argument('--input_shape', nargs='+', default=['any'], metavar='any | H W',
                        help='height and width of all images, for a graph without shape computations; or any')
    parser.add_argument('--output', choices=('classes', 'probabilities', 'logits'), default='classes',
                        help='classes are uint8, the others float32 (1, classes, H, W)')
    parser.add_argument('--with_preprocessing', action='store_true',
                        help='take the image itself, uint8 (H, W, 3) RGB, and give classes as (H, W)')
    parser.add_argument('--flip', action='store_true', help='average with the mirrored image, in twice the time')
    parser.add_argument('--license', default='unknown', metavar='ID', help="the weights' license, for the model card")
    parser.add_argument('--opts', nargs='+', default=[], metavar='KEY=VALUE', help='override keys of the config')
    cli.add_debug_flag(parser)
    return parser.parse_args(argv)


def image_size(words: Sequence[str]) -> tuple[int, int] | None:
    """(H, W) of --input_shape, None for any."""
    if list(words) == ['any']:
        return None
    sides = [int(word) if word.isascii() and word.isdecimal() else 0 for word in words]
    if len(sides) != 2 or not all(1 <= side <= LARGEST_SIDE for side in sides):
        raise UserError(f'--input_shape: expected any, or height and width of 1 to {LARGEST_SIDE} pixels, found '
                        f'{" ".join(words)}; for example --input_shape 1024 2048')
    return sides[0], sides[1]


def main(argv: Sequence[str]) -> None:
    args = parse_args(argv)
    size = image_size(args.input_shape)
    flags.check_calibration(args)
    if args.precision == 'int8' and size is not None:
        raise UserError('--precision int8: expected --input_shape any, found a fixed size; leave --input_shape out')
    cli.start_paddle()
    from common.builder import Builder
    from common.config import Config
    from common.model_zoo import local_weights
    from inference.export.quantisation import Images
    from inference.export.whole import Settings
    from inference.export.writing import export

    config = Config(args.config, args.opts, with_pretrained=False)
    weights = local_weights(args.model_path)
    builder = Builder(config)
    flags.check_writable(Path(args.save_dir).parent)
    builder.check_weights(weights.parent.parent)
    settings = Settings(size, args.output, args.with_preprocessing, args.flip, args.precision)
    images = Images(args.calibration_images, args.calibration_count)
    export(builder, weights, Path(args.save_dir), args.format, settings, args.license, images)
    logging.getLogger('export').info('%s: gives %swhat val.py and predict.py give%s', args.save_dir,
                                     'nearly ' * (args.precision == 'int8'), ' with --flip_horizontal' * args.flip)


if __name__ == '__main__':
    cli.run(main)
