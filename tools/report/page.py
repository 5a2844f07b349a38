"""The report of a dataset as an HTML page: one file that needs neither scripts nor a network."""
import base64
import re
from collections.abc import Mapping, Sequence
from html import escape
from math import log10
from typing import Any

from datasets.labels import LabelSet
from tools.report.screen import grouped, percent, printable, split_rows, verdict
from tools.report.statistics import BINS, QUANTILES, RARE_IMAGES, RARE_PIXELS

SHOWN = 200  # problems per kind
DECADES = 5  # on the axis of the class histograms: from 0.001 % to 100 %

STYLE = """
:root { color-scheme: light; --ink: #1c2430; --soft: #5d6878; --line: #dfe4ea; --paper: #f4f6f8; --accent: #3867b7;
  --good: #1a7f4b; --bad: #b3261e; --rare: #a35b00 }
* { box-sizing: border-box }
body { margin: 0; background: var(--paper); color: var(--ink); line-height: 1.45;
  font-size: 15px;
  font-family: system-ui, "Segoe UI", Roboto, "Noto Sans", "Helvetica Neue", "DejaVu Sans", sans-serif }
main { max-width: 1240px; margin: 0 auto; padding: 28px 24px 60px }
h1 { font-size: 26px; margin: 0 0 2px } h2 { font-size: 19px; margin: 34px 0 10px }
h3 { font-size: 15px; margin: 0 0 8px }
p { margin: 6px 0 } .soft { color: var(--soft) } code { font-size: 13px; overflow-wrap: anywhere }
.verdict { margin: 18px 0; padding: 14px 18px; border-radius: 8px; color: white; font-size: 18px; font-weight: 600 }
.good { background: var(--good) } .bad { background: var(--bad) }
.card { background: white; border: 1px solid var(--line); border-radius: 8px; padding: 14px 16px }
.grid { display: grid; gap: 16px; grid-template-columns: repeat(auto-fit, minmax(min(100%, 520px), 1fr)) }
.scroll { overflow-x: auto }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th { text-align: right; font-weight: 600; color: var(--soft); font-size: 13px }
td { text-align: right } th, td { padding: 5px 10px; border-bottom: 1px solid var(--line); white-space: nowrap }
tr:last-child td { border-bottom: 0 } .left { text-align: left } .wrong { color: var(--bad); font-weight: 700 }
svg { display: block; width: 100%; height: auto } svg text { font-size: 12px; fill: var(--ink) }
svg .axis { fill: var(--soft); font-size: 11px } svg .rare { fill: var(--rare); font-weight: 700 }
svg line { stroke: var(--line) } svg .bar { stroke: #0003 }
details.card { margin: 10px 0; border-left: 4px solid var(--bad) } summary { cursor: pointer; font-weight: 600 }
details ul { margin: 8px 0; padding-left: 20px } details li { overflow-wrap: anywhere }
.pictures { display: grid; gap: 12px; grid-template-columns: repeat(auto-fill, minmax(250px, 1fr)) }
figure { margin: 0 } figure img { width: 100%; display: block; border-radius: 6px }
figcaption { font-size: 12px; color: var(--soft); overflow-wrap: anywhere }
.legend { display: flex; flex-wrap: wrap; gap: 4px 14px; font-size: 13px; margin: 0 0 12px }
.legend i { display: inline-block; width: 13px; height: 13px; border-radius: 3px; border: 1px solid #0003;
  margin-right: 5px; vertical-align: -2px }
"""


