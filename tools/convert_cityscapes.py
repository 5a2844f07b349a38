"""Make the training labels of Cityscapes: a *_gtFine_labelTrainIds.png for every gtFine/*/*/*_gtFine_labelIds.png.

    python tools/convert_cityscapes.py --cityscapes_path data/cityscapes

A missing label image is drawn first, from its *_gtFine_polygons.json. The classes are those of the folder's dataset.yml
or, without one, Cityscapes'. Safe to interrupt: the next run continues and skips files that are up to date.
"""
import os
from collections.abc import Sequence
from pathlib import Path

if __name__ == '__main__':
    from shared import repository
    repository.import_from_root()

from common import cli
from common.errors import FileError
from datasets.description import describe
from tools.cityscapes.label_conversion import Job, convert_all
from tools.shared.folders import describe_folder
from tools.shared.workers import add_num_workers_flag

SOURCE, POLYGONS, TARGET = '_gtFine_labelIds.png', '_gtFine_polygons.json', '_gtFine_labelTrainIds.png'


def find_jobs(root: str | os.PathLike) -> list[Job]:
    """One job per annotated image below root/gtFine. Raises FileError if there is none."""
    folder = Path(root) / 'gtFine'
    stems = {str(path).removesuffix(suffix) for suffix in (SOURCE, POLYGONS) for path in folder.glob(f'*/*/*{suffix}')}
    if not stems:
        raise FileError(
            f'{folder}: expected label images gtFine/<split>/<city>/*{SOURCE}, found none (--cityscapes_path {root}: '
            f'{describe_folder(Path(root))}); extract gtFine_trainvaltest.zip there')
    return [(Path(stem + SOURCE), Path(stem + POLYGONS), Path(stem + TARGET)) for stem in sorted(stems)]


def main(argv: Sequence[str] | None = None) -> int:
    parser = cli.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--cityscapes_path', required=True, help='folder that holds gtFine')
    add_num_workers_flag(parser)
    cli.add_debug_flag(parser)
    args = parser.parse_args(argv)
    jobs = find_jobs(args.cityscapes_path)
    return convert_all(jobs, describe(args.cityscapes_path).labels, args.num_workers)


if __name__ == '__main__':
    cli.run(main)
