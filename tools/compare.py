"""Compare evaluations of the same images: is the difference more than noise?

    python tools/compare.py a/evaluation_x.json b/evaluation_x.json --save comparison.html

Each further evaluation (B) is compared with the first (A), by class and mIoU, with bootstrap confidence intervals over
the images.
"""
import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == '__main__':
    from shared import repository
    repository.import_from_root()

from common import cli
from common.atomic_io import write_atomically
from common.errors import UserError
from common.flags import check_writable


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = cli.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('evaluations', nargs='+', metavar='JSON', help='written by val.py; the first is the baseline')
    parser.add_argument('--resamples', type=int, default=10000, help='of the images (default: 10000)')
    parser.add_argument('--level', type=float, default=0.95, help='of the intervals, 0-1 (default: 0.95)')
    parser.add_argument('--seed', type=int, default=0, help='the same seed gives the same intervals (default: 0)')
    parser.add_argument('--save', nargs='+', default=[], metavar='FILE',
                        help='write the comparison as .json, .csv, or .html with a chart')
    cli.add_debug_flag(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    from tools.comparing import bootstrap, documents, output

    if len(args.evaluations) < 2:
        raise UserError(f'expected at least two evaluations, found {args.evaluations[0]} alone; name another')
    if args.resamples < 100:
        raise UserError(f'--resamples: expected at least 100, found {args.resamples}; 10000 is usual')
    if not 0 < args.level < 1:
        raise UserError(f'--level: expected a number between 0 and 1, found {args.level}; 0.95 is usual')
    if args.seed < 0:
        raise UserError(f'--seed: expected at least 0, found {args.seed}; correct it')
    for path in map(Path, args.save):
        if path.suffix not in output.FORMATS:
            raise UserError(f'--save {path}: expected a name that ends in {", ".join(output.FORMATS)}; rename it')
        check_writable(path.parent)
    first, *others = loaded = [documents.load(path) for path in args.evaluations]
    documents.check_pairs(first, others)
    whole = [bootstrap.scores(each.counts.sum(axis=0)) for each in loaded]
    spread = bootstrap.resampled([each.counts for each in loaded], args.resamples, args.seed)

    def compare(i: int) -> output.Comparison:
        def of(key: str, k: int | None = None) -> bootstrap.Difference:
            scores = [getattr(part[j], key) for part in (whole, spread) for j in (0, i)]
            a, b, of_a, of_b = scores if k is None else (score[..., k] for score in scores)
            return bootstrap.difference(a, b, of_a, of_b, args.level)

        return output.Comparison(first.path, loaded[i].path, {name: of('iou', k) for k, name in enumerate(first.names)},
                                 {'mIoU': of('miou'), 'accuracy': of('accuracy')})

    comparisons = [compare(i) for i in range(1, len(loaded))]
    method = output.Method(len(first.images), args.resamples, args.seed, args.level)
    print('\n\n'.join(output.as_text(each, method) for each in comparisons))
    for path in map(Path, args.save):
        write_atomically(path, {'.json': lambda: output.as_json(comparisons, method),
                                '.csv': lambda: output.as_csv(comparisons),
                                '.html': lambda: output.as_html(comparisons, method)}[path.suffix]())
        print(f'written: {path}', file=sys.stderr)


if __name__ == '__main__':
    cli.run(main)
