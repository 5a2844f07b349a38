"""Charts as Plotly's JSON. Colours that depend on light or dark are left to page.js; no chart depends on hue alone."""
import itertools
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from inference.report.look import Figure, printable

# Every other bar of neighbours is hatched differently, for those who cannot tell their colours apart.
PATTERNS = ('', '/', '.', '\\', 'x', '-', '|')
ROW = 22  # pixels of a class in a chart
# Of shares: fine steps where a confusion matrix has nearly all of its cells. Cividis is read alike by all eyes.
SHARES = [[0.0, '#00224e'], [0.005, '#123570'], [0.02, '#3b496c'], [0.05, '#575d6d'], [0.1, '#707173'],
          [0.25, '#8a8678'], [0.5, '#c3b369'], [1.0, '#fee838']]


def markup(text: str) -> str:
    """Text for Plotly, which reads some tags but knows no quotes by name."""
    return escape(printable(text), quote=False)


def name_text(name: str, longest: int = 22) -> str:
    """A name as Plotly shows it: not as markup, and no longer than the axis can bear."""
    name = printable(name)
    return markup(name if len(name) <= longest else name[:longest - 1] + '…')


def _colors(palette: Sequence[Sequence[int]]) -> list[str]:
    return [f'rgb{tuple(map(int, color))}' for color in palette]


def numbers(values: Any, digits: int = 5) -> list[float | None]:
    """Plain numbers for JSON, None where undefined."""
    return [round(float(value), digits) if np.isfinite(value) else None for value in values]


def _class_axis(names: Sequence[str], **more: Any) -> dict[str, Any]:
    return {'tickmode': 'array', 'tickvals': list(range(len(names))), 'ticktext': [name_text(name) for name in names],
            'range': [len(names) - 0.5, -0.5], 'fixedrange': True, 'showgrid': False, 'zeroline': False, **more}


def class_bars(names: Sequence[str], palette: Sequence[Sequence[int]], values: Sequence[float | None],
               words: Sequence[str], hover: Sequence[str], axis: Mapping[str, Any], in_margin: int) -> Figure:
    """One horizontal bar per class, first class on top, in its colour and a pattern; `words` at its right.

    hover: what the pointer is told, after the name. axis: of the values. in_margin: pixels for the words, clear of the
    bars.
    """
    bars = {'type': 'bar', 'orientation': 'h', 'y': list(range(len(names))), 'x': list(values),
            'marker': {'color': _colors(palette),
                       'pattern': {'shape': [PATTERNS[i % len(PATTERNS)] for i in range(len(names))]}},
            'customdata': [[markup(name), markup(line)] for name, line in zip(names, hover)],
            'hovertemplate': '<b>%{customdata[0]}</b><br>%{customdata[1]}<extra></extra>'}
    notes = [{'xref': 'paper', 'x': 1, 'y': i, 'text': markup(word), 'showarrow': False, 'xanchor': 'left',
              'xshift': 8, 'font': {'size': 12}} for i, word in enumerate(words)]
    return {'data': [bars], 'layout': {
        'yaxis': _class_axis(names), 'xaxis': {'fixedrange': True, **axis}, 'bargap': 0.3, 'showlegend': False,
        'annotations': notes, 'margin': {'l': 8, 'r': in_margin, 't': 8, 'b': 8}}}


def score_bars(names: Sequence[str], palette: Sequence[Sequence[int]], scores: Mapping[str, Any]) -> Figure:
    """IoU as bars, precision and recall as two kinds of marks. scores: 'iou', 'precision', 'recall', (K,) each."""
    iou, precision, recall = (numbers(scores[key]) for key in ('iou', 'precision', 'recall'))
    words = ['absent' if value is None else f'{100 * value:.1f} %' for value in iou]
    figure = class_bars(names, palette, iou, words, [
        f'IoU {_percent(a)}, precision {_percent(b)}, recall {_percent(c)}' for a, b, c in
        zip(iou, precision, recall)], {'range': [0, 1], 'tickformat': '.0%', 'tickvals': [0, 0.25, 0.5, 0.75, 1]}, 60)
    figure['data'][0].update(name='IoU', showlegend=False)
    for key, values, symbol in (('precision', precision, 'triangle-right'), ('recall', recall, 'circle')):
        figure['data'].append({'type': 'scatter', 'mode': 'markers', 'name': key, 'x': values,
                               'y': list(range(len(names))), 'marker': {'symbol': symbol, 'size': 9},
                               'hoverinfo': 'skip', 'cliponaxis': False})
    figure['layout']['showlegend'] = True
    return figure


