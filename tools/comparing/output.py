"""A comparison as text, JSON, CSV and a page with a chart."""
import csv
import io
import json
from collections.abc import Iterable, Mapping
from html import escape
from typing import Any, NamedTuple

from common.numbers import finite_or_none
from inference.report import look
from tools.comparing.bootstrap import Difference

FORMATS = ('.json', '.csv', '.html')
FEW = 30


class Comparison(NamedTuple):
    """first, second: paths. classes: of each class's IoU. means: 'mIoU' and 'accuracy'."""
    first: str
    second: str
    classes: Mapping[str, Difference]
    means: Mapping[str, Difference]


class Method(NamedTuple):
    images: int
    resamples: int
    seed: int
    level: float

    def words(self, comparison: Comparison) -> str:
        classes = sum(found.low == found.low for found in comparison.classes.values())
        text = (f'{100 * self.level:g} % intervals of {self.resamples} resamples of the {self.images} images, seed '
                f'{self.seed}; * where 0 is outside, by chance about {(1 - self.level) * classes:.1f} of {classes} '
                'classes.')
        return text + (f' {self.images} images are few: the intervals are rough.' if self.images < FEW else '')


def verdict(comparison: Comparison) -> str:
    found = comparison.means['mIoU']
    if found.low != found.low:
        return 'mIoU: undefined'
    what = 'more than noise' if found.beyond else 'not more than noise'
    return (f'mIoU: {100 * found.difference:+.2f} points [{100 * found.low:+.2f}, {100 * found.high:+.2f}], {what}; '
            f'B is better in {100 * found.better:.1f} % of the resamples')


def as_text(comparison: Comparison, method: Method) -> str:
    table = _table([*comparison.classes.items(), *comparison.means.items()])
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    lines = [f'A: {comparison.first}', f'B: {comparison.second}', '']
    lines += [f'{row[0]:<{widths[0]}}  ' + '  '.join(f'{cell:>{width}}' for cell, width in zip(row[1:], widths[1:]))
              for row in table]
    return '\n'.join([*map(str.rstrip, lines), '', verdict(comparison), method.words(comparison)])


def _table(items: Iterable[tuple[str, Difference]]) -> list[list[str]]:
    def percent(value: float, sign: str = '') -> str:
        return f'{100 * value:{sign}.2f}' if value == value else '-'

    rows = [['', 'A', 'B', 'B - A', 'interval', '']]
    for name, found in items:
        interval = f'[{percent(found.low, "+")}, {percent(found.high, "+")}]' if found.low == found.low else '-'
        rows.append([name, percent(found.first), percent(found.second), percent(found.difference, '+'), interval,
                     '*' if found.beyond else ''])
    return rows


def as_json(comparisons: list[Comparison], method: Method) -> bytes:
    def plain(found: Difference) -> dict[str, Any]:
        values = {key: finite_or_none(value) for key, value in found._asdict().items()}
        return {**values, 'beyond_noise': found.beyond}

    return (json.dumps({**method._asdict(), 'comparisons': [
        {'first': each.first, 'second': each.second, **{name: plain(found) for name, found in each.means.items()},
         'classes': {name: plain(found) for name, found in each.classes.items()}}
        for each in comparisons]}, indent=1) + '\n').encode()


def as_csv(comparisons: list[Comparison]) -> bytes:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator='\n')
    columns = [key if key not in ('first', 'second') else f'{key}_score' for key in Difference._fields]
    writer.writerow(['first', 'second', 'kind', 'name', *columns, 'beyond_noise'])
    for each in comparisons:
        for kind, name, found in [*(('class', *item) for item in each.classes.items()),
                                  *(('mean', *item) for item in each.means.items())]:
            writer.writerow([each.first, each.second, kind, name, *('' if value != value else value for value in found),
                             int(found.beyond)])
    return file.getvalue().encode()


def as_html(comparisons: list[Comparison], method: Method) -> bytes:
    """A page that needs no network, in the look of the reports."""
    charts = [look.Chart(f'comparison_{i}', f'{each.second} (B) against {each.first} (A)', verdict(each),
                         _figure(each), 120 + 24 * len(each.classes), f'Differences with intervals. {verdict(each)}',
                         _table([*each.means.items(), *each.classes.items()]), wide=True)
              for i, each in enumerate(comparisons)]
    body = (f'<h1>Comparison</h1><p class="soft">{look.text(method.words(comparisons[0]))}</p>'
            + look.section('differences', 'Differences of IoU', look.charts(charts),
                           'In points; a filled mark where the interval leaves 0 out.'))
    return look.page('Comparison', {'differences': 'Differences'}, body,
                     {chart.name: chart.figure for chart in charts}, inline=True).encode()


def _figure(comparison: Comparison) -> look.Figure:
    """Differences as marks with intervals, the mean on top."""
    items = [('mIoU', comparison.means['mIoU']), *comparison.classes.items()]
    found = [each for _, each in items]
    names = [escape(look.printable(name)) for name, _ in items]
    points = [finite_or_none(100 * each.difference) for each in found]
    marks = {'type': 'scatter', 'mode': 'markers', 'x': points, 'y': list(range(len(names))),
             'marker': {'size': 9, 'symbol': ['diamond' if each.beyond else 'diamond-open' for each in found]},
             'error_x': {'type': 'data', 'symmetric': False,
                         'array': [finite_or_none(100 * (each.high - each.difference)) for each in found],
                         'arrayminus': [finite_or_none(100 * (each.difference - each.low)) for each in found]},
             'customdata': [[name, *row[1:5]] for name, row in zip(names, _table(items)[1:])],
             'hovertemplate': '<b>%{customdata[0]}</b><br>A %{customdata[1]}, B %{customdata[2]}<br>%{customdata[3]} '
                              '%{customdata[4]}<extra></extra>'}
    zero = {'type': 'scatter', 'mode': 'lines', 'x': [0, 0], 'y': [-0.5, len(names) - 0.5], 'line': {'dash': 'dash'},
            'hoverinfo': 'skip'}
    return {'data': [marks, zero], 'layout': {
        'showlegend': False, 'margin': {'l': 8, 'r': 16, 't': 8, 'b': 8},
        'yaxis': {'tickmode': 'array', 'tickvals': list(range(len(names))), 'ticktext': names, 'fixedrange': True,
                  'range': [len(names) - 0.5, -0.5], 'zeroline': False, 'automargin': True},
        'xaxis': {'title': {'text': 'B - A, points of IoU'}, 'fixedrange': True, 'zeroline': True}}}
