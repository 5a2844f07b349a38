"""Make training labels of auto-labelled extra images: NVIDIA's refinement_final, or the output of tools/autolabel.py.

    python tools/convert_cityscapes_autolabeling.py --dataset_root data/cityscapes

The label ids of refinement_final/train_extra/<city>/*_leftImg8bit.png are written as train ids, under the same name,
to convert_autolabelled/<city>/. The classes are those of dataset_root's dataset.yml or, without one, Cityscapes'. Safe
to interrupt: the next run continues and skips files that are up to date.
"""
import os
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == '__main__':
    from shared import repository
    repository.import_from_root()

from common import cli
from common.errors import FileError, UserError
from datasets.description import describe
from datasets.labels import LabelSet
from datasets.pairing import COARSE, find_pairs
from tools.autolabelling.files import SETTINGS, recall
from tools.cityscapes.archives import LEFTOVER
from tools.cityscapes.label_conversion import Job, convert_all
from tools.shared.folders import describe_folder
from tools.shared.workers import add_num_workers_flag

SOURCE, TARGET, SUFFIX = 'refinement_final/train_extra', COARSE.labels, COARSE.label_suffix


def find_jobs(root: str | os.PathLike) -> list[Job]:
    """One job per auto-labelled image; the folder tmp is left out. Raises FileError if there is none."""
    root = Path(root)
    folder = root / SOURCE
    sources = sorted(path for path in folder.glob(f'*/*{SUFFIX}') if path.parent.name != LEFTOVER)
    if not sources:
        raise FileError(
            f'{folder}: expected label images {SOURCE}/<city>/*{SUFFIX}, found none (--dataset_root {root}: '
            f'{describe_folder(root)}); extract the auto-labels (refinement_final) there or make them with '
            'tools/autolabel.py')
    return [(path, None, root / TARGET / path.parent.name / path.name) for path in sources]


def check_origin(root: str | os.PathLike, label_set: LabelSet) -> None:
    """Raise UserError if tools/autolabel.py made the labels but has not finished, or made them for other classes."""
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


def warn_unpaired(root: str | os.PathLike) -> None:
    """Warn now, rather than when training starts, that an image has no label or a label no image."""
    if (Path(root) / COARSE.images).is_dir():
        try:
            find_pairs(root, COARSE, 'train')
        except ValueError as error:
            print(f'warning: training will refuse this: {error}', file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    parser = cli.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--dataset_root', required=True, help='folder that holds refinement_final')
    add_num_workers_flag(parser)
    cli.add_debug_flag(parser)
    args = parser.parse_args(argv)
    label_set = describe(args.dataset_root).labels
    check_origin(args.dataset_root, label_set)
    jobs = find_jobs(args.dataset_root)
    for leftover in Path(args.dataset_root).glob(f'refinement_final/**/{LEFTOVER}/'):
        print(f'{leftover}: ignored, it is a leftover in the released archive and no city')
    status = convert_all(jobs, label_set, args.num_workers)
    warn_unpaired(args.dataset_root)
    return status


if __name__ == '__main__':
    cli.run(main)
