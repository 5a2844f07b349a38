"""What each idea of the recipe is worth, on 174 street images and a CPU: trains, scores, and fills docs/results.md.

    python -m benchmarks.street_study [--data data/street] [--runs output/street_study] [--only probes ideas ...]

The images are in the layout of Cityscapes, their labels converted (docs/results.md). Everything takes days on two
cores, and every step survives being killed: start the same command again, and it continues the step that was running
and skips those that have a record in <runs>/records. Delete a record and the folder of the same name to run a step
again, also after a change of its config file, which goes unnoticed otherwise. `--list` shows what is done; `--report`
only fills the tables. One thread suffices for networks of this size: OMP_NUM_THREADS=1 leaves the others alone.
"""
import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from benchmarks.street import experiments, steps, tables
from common import cli
from common.atomic_io import FolderLock, write_atomically
from common.errors import FileError

PAGE, CURVE = 'docs/results.md', 'docs/images/street_curve.svg'


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = cli.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--data', default=steps.DATA, help='the street images, labels converted')
    parser.add_argument('--runs', default=steps.RUNS, help='folder of runs and records')
    parser.add_argument('--only', nargs='+', default=[], metavar='NAME',
                        help='these tables or steps of --list, and what they need (default: all)')
    parser.add_argument('--list', action='store_true', help='show which steps are done, and run nothing')
    parser.add_argument('--report', action='store_true', help=f'write {PAGE} and {CURVE}, and run nothing')
    cli.add_debug_flag(parser)
    args = parser.parse_args(argv)
    every = experiments.steps()
    groups = sorted({step.group for step in every})
    for name in args.only:
        if name not in groups and name not in {step.name for step in every}:
            parser.error(f'--only {name}: expected {", ".join(groups)}, or a step that --list shows')
    return args


def report(study: steps.Study) -> None:
    """Fill the tables of the page, and draw the curve, from the records."""
    records = study.records()
    page = Path(PAGE)
    if not page.is_file():
        raise FileError(f'{PAGE}: expected the page with the tables, found nothing; start in the folder of the '
                        'repository')
    write_atomically(page, tables.fill(page.read_text(encoding='utf-8'), records).encode())
    if 'main' in records:  # otherwise the curve stays that of another machine, as the tables do
        write_atomically(CURVE, tables.curves(records).encode())


def main(argv: Sequence[str]) -> None:
    args = parse_args(argv)
    logging.basicConfig(level=logging.INFO, format='%(asctime)s %(message)s', datefmt='%Y-%m-%d %H:%M:%S')
    study = steps.Study(Path(args.data), Path(args.runs))
    every = experiments.steps()
    if args.list:
        for step in steps.selected(every, args.only):
            print(f'{"done" if study.record(step.name) else "-":<5} {step.group:<10} {step.name}')
        return
    if not args.report:
        if not (study.data / 'gtFine').is_dir():
            raise FileError(f'--data {study.data}: expected street images in the layout of Cityscapes, found no folder '
                            'gtFine; see docs/results.md')
        with FolderLock(study.runs, '--runs'):
            steps.run(study, every, args.only)
    report(study)


if __name__ == '__main__':
    cli.run(main)
