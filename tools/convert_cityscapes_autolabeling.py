"""Makes training labels of the auto-labelled extra images of Cityscapes (NVIDIA's refinement_final, in label ids).

    python tools/convert_cityscapes_autolabeling.py --dataset_root data/cityscapes

refinement_final/train_extra/<city>/*_leftImg8bit.png becomes convert_autolabelled/<city>/ with the same name. Can be
interrupted and run again: what is up to date is not made twice.
"""
import argparse
import sys
from pathlib import Path

if __name__ == '__main__':
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from datasets.labels import CITYSCAPES
from engine import cli
from tools.convert_labels import available_cores, convert_all, describe_folder

SOURCE, TARGET, ENDING = 'refinement_final/train_extra', 'convert_autolabelled', '_leftImg8bit.png'
LEFTOVER = 'tmp'  # the released archive holds such a folder, which is no city


def find_jobs(root):
    """List of (label ids image, None, train ids image), one per auto-labelled image; the folder tmp is left out."""
    root = Path(root)
    folder = root / SOURCE
    sources = sorted(path for path in folder.glob(f'*/*{ENDING}') if path.parent.name != LEFTOVER)
    if not sources:
        raise FileNotFoundError(
            f'{folder}: expected label images {SOURCE}/<city>/*{ENDING}, found none (--dataset_root {root}: '
            f'{describe_folder(root)}); extract the auto-labels (refinement_final) there')
    return [(path, None, root / TARGET / path.parent.name / path.name) for path in sources]


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--dataset_root', required=True, help='folder that holds refinement_final')
    parser.add_argument('--num_workers', type=int, default=available_cores(), help='processes (default: all cores)')
    cli.add_debug_flag(parser)
    args = parser.parse_args(argv)
    jobs = find_jobs(args.dataset_root)
    for leftover in Path(args.dataset_root).glob(f'refinement_final/**/{LEFTOVER}/'):
        print(f'{leftover}: ignored, it is a leftover in the released archive and no city')
    return convert_all(jobs, CITYSCAPES, args.num_workers)


if __name__ == '__main__':
    cli.run(main)
