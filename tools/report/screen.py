"""The report of a dataset on the terminal, and the texts that it shares with the HTML page."""
import os
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

from inference.report.look import printable
from tools.report.scan import KINDS
from tools.report.statistics import RARE_IMAGES, RARE_PIXELS

SHOWN = 10  # problems per kind; the JSON file has all of them


def say(text: str) -> None:
    """Print, escaping the characters that the terminal cannot show."""
    encoding = sys.stdout.encoding or 'utf-8'
    print(text.encode(encoding, 'backslashreplace').decode(encoding), flush=True)


def verdict(report: Mapping[str, Any]) -> str:
    """The result in one line."""
    images = sum(split['images'] for split in report['splits'].values())
    if report['fine']:
        return f'fine: {images} images, nothing wrong'
    problems = len(report['problems'])
    kinds = len({problem['kind'] for problem in report['problems']})
    return f'{problems} problem{"s" * (problems > 1)} of {kinds} kind{"s" * (kinds > 1)} in {images} images'


def grouped(problems: Iterable[dict[str, str]]) -> list[tuple[str, str, list[dict[str, str]]]]:
    """[(heading, fix, problems)], grouped by kind and split, in the order of KINDS."""
    order = list(KINDS)
    problems = sorted(problems, key=lambda problem: order.index(problem['kind']))
    groups = [list(group) for _, group in groupby(problems, lambda problem: (problem['kind'], problem['split']))]
    return [(f'{group[0]["split"]}: {KINDS[group[0]["kind"]]} ({len(group)})', group[0]['fix'], group)
            for group in groups]


def split_rows(report: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The table of splits: a header, then a row of texts per split."""
    rows: list[tuple[str, ...]] = [
        ('split', 'images', 'expected', 'labels', 'problems', 'height x width', 'classes', 'labelled pixels')]
    for name, split in report['splits'].items():
        sizes = list(split['sizes'])
        size = sizes[0].replace('x', ' x ') if sizes else '-'
        if len(sizes) > 1:
            size = f'{len(sizes)} sizes, median {" x ".join(f"{side:g}" for side in split["median_size"])}'
        classes = sum(entry['images'] > 0 for entry in split['classes'].values())
        coverage = split['coverage']
        rows.append((name, str(split['images']), '-' if split['expected'] is None else str(split['expected']),
                     str(split['labels']), str(split['problems']), size,
                     f'{classes}/{len(split["classes"])}' if coverage else '-',
                     percent(coverage['pixels']) if coverage else '-'))
    return rows


def class_rows(report: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The table of classes: a header, then their shares of pixels and images in every labelled split, rare marked."""
    splits = {name: split['classes'] for name, split in report['splits'].items() if split['labelled_pixels']}
    rows: list[tuple[str, ...]] = [('class', *splits)]
    for name in report['classes']:
        cells = []
        for classes in splits.values():
            entry = classes[name]
            mark = 'absent' if not entry['images'] else 'rare' if entry['rare'] else ''
            cells.append(f'{percent(entry["share"])} {percent(entry["image_share"]):>7} {mark:6}')
        rows.append((printable(name), *cells))
    return rows if splits else []


def percent(share: float) -> str:
    """'12.3%', with more digits for rare classes."""
    return f'{100 * share:.{1 if share >= 0.01 or not share else 2 if share >= 0.0001 else 4}f}%'


def say_report(report: Mapping[str, Any], folder: str) -> None:
    """Print the tables, the problems (the first ones of each kind), the notes, and the verdict."""
    say(f'\n{printable(report["name"])} in {printable(report["root"])}\n')
    _say_table(split_rows(report), left={0, 5})
    classes = class_rows(report)
    if classes:
        say(f'\nshare of labelled pixels, share of images; rare: less than {RARE_PIXELS:.0%} of the pixels or in less '
            f'than {RARE_IMAGES:.0%} of the images')
        _say_table(classes, left={0})
    for heading, fix, group in grouped(report['problems']):
        say(f'\n{heading}')
        for problem in group[:SHOWN]:
            say(f'  {printable(problem["file"])}: {printable(problem["found"])}')
        if len(group) > SHOWN:
            say(f'  ... and {len(group) - SHOWN} more, in dataset_report.json')
        say(f'  fix: {printable(fix)}')
    if report['notes']:
        say('')
    for note in report['notes']:
        say(f'note: {printable(note)}')
    say(f'\n{verdict(report)}; see {printable(os.path.join(folder, "dataset_report.html"))}')


def _say_table(rows: Sequence[Sequence[str]], left: Collection[int]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        cells = [cell.ljust(width) if i in left else cell.rjust(width) for i, (cell, width) in
                 enumerate(zip(row, widths))]
        say('  '.join(cells).rstrip())
