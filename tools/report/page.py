"""The report of a dataset as an HTML page: one file that needs no network, in the look of inference.report."""
import base64
import re
from collections.abc import Mapping, Sequence
from typing import Any

from datasets.labels import LabelSet
from inference.report import figures, look
from inference.report.look import Chart, text
from tools.report.screen import grouped, percent, split_rows, verdict
from tools.report.statistics import BINS, QUANTILES, RARE_IMAGES, RARE_PIXELS

SHOWN = 200  # problems per kind
DECADES = 5  # on the axis of the class charts: from 0.001 % to 100 %


def to_html(report: Mapping[str, Any], labels: LabelSet, pictures: Sequence[tuple[str, str, bytes]]) -> str:
    """The whole page as text.

    report: what tools.verify_dataset writes as JSON. pictures: [(split, stem, content of a JPEG)].
    """
    labelled = {name: split for name, split in report['splits'].items() if split['labelled_pixels']}
    classes = [_class_chart(name, split, labels) for name, split in labelled.items()]
    coverage = [_coverage(name, split) for name, split in labelled.items()]
    parts: dict[str, tuple[str, str]] = {
        'splits': ('Splits', _splits(report)),
        'problems': ('What is wrong', _problems(report)),
        'classes': ('Classes', look.section('classes', 'Classes', look.charts(classes),
                                            _class_text(labelled)) if classes else ''),
        'coverage': ('Coverage', look.section(
            'coverage', 'Label coverage', look.charts(coverage),
            'Images by their share of labelled (not void) pixels.') if coverage else ''),
        'pictures': ('Pictures', _contact_sheet(report, labels, pictures))}
    parts = {name: part for name, part in parts.items() if part[1]}
    top = (f'<h1>{text(report["name"])}</h1><p class="soft">{text(report["root"])} &middot; checked '
           f'{text(report["checked"])}</p>'
           f'<div class="verdict {"good" if report["fine"] else "bad"}">{text(verdict(report).capitalize())}</div>')
    return look.page(report['name'], {name: title for name, (title, _) in parts.items()},
                     '\n'.join([top, *(content for _, content in parts.values())]),
                     {chart.name: chart.figure for chart in [*classes, *coverage]}, inline=True)


def _code(value: object) -> str:
    return re.sub('`([^`]*)`', r'<code>\1</code>', text(value))


def _splits(report: Mapping[str, Any]) -> str:
    notes = ''.join(f'<li>{text(note)}</li>' for note in report['notes'])
    table = look.html_table(split_rows(report), left=(0, 5), marked='problems')
    return look.section('splits', 'Splits', f'<div class="card scroll">{table}</div>'
                        + (f'<ul class="soft">{notes}</ul>' if notes else ''))


def _problems(report: Mapping[str, Any]) -> str:
    parts = []
    for heading, fix, group in grouped(report['problems']):
        items = ''.join(f'<li><code>{text(problem["file"])}</code>: {text(problem["found"])}</li>'
                        for problem in group[:SHOWN])
        if len(group) > SHOWN:
            items += f'<li>and {len(group) - SHOWN} more, in dataset_report.json</li>'
        is_open = ' open' if len(group) <= 10 else ''
        parts.append(f'<details class="card problem"{is_open}><summary>{text(heading)}</summary><ul>{items}</ul>'
                     f'<p><b>Fix:</b> {_code(fix)}</p></details>')
    return look.section('problems', 'What is wrong', ''.join(parts)) if parts else ''


def _class_text(labelled: Mapping[str, Any]) -> str:
    words = (f'Share of the labelled pixels (logarithmic) and images that show the class. Rare: less than '
             f'{RARE_PIXELS:.0%} of the pixels or in less than {RARE_IMAGES:.0%} of the images.')
    rare = labelled.get('train', {}).get('rare')
    return words + (f' Rare in train: {", ".join(rare)}; class_uniform in the config shows them more often.'
                    if rare else '')


def _class_chart(name: str, split: Mapping[str, Any], labels: LabelSet) -> Chart:
    """Bars on a logarithmic axis, one per class."""
    classes = split['classes']
    words = [f'{percent(entry["share"])} · {entry["images"]}{" rare" * entry["rare"]}'
             if entry['images'] else 'absent' for entry in classes.values()]
    axis = {'type': 'log', 'range': [-DECADES, 0], 'tickvals': [10.0 ** -i for i in range(DECADES + 1)],
            'ticktext': ['' if i % 2 == 0 else f'{10.0 ** (2 - i):g}%' for i in range(DECADES + 1)],
            'side': 'top', 'tickangle': 0}
    figure = figures.class_bars(list(classes), labels.palette, [entry['share'] or None for entry in classes.values()],
                                words, [f'{entry["pixels"]:,} pixels' for entry in classes.values()], axis,
                                in_margin=118)
    rows = [('class', 'pixels', 'share of pixels', 'images', 'share of images', ''),
            *((key, f'{entry["pixels"]:,}', percent(entry['share']), str(entry['images']),
               percent(entry['image_share']), 'rare' if entry['rare'] else '' if entry['images'] else 'absent')
              for key, entry in classes.items())]
    return Chart(f'classes_{name}', name, 'Share of the labelled pixels · images', figure,
                 60 + figures.ROW * len(classes), f'Bars: share of the labelled pixels of {name} per class', rows)


def _coverage(name: str, split: Mapping[str, Any]) -> Chart:
    """Histogram of the images, and the quartiles in words."""
    coverage = split['coverage']
    least, low, middle, high, most = (percent(coverage[key]) for key in QUANTILES)
    size = ' x '.join(f'{side:g}' for side in split['median_size']) if split['median_size'] else '-'
    note = (f'{percent(coverage["pixels"])} of all pixels are labelled; of an image at least {least}, half of them '
            f'between {low} and {high} (median {middle}), at most {most}. Median image: {size} (height x width), '
            f'{split["median_classes"]:g} classes; of median coverage: {split["median_image"]}')
    figure = figures.histogram([i / BINS for i in range(BINS + 1)], split['coverage_histogram'], 'labelled pixels',
                               'images')
    return Chart(f'coverage_{name}', name, note, figure, 210, f'Histogram: images of {name} by label coverage')


def _contact_sheet(report: Mapping[str, Any], labels: LabelSet, pictures: Sequence[tuple[str, str, bytes]]) -> str:
    if not pictures:
        return ''
    parts = [look.swatches(labels.names, labels.palette)]
    for split in report['splits']:
        # sync: otherwise a busy browser may print or take a screenshot before it shows the pictures.
        found = [f'<figure><img alt="" decoding="sync" '
                 f'src="data:image/jpeg;base64,{base64.b64encode(data).decode()}">'
                 f'<figcaption>{text(stem)}</figcaption></figure>' for name, stem, data in pictures if name == split]
        if found:
            parts.append(f'<h3>{text(split)}</h3><div class="pictures">{"".join(found)}</div>')
    return look.section('pictures', 'Pictures', '\n'.join(parts),
                        'Evenly spread over each split, under their labels; void is dark.')