def _percent(value: float | None) -> str:
    return 'undefined' if value is None else f'{100 * value:.2f} %'


def confusion(names: Sequence[str], matrix: np.ndarray) -> Figure:
    """Heat map of an int64 (K, K) matrix: row (ground truth) i, column (prediction) j; colour: the share of row i."""
    actual, predicted = matrix.sum(axis=1), matrix.sum(axis=0)
    with np.errstate(invalid='ignore', divide='ignore'):
        of_actual, of_predicted = matrix / actual[:, None], matrix / predicted[None]
    shown = [markup(name) for name in names]
    hover = [[[shown[i], shown[j], f'{int(count):,}', _percent(of_actual[i, j]) if actual[i] else 'undefined',
               _percent(of_predicted[i, j]) if predicted[j] else 'undefined'] for j, count in enumerate(row)]
             for i, row in enumerate(matrix)]
    heat = {'type': 'heatmap', 'z': [numbers(row) for row in of_actual], 'zmin': 0, 'zmax': 1, 'colorscale': SHARES,
            'xgap': 1, 'ygap': 1, 'customdata': hover, 'hoverongaps': False,
            'colorbar': {'tickformat': '.0%', 'thickness': 10, 'tickvals': [0, 0.5, 1], 'orientation': 'h',
                         'x': 0, 'xanchor': 'left', 'y': 1.01, 'yanchor': 'bottom', 'len': 0.9, 'tickangle': 0},
            'hovertemplate': '<b>%{customdata[0]}</b> predicted as <b>%{customdata[1]}</b><br>%{customdata[2]} pixels'
                             '<br>%{customdata[3]} of %{customdata[0]}<br>%{customdata[4]} of all predicted as '
                             '%{customdata[1]}<extra></extra>'}
    return {'data': [heat], 'layout': {
        'yaxis': _class_axis(names, title={'text': 'ground truth'}),
        'xaxis': _class_axis(names, title={'text': 'prediction'}, tickangle=-60, range=[-0.5, len(names) - 0.5])}}


def worst_confusions(names: Sequence[str], matrix: np.ndarray, count: int) -> list[tuple[int, int, int, float]]:
    """[(ground truth, prediction, pixels, share of the ground truth's)], the largest off the diagonal first."""
    off = matrix - np.diag(np.diag(matrix))
    order = np.argsort(-off, axis=None, kind='stable')[:count]
    rows, columns = np.unravel_index(order, off.shape)
    return [(int(i), int(j), int(off[i, j]), float(off[i, j] / matrix[i].sum()))
            for i, j in zip(rows, columns) if off[i, j]]


