"""A comparison as text, JSON, CSV and a page with a chart."""
import csv
import io
import json
from collections.abc import Mapping
from html import escape
from typing import Any, NamedTuple

from common.numbers import finite_or_none
from inference.report import look
from tools.comparing.bootstrap import Difference

FORMATS = ('.json', '.csv', '.html')
MEANS = ('mIoU', 'accuracy')
FEW = 30


class Comparison(NamedTuple):
    """rows: {class, 'mIoU' or 'accuracy': Difference}, the means last."""
    first: str
    second: str
    rows: Mapping[str, Difference]


class Method(NamedTuple):
    images: int
    resamples: int
    seed: int
    level: float

    def words(self, classes: int) -> str:
        text = (f'{100 * self.level:g} % intervals of {self.resamples} resamples of the {self.images} images, seed '
                f'{self.seed}; * where 0 is outside, by chance about {(1 - self.level) * classes:.1f} of {classes} '
                'classes.')
        return text + (f' {self.images} images are few: the intervals are rough.' if self.images < FEW else '')


def verdict(comparison: Comparison) -> str:
    found = comparison.rows['mIoU']
    if found.low != found.low:
        return 'mIoU: undefined'
    what = 'more than noise' if found.beyond else 'not more than noise'
    return (f'mIoU: {100 * found.difference:+.2f} points [{100 * found.low:+.2f}, {100 * found.high:+.2f}], {what}; '
            f'B is better in {100 * found.better:.1f} % of the resamples')


def as_text(comparison: Comparison, method: Method) -> str:
    table = _table(comparison)
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    lines = [f'A: {comparison.first}', f'B: {comparison.second}', '']
    lines += [f'{row[0]:<{widths[0]}}  ' + '  '.join(f'{cell:>{width}}' for cell, width in zip(row[1:], widths[1:]))
              for row in table]
    return '\n'.join([*map(str.rstrip, lines), '', verdict(comparison), method.words(len(comparison.rows) - 2)])


def _table(comparison: Comparison) -> list[list[str]]:
    def percent(value: float, sign: str = '') -> str:
        return f'{100 * value:{sign}.2f}' if value == value else '-'

    rows = [['', 'A', 'B', 'B - A', 'interval', '']]
    for name, found in comparison.rows.items():
        interval = f'[{percent(found.low, "+")}, {percent(found.high, "+")}]' if found.low == found.low else '-'
        rows.append([name, percent(found.first), percent(found.second), percent(found.difference, '+'), interval,
                     '*' if found.beyond else ''])
    return rows


def as_json(comparisons: list[Comparison], method: Method) -> bytes:
    def plain(found: Difference) -> dict[str, Any]:
        values = {key: finite_or_none(value) for key, value in found._asdict().items()}
        return {**values, 'beyond_noise': found.beyond}

    return (json.dumps({**method._asdict(), 'comparisons': [
        {'first': each.first, 'second': each.second, **{name: plain(each.rows[name]) for name in MEANS},
         'classes': {name: plain(found) for name, found in each.rows.items() if name not in MEANS}}
        for each in comparisons]}, indent=1) + '\n').encode()


def as_csv(comparisons: list[Comparison]) -> bytes:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator='\n')
    writer.writerow(['first', 'second', 'name', *(f'{key}' for key in Difference._fields), 'beyond_noise'])
    for each in comparisons:
        for name, found in each.rows.items():
            writer.writerow([each.first, each.second, name, *('' if value != value else value for value in found),
                             int(found.beyond)])
    return file.getvalue().encode()


def as_html(comparisons: list[Comparison], method: Method) -> bytes:
    """A page that needs no network, in the look of the reports."""
    charts = [look.Chart(f'comparison_{i}', f'{each.second} (B) against {each.first} (A)', verdict(each),
                         _figure(each), 90 + 24 * len(each.rows), f'Differences with intervals. {verdict(each)}',
                         _table(each), wide=True) for i, each in enumerate(comparisons)]
    body = (f'<h1>Comparison</h1><p class="soft">{look.text(method.words(len(comparisons[0].rows) - 2))}</p>'
            + look.section('differences', 'Differences of IoU', look.charts(charts),
                           'In points; a filled mark where the interval leaves 0 out.'))
    return look.page('Comparison', {'differences': 'Differences'}, body,
                     {chart.name: chart.figure for chart in charts}, inline=True).encode()


def _figure(comparison: Comparison) -> look.Figure:
    """Differences as marks with intervals, the means on top."""
    names = [*MEANS[:1], *(name for name in comparison.rows if name not in MEANS)]
    found = [comparison.rows[name] for name in names]
    points = [finite_or_none(100 * each.difference) for each in found]
    marks = {'type': 'scatter', 'mode': 'markers', 'x': points, 'y': list(range(len(names))),
             'marker': {'size': 9, 'symbol': ['diamond' if each.beyond else 'diamond-open' for each in found]},
             'error_x': {'type': 'data', 'symmetric': False,
                         'array': [finite_or_none(100 * (each.high - each.difference)) for each in found],
                         'arrayminus': [finite_or_none(100 * (each.difference - each.low)) for each in found]},
             'customdata': [[escape(look.printable(name)), *row[1:5]] for name, row in zip(
                 names, _table(comparison._replace(rows=dict(zip(names, found))))[1:])],
             'hovertemplate': '<b>%{customdata[0]}</b><br>A %{customdata[1]}, B %{customdata[2]}<br>%{customdata[3]} '
                              '%{customdata[4]}<extra></extra>'}
    ticks = [escape(look.printable(name))[:40] for name in names]
    return {'data': [marks], 'layout': {
        'showlegend': False, 'margin': {'l': 8, 'r': 16, 't': 8, 'b': 8},
        'yaxis': {'tickmode': 'array', 'tickvals': list(range(len(names))), 'ticktext': ticks, 'fixedrange': True,
                  'range': [len(names) - 0.5, -0.5], 'zeroline': False, 'automargin': True},
        'xaxis': {'title': {'text': 'B - A, points of IoU'}, 'fixedrange': True, 'zeroline': True}}}