def to_html(report: Mapping[str, Any], labels: LabelSet, pictures: Sequence[tuple[str, str, bytes]]) -> str:
    """The whole page as text.

    report: what tools.verify_dataset writes as JSON. pictures: [(split, stem, content of a JPEG)].
    """
    title = _text(report['name'])
    labelled = {name: split for name, split in report['splits'].items() if split['labelled_pixels']}
    parts = [
        f'<h1>{title}</h1><p class="soft">{_text(report["root"])} &middot; checked {_text(report["checked"])}</p>',
        f'<div class="verdict {"good" if report["fine"] else "bad"}">{_text(verdict(report).capitalize())}</div>',
        _splits(report), _problems(report),
        _section('Classes', _class_text(labelled), [
            _card(name, _class_chart(split, labels)) for name, split in labelled.items()]),
        _section('Label coverage', 'Images by their share of labelled (not void) pixels.', [
            _card(name, _coverage(split)) for name, split in labelled.items()]),
        _contact_sheet(report, labels, pictures)]
    return ('<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
            f'content="width=device-width, initial-scale=1"><title>{title}</title><style>{STYLE}</style></head>\n'
            '<body><main>\n' + '\n'.join(filter(None, parts)) + '\n</main></body></html>\n')


def _text(value: object) -> str:
    return escape(printable(value))


def _code(value: object) -> str:
    return re.sub('`([^`]*)`', r'<code>\1</code>', _text(value))


def _section(title: str, text: str, cards: Sequence[str]) -> str:
    return f'<h2>{title}</h2><p class="soft">{text}</p><div class="grid">{"".join(cards)}</div>' if cards else ''


def _card(title: str, content: str) -> str:
    return f'<div class="card"><h3>{_text(title)}</h3>{content}</div>'


def _splits(report: Mapping[str, Any]) -> str:
    header, *rows = split_rows(report)

    def cell(column: int, text: str, tag: str = 'td') -> str:
        wrong = header[column] == 'problems' and text not in ('0', 'problems')
        kind = 'left' if column in (0, 5) else 'wrong' if wrong else ''
        return f'<{tag} class="{kind}">{_text(text)}</{tag}>'

    table = ''.join('<tr>' + ''.join(cell(i, text, tag) for i, text in enumerate(row)) + '</tr>'
                    for tag, row in [('th', header), *(('td', row) for row in rows)])
    notes = ''.join(f'<li>{_text(note)}</li>' for note in report['notes'])
    return (f'<h2>Splits</h2><div class="card scroll"><table>{table}</table></div>'
            + (f'<ul class="soft">{notes}</ul>' if notes else ''))


def _problems(report: Mapping[str, Any]) -> str:
    parts = []
    for heading, fix, group in grouped(report['problems']):
        items = ''.join(f'<li><code>{_text(problem["file"])}</code>: {_text(problem["found"])}</li>'
                        for problem in group[:SHOWN])
        if len(group) > SHOWN:
            items += f'<li>and {len(group) - SHOWN} more, in dataset_report.json</li>'
        is_open = ' open' if len(group) <= 10 else ''
        parts.append(f'<details class="card"{is_open}><summary>{_text(heading)}</summary><ul>{items}</ul>'
                     f'<p><b>Fix:</b> {_code(fix)}</p></details>')
    return f'<h2>What is wrong</h2>{"".join(parts)}' if parts else ''


def _class_text(labelled: Mapping[str, Any]) -> str:
    text = (f'Share of the labelled pixels (logarithmic) and images that show the class. Rare: less than '
            f'{RARE_PIXELS:.0%} of the pixels or in less than {RARE_IMAGES:.0%} of the images.')
    rare = labelled.get('train', {}).get('rare')
    return text + (f' Rare in train: {_text(", ".join(rare))}; class_uniform in the config shows them more often.'
                   if rare else '')