def reliability(bins: Sequence[Mapping[str, Any]]) -> Figure:
    """Accuracy of the pixels of each bin of confidence against the diagonal; below, how many pixels are in each.

    bins: 'low', 'high', 'pixels', 'accuracy', 'confidence' each, as inference.scores.calibration gives them.
    """
    total = max(1, sum(int(part['pixels']) for part in bins))
    middle = [(part['low'] + part['high']) / 2 for part in bins]
    width = [part['high'] - part['low'] for part in bins]
    accuracy = numbers(part['accuracy'] for part in bins)
    confidence = numbers(part['confidence'] for part in bins)
    share = [int(part['pixels']) / total for part in bins]
    hover = [[f'{part["low"]:.2f} to {part["high"]:.2f}', _percent(a), _percent(c), f'{int(part["pixels"]):,}',
              _percent(s)] for part, a, c, s in zip(bins, accuracy, confidence, share)]
    template = ('confidence %{customdata[0]}<br>right: %{customdata[1]}<br>mean confidence: %{customdata[2]}<br>'
                '%{customdata[3]} pixels (%{customdata[4]})<extra></extra>')
    return {'data': [
        {'type': 'bar', 'x': middle, 'width': width, 'y': accuracy, 'name': 'share of right pixels',
         'customdata': hover, 'hovertemplate': template},
        {'type': 'scatter', 'mode': 'lines', 'x': [0, 1], 'y': [0, 1], 'name': 'as confident as right',
         'line': {'dash': 'dash'}, 'hoverinfo': 'skip'},
        {'type': 'scatter', 'mode': 'markers', 'x': confidence, 'y': accuracy, 'name': 'at mean confidence',
         'marker': {'symbol': 'diamond', 'size': 8}, 'hoverinfo': 'skip'},
        {'type': 'bar', 'x': middle, 'width': width, 'y': share, 'yaxis': 'y2', 'name': 'share of all pixels',
         'marker': {'pattern': {'shape': '/'}}, 'customdata': hover, 'hovertemplate': template}],
        'layout': {'xaxis': {'range': [0, 1], 'fixedrange': True, 'title': {'text': 'confidence'}, 'anchor': 'y2'},
                   'yaxis': {'range': [0, 1.02], 'domain': [0.34, 1], 'fixedrange': True, 'tickformat': '.0%',
                             'title': {'text': 'right'}},
                   'yaxis2': {'domain': [0, 0.24], 'fixedrange': True, 'tickformat': '.0%', 'rangemode': 'tozero',
                              'title': {'text': 'pixels'}, 'automargin': True},
                   'bargap': 0.02, 'barmode': 'overlay'}}


def curves(lines: Mapping[str, tuple[Sequence[float], Sequence[float | None]]], title: str, share: bool,
           axis: str = 'iteration') -> Figure:
    """Lines, each in dashes of its own. lines: {name: (iterations, values)}. title, axis: what they are. share: in
    percent."""
    dashes = ('solid', 'dash', 'dot', 'dashdot', 'longdash', 'longdashdot')
    symbols = ('circle', 'diamond', 'square', 'triangle-up', 'cross', 'x')
    data = [{'type': 'scatter', 'mode': 'lines+markers' if len(x) <= 40 else 'lines', 'x': list(x), 'y': list(y),
             'name': markup(name), 'line': {'dash': dashes[i % 6]}, 'marker': {'symbol': symbols[i % 6]}}
            for i, (name, (x, y)) in enumerate(lines.items())]
    return {'data': data, 'layout': {
        'hovermode': 'x unified', 'showlegend': True, 'xaxis': {'title': {'text': axis}, 'fixedrange': True},
        'yaxis': {'title': {'text': title}, 'fixedrange': True, 'rangemode': 'tozero',
                  **({'tickformat': '.0%', 'hoverformat': '.2%'} if share else {'hoverformat': '.4f'})}}}


def histogram(edges: Sequence[float], counts: Sequence[int], title: str, unit: str) -> Figure:
    """Counts in bins of a share from 0 to 1."""
    bins = list(itertools.pairwise(edges))
    bars = {'type': 'bar', 'x': [(a + b) / 2 for a, b in bins], 'y': list(counts), 'width': [b - a for a, b in bins],
            'customdata': [f'{a:.0%} to {b:.0%}' for a, b in bins],
            'hovertemplate': f'%{{customdata}}: %{{y}} {markup(unit)}<extra></extra>'}
    return {'data': [bars], 'layout': {
        'bargap': 0.05, 'showlegend': False, 'yaxis': {'fixedrange': True, 'title': {'text': markup(unit)}},
        'xaxis': {'range': [0, 1], 'tickformat': '.0%', 'fixedrange': True, 'title': {'text': markup(title)}}}}
