"""Makes training labels of auto-labelled extra images: NVIDIA's refinement_final, or what tools/autolabel.py wrote.

    python tools/convert_cityscapes_autolabeling.py --dataset_root data/cityscapes

refinement_final/train_extra/<city>/*_leftImg8bit.png, label ids, becomes convert_autolabelled/<city>/ with the same
name, train ids; the classes are those of dataset_root's dataset.yml or Cityscapes'. Can be interrupted and run
again: what is up to date is not made twice.
"""
import argparse
import sys
from pathlib import Path

if __name__ == '__main__':
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from common import cli
from common.errors import FileError, UserError
from datasets.description import describe
from datasets.pairing import COARSE, find_pairs
from tools.autolabelling.files import SETTINGS, recall
from tools.cityscapes.label_conversion import available_cores, convert_all, describe_folder

SOURCE, TARGET, ENDING = 'refinement_final/train_extra', COARSE.labels, COARSE.label_suffix
LEFTOVER = 'tmp'  # the released archive holds such a folder, which is no city


def find_jobs(root):
    """List of (label ids image, None, train ids image), one per auto-labelled image; the folder tmp is left out."""
    root = Path(root)
    folder = root / SOURCE
    sources = sorted(path for path in folder.glob(f'*/*{ENDING}') if path.parent.name != LEFTOVER)
    if not sources:
        raise FileError(
            f'{folder}: expected label images {SOURCE}/<city>/*{ENDING}, found none (--dataset_root {root}: '
            f'{describe_folder(root)}); extract the auto-labels (refinement_final) there or make them with '
            'tools/autolabel.py')
    return [(path, None, root / TARGET / path.parent.name / path.name) for path in sources]


def check_origin(root, label_set):
    """ValueError where tools/autolabel.py wrote the labels and has not finished, or had other classes in mind."""
    path = Path(root) / SOURCE / SETTINGS
    made = recall(path.parent)
    if made is None:
        return
    if not made['complete']:
        raise UserError(f'{path}: expected finished labels, found those of a tools/autolabel.py that has not ended; '
                         'run its command again first')
    classes = made['settings'].get('classes', {})
    for key, expected in (('names', label_set.names), ('label_ids', label_set.label_ids)):
        if tuple(classes.get(key, ())) != expected:
            raise UserError(f'{path}: expected classes with the {key} of {root}, found others; make the labels with '
                             'a config and weights of the same dataset.yml')


def tell_unpaired(root):
    """Say here already, not when training starts, that an image has no label or a label no image."""
    if (Path(root) / COARSE.images).is_dir():
        try:
            find_pairs(root, COARSE, 'train')
        except ValueError as error:
            print(f'warning: training will refuse this: {error}', file=sys.stderr)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--dataset_root', required=True, help='folder that holds refinement_final')
    parser.add_argument('--num_workers', type=int, default=available_cores(), help='processes (default: all cores)')
    cli.add_debug_flag(parser)
    args = parser.parse_args(argv)
    label_set = describe(args.dataset_root).labels
    check_origin(args.dataset_root, label_set)
    jobs = find_jobs(args.dataset_root)
    for leftover in Path(args.dataset_root).glob(f'refinement_final/**/{LEFTOVER}/'):
        print(f'{leftover}: ignored, it is a leftover in the released archive and no city')
    status = convert_all(jobs, label_set, args.num_workers)
    tell_unpaired(args.dataset_root)
    return status


if __name__ == '__main__':
    cli.run(main)
