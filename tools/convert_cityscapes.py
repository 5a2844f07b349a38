"""Makes the training labels of Cityscapes: for every gtFine/*/*/*_gtFine_labelIds.png a *_gtFine_labelTrainIds.png.

    python tools/convert_cityscapes.py --cityscapes_path data/cityscapes

Where a label image is missing it is drawn first, from its *_gtFine_polygons.json. The classes are those of the folder's
dataset.yml, or Cityscapes'. Can be interrupted and run again: what is up to date is not made twice.
"""
import argparse
import sys
from pathlib import Path

if __name__ == '__main__':
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from common import cli
from common.errors import FileError
from datasets.description import describe
from tools.cityscapes.label_conversion import available_cores, convert_all, describe_folder

SOURCE, POLYGONS, TARGET = '_gtFine_labelIds.png', '_gtFine_polygons.json', '_gtFine_labelTrainIds.png'


def find_jobs(root):
    """List of (label ids image, polygons JSON, train ids image), one per annotated image below root/gtFine."""
    folder = Path(root) / 'gtFine'
    stems = {str(path).removesuffix(ending) for ending in (SOURCE, POLYGONS) for path in folder.glob(f'*/*/*{ending}')}
    if not stems:
        raise FileError(
            f'{folder}: expected label images gtFine/<split>/<city>/*{SOURCE}, found none (--cityscapes_path {root}: '
            f'{describe_folder(Path(root))}); extract gtFine_trainvaltest.zip there')
    return [tuple(Path(stem + ending) for ending in (SOURCE, POLYGONS, TARGET)) for stem in sorted(stems)]


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--cityscapes_path', required=True, help='folder that holds gtFine')
    parser.add_argument('--num_workers', type=int, default=available_cores(), help='processes (default: all cores)')
    cli.add_debug_flag(parser)
    args = parser.parse_args(argv)
    jobs = find_jobs(args.cityscapes_path)
    return convert_all(jobs, describe(args.cityscapes_path).labels, args.num_workers)


if __name__ == '__main__':
    cli.run(main)