def _class_chart(split: Mapping[str, Any], labels: LabelSet) -> str:
    """Bars on a logarithmic axis, one per class, as SVG."""
    left, width, row, top = 116, 210, 20, 20
    height = top + row * len(split['classes']) + 4
    parts = []
    for decade in range(DECADES + 1):
        x = left + width * decade / DECADES
        parts.append(f'<line x1="{x:g}" x2="{x:g}" y1="{top - 4}" y2="{height - 4}"/>'
                     + _svg_text(x, 11, f'{10.0 ** (decade + 2 - DECADES):g}%', 'middle', 'axis'))
    for i, ((name, entry), color) in enumerate(zip(split['classes'].items(), labels.palette)):
        y = top + row * i
        length = width * max(0, 1 + log10(entry['share']) / DECADES) if entry['share'] else 0
        kind = 'rare' if entry['rare'] or not entry['images'] else ''
        share, count = percent(entry['share']), f'{entry["images"]} images{", rare" if kind else ""}'
        if not entry['images']:
            share, count = '', 'absent'
        short = name if len(name) <= 17 else name[:16] + '…'
        if length:
            parts.append(f'<rect class="bar" x="{left}" y="{y + 3}" width="{max(length, 1):.1f}" height="{row - 6}" '
                         f'fill="rgb{tuple(color)}"><title>{_text(name)}: {entry["pixels"]} pixels</title></rect>')
        parts.append(_svg_text(left - 8, y + 14, short, 'end', kind, title=name)
                     + _svg_text(left + width + 56, y + 14, share, 'end', kind)
                     + _svg_text(left + width + 66, y + 14, count, 'start', kind))
    return f'<svg viewBox="0 0 520 {height}" role="img">{"".join(parts)}</svg>'


def _svg_text(x: float, y: float, text: object, anchor: str, kind: str = '', title: str = '') -> str:
    title = f'<title>{_text(title)}</title>' if title else ''
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" class="{kind}">{_text(text)}{title}</text>'


def _coverage(split: Mapping[str, Any]) -> str:
    """Histogram of the images as SVG, and the quartiles in words."""
    left, width, top, tall = 44, 460, 8, 110
    counts = split['coverage_histogram']
    highest = max(counts)
    step = width / BINS
    parts = [f'<line x1="{left}" x2="{left + width}" y1="{top + tall}" y2="{top + tall}"/>',
             _svg_text(left - 6, top + 9, highest, 'end', 'axis'), _svg_text(left - 6, top + tall, 0, 'end', 'axis')]
    for i, count in enumerate(counts):
        if count:
            bar = max(1.5, tall * count / highest)
            parts.append(f'<rect x="{left + i * step + 1:.1f}" y="{top + tall - bar:.1f}" width="{step - 2:.1f}" '
                         f'height="{bar:.1f}" fill="#3867b7"><title>{i / BINS:.0%} to {(i + 1) / BINS:.0%}: {count} '
                         'images</title></rect>')
    parts += [_svg_text(left + width * share / 100, top + tall + 15, f'{share}%', 'middle', 'axis')
              for share in (0, 25, 50, 75, 100)]
    coverage = split['coverage']
    least, low, middle, high, most = (percent(coverage[key]) for key in QUANTILES)
    size = ' x '.join(f'{side:g}' for side in split['median_size']) if split['median_size'] else '-'
    return (f'<svg viewBox="0 0 520 {top + tall + 22}" role="img">{"".join(parts)}</svg>'
            f'<p>{percent(coverage["pixels"])} of all pixels are labelled; of an image at least {least}, half of them '
            f'between {low} and {high} (median {middle}), at most {most}.</p>'
            f'<p class="soft">Median image: {size} (height x width), {split["median_classes"]:g} classes; of median '
            f'coverage: <code>{_text(split["median_image"])}</code></p>')


def _contact_sheet(report: Mapping[str, Any], labels: LabelSet, pictures: Sequence[tuple[str, str, bytes]]) -> str:
    if not pictures:
        return ''
    legend = ''.join(f'<span><i style="background:rgb{tuple(color)}"></i>{_text(name)}</span>'
                     for name, color in zip(labels.names, labels.palette))
    parts = [f'<h2>Pictures</h2><p class="soft">Evenly spread over each split, under their labels; void is dark.</p>'
             f'<div class="legend">{legend}</div>']
    for split in report['splits']:
        # sync: otherwise a busy browser may print or take a screenshot before it shows the pictures.
        figures = [f'<figure><img alt="" decoding="sync" '
                   f'src="data:image/jpeg;base64,{base64.b64encode(data).decode()}">'
                   f'<figcaption>{_text(stem)}</figcaption></figure>' for name, stem, data in pictures if name == split]
        if figures:
            parts.append(f'<h3>{_text(split)}</h3><div class="pictures">{"".join(figures)}</div>')
    return '\n'.join(parts)
