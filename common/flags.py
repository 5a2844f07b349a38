"""Flags shared by the scripts that predict, and functions of them. Does not import Paddle, so that --help is quick."""
import argparse
import logging
import math
import os
from collections.abc import Mapping
from typing import Any

from common.backend_table import BACKENDS
from common.errors import FileError, UserError

PRECISIONS = ('fp32', 'tf32', 'bf16', 'fp16', 'int8')


def add_inference_flags(parser: argparse.ArgumentParser, aug_flag: str) -> None:
    """--config, --model_path and PaddleSeg's test-time flags; aug_flag is --aug_eval or --aug_pred."""
    parser.add_argument('--config', required=True, help='YAML file, see configs/')
    parser.add_argument('--model_path', required=True,
                        help='weights: a file (.pdparams, .safetensors, .pth), a URL, a name in configs/model_zoo.yml')
    parser.add_argument('--num_workers', type=int, default=2, help='threads that decode images ahead (0: none)')
    parser.add_argument(aug_flag, dest='aug', action='store_true', help='obey --scales and the flips')
    parser.add_argument('--scales', nargs='+', type=float, default=[1.0],
                        help="scales of the input, on top of the model's own n_scales")
    parser.add_argument('--flip_horizontal', action='store_true', help='average with the mirrored image')
    parser.add_argument('--flip_vertical', action='store_true', help='average with the image upside down')
    parser.add_argument('--is_slide', action='store_true', help='run in a sliding window (less memory)')
    parser.add_argument('--crop_size', nargs=2, type=int, metavar=('W', 'H'), help='size of the window')
    parser.add_argument('--stride', nargs=2, type=int, metavar=('W', 'H'), help='step of the window')
    parser.add_argument('--backend', choices=('auto', *BACKENDS), default='auto',
                        help='what runs the network; auto: Paddle on a GPU, the fastest that is installed on a CPU')
    parser.add_argument('--precision', choices=PRECISIONS, default='fp32',
                        help='of the network, where backend and processor have it; fusion and argmax stay fp32; int8 '
                        'needs images and requirements-int8.txt')
    add_calibration_flags(parser, 'images to calibrate on; default: the training images of the config')
    parser.add_argument('--memory_limit', type=float, metavar='GB',
                        help='use no more (estimated): smaller strips, then windows, as far as needed')
    parser.add_argument('--no_cache', action='store_true',
                        help='convert the network for OpenVINO or ONNX Runtime again, and do not keep it')
    parser.add_argument('--opts', nargs='+', default=[], metavar='KEY=VALUE', help='override keys of the config')


def add_calibration_flags(parser: argparse.ArgumentParser, purpose: str) -> None:
    """What --precision int8 takes."""
    parser.add_argument('--calibration_images', metavar='DIR', help=f'int8 only: {purpose}')
    parser.add_argument('--calibration_count', type=int, default=32, metavar='N', help='int8 only: images at most')


def check_calibration(args: argparse.Namespace) -> None:
    """UserError for flags of add_calibration_flags that do not fit."""
    if args.calibration_images is not None and args.precision != 'int8':
        raise UserError(f'--calibration_images: expected --precision int8, found {args.precision}; leave it out')
    if args.calibration_count < 1:
        raise UserError(f'--calibration_count: expected at least 1, found {args.calibration_count}')


def precision_settings(args: argparse.Namespace) -> dict[str, Any]:
    """What decides how the network computes, for work that is continued with the same settings only."""
    check_calibration(args)
    return {'precision': args.precision, **({'calibration': [args.calibration_images, args.calibration_count]}
                                            if args.precision == 'int8' else {})}


def predictor_options(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of inference.predictor.Predictor from PaddleSeg's names, as flags or as the config's test_config.

    PaddleSeg's crop_size and stride are (w, h); those of this function's result, and of all other code, are (H, W).
    """
    result: dict[str, Any] = {}
    if (flags.get('num_workers') or 0) < 0:
        raise UserError(f'--num_workers: expected at least 0, found {flags["num_workers"]}; correct it')
    if flags.get('aug') or flags.get('aug_eval'):
        scales = flags.get('scales') or 1.0
        result = {'scales': list(scales) if isinstance(scales, (list, tuple)) else [float(scales)],
                  'flip_horizontal': bool(flags.get('flip_horizontal')),
                  'flip_vertical': bool(flags.get('flip_vertical'))}
        if not all(0 < scale < math.inf for scale in result['scales']):
            raise UserError(f'--scales: expected numbers above 0, found {result["scales"]}; correct them')
    if flags.get('is_slide'):
        for name in ('crop_size', 'stride'):
            value = flags.get(name)
            if not value or len(value) != 2 or min(value) < 1:
                raise UserError(f'--{name}: expected width and height in pixels with --is_slide, found {value}; '
                                 f'for example --crop_size 1024 512 --stride 768 384')
            result[name] = tuple(reversed(value))
    if flags.get('memory_limit') is not None:
        if not 0 < flags['memory_limit'] < math.inf:
            raise UserError(f'--memory_limit: expected gigabytes above 0, found {flags["memory_limit"]}; correct it')
        result['memory_limit'] = flags['memory_limit'] * 2**30
    return result


def with_test_config(options: Mapping[str, Any], test_config: Mapping[str, Any],
                     augment: bool = False) -> dict[str, Any]:
    """Test-time options, with what the config's test_config says where they say nothing, as PaddleSeg's tools do.

    The sliding window always; scales and flips where augment is True: for validation, not for prediction.
    """
    result = dict(options)
    if augment and not result.get('aug') and test_config.get('aug_eval'):
        scales = test_config.get('scales', 1.0)
        result.update(aug=True, scales=list(scales) if isinstance(scales, (list, tuple)) else [float(scales)],
                      flip_horizontal=bool(test_config.get('flip_horizontal')),
                      flip_vertical=bool(test_config.get('flip_vertical')))
    if not result.get('is_slide') and test_config.get('is_slide'):
        result.update(is_slide=True, crop_size=test_config['crop_size'], stride=test_config['stride'])
    return result


def network_options(args: argparse.Namespace) -> dict[str, Any]:
    """Arguments of inference.backends.create from the flags."""
    check_calibration(args)
    return {'backend': args.backend, 'precision': args.precision, 'cache': not args.no_cache,
            'calibration': (args.calibration_images, args.calibration_count)}


def segmenter_options(args: argparse.Namespace) -> dict[str, Any]:
    """Options of inference.segmenter.Segmenter from the flags."""
    names = ['is_slide', 'crop_size', 'stride', 'memory_limit']
    names += ['scales', 'flip_horizontal', 'flip_vertical'] if args.aug else []
    return {**network_options(args), **{name: getattr(args, name) for name in names}}


def warn_unused(args: argparse.Namespace, logger: logging.Logger) -> None:
    """PaddleSeg ignores these flags silently unless --aug_eval / --aug_pred / --is_slide is there."""
    if not args.aug and (args.flip_horizontal or args.flip_vertical or args.scales != [1.0]):
        logger.warning('--scales and flips have no effect without --aug_eval (val.py) or --aug_pred (elsewhere)')
    if not args.is_slide and (args.crop_size or args.stride):
        logger.warning('--crop_size and --stride have no effect without --is_slide')


def describe(args: argparse.Namespace) -> str:
    """Short name of the test-time settings, for file names: '', '_flip', '_slide1024x512', ..."""
    name = ''
    if args.aug:
        name += ''.join(f'_{scale:g}' for scale in args.scales) if args.scales != [1.0] else ''
        name += '_flip' * args.flip_horizontal + '_vflip' * args.flip_vertical
    if args.is_slide:
        name += '_slide' + 'x'.join(map(str, args.crop_size)) + 'by' + 'x'.join(map(str, args.stride))
    return name


def check_writable(folder: str | os.PathLike) -> None:
    """FileError if results cannot be written into a folder; called before the work starts."""
    existing = os.fspath(folder)
    while not os.path.exists(existing):
        existing = os.path.dirname(os.path.abspath(existing))
    if not os.path.isdir(existing) or not os.access(existing, os.W_OK):
        raise FileError(f'{folder}: expected a folder to write results into, found one without write permission; '
                      'change the permission or copy the weights elsewhere')
