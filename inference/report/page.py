"""The page of a report: index.html from what was scored and what is known of each image."""
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from common.numbers import finite_or_none
from datasets.labels import LabelSet
from inference import map_pictures
from inference.report import figures, look
from inference.report.look import Chart, percent, text

CONFUSIONS = 16  # named beside the heat map
POINTS = 1000  # of a training curve; longer ones are averaged in spans


@dataclass(frozen=True)
class Report:
    """What a page shows.

    title, facts: (name, value) of the weights and settings. images: inference.report.gallery.drawn_images.
    colors: uint8 (256, 3) RGB. result: inference.evaluator.evaluate's, with 'images' in the order of their index; None
    without ground truth. log: entries of metrics.jsonl.
    """
    title: str
    facts: Sequence[tuple[str, str]]
    labels: LabelSet
    colors: np.ndarray
    images: Sequence[Mapping[str, Any]]
    result: Mapping[str, Any] | None = None
    log: Sequence[Mapping[str, Any]] = ()


def to_html(report: Report) -> str:
    """The whole page; its pictures are where report.images says, relative to it."""
    facts = ''.join(f'<dt>{text(name)}</dt><dd>{text(value)}</dd>' for name, value in report.facts)
    parts = {'overview': ('Overview', f'<section id="overview"><h1>{text(report.title)}</h1><dl class="facts">{facts}'
                                      f'</dl>{look.tiles(_headline(report))}</section>')}
    charts: list[Chart] = []

    def add(name: str, title: str, content: Sequence[Chart], note: str = '', more: str = '') -> None:
        if content:
            charts.extend(content)
            parts[name] = title, look.section(name, title, look.charts(content) + more, note)

    add('classes', 'Classes', [_classes(report), *_categories(report)])
    add('boundary', 'Borders', _boundary(report))
    add('confusion', 'Confusion', _confusion(report), more=_worst(report))
    add('calibration', 'Calibration', _calibration(report))
    add('training', 'Training', training(report.log))
    markup = (look.HERE / 'gallery.html').read_text(encoding='utf-8')
    parts['images'] = 'Images', look.section('images', 'Images', markup)
    style = f'<style>:root {{ --ratio: {_ratio(report)}; --cividis: {_gradient()} }}</style>'
    last = f'{style}{look.data_script("images-data", client_data(report))}\n{look.script("gallery.js")}'
    return look.page(report.title, {name: title for name, (title, _) in parts.items()},
                     '\n'.join(content for _, content in parts.values()),
                     {chart.name: chart.figure for chart in charts}, last, styles=('style.css', 'gallery.css'))


def read_log(path: str | os.PathLike) -> list[dict[str, Any]]:
    """The entries of a run's metrics.jsonl, [] if there is none; a line that is being written is left out."""
    entries = []
    try:
        with open(path, encoding='utf-8') as file:
            for line in file:
                try:
                    entry = json.loads(line)
                except ValueError:
                    continue
                if isinstance(entry, dict) and isinstance(entry.get('iteration'), int | float):
                    entries.append(entry)
    except (FileNotFoundError, NotADirectoryError):
        return []
    return entries


# ---------------------------------------------------------------- the upper half

def _headline(report: Report) -> list[tuple[str, str, str]]:
    images, result = report.images, report.result
    confidence = float(np.mean([image['confidence'] for image in images])) if images else float('nan')
    if result is None:
        return [('Images', f'{len(images):,}', 'without ground truth'),
                ('Mean confidence', percent(confidence), 'of the predicted class'),
                ('Classes found', str(int((_pixels(report) > 0).sum())), f'of {report.labels.num_classes}')]
    seen = int(np.isfinite(result['iou']).sum())
    found = [('mIoU', percent(result['miou']), f'mean over {seen} of {report.labels.num_classes} classes')]
    if result.get('categories'):
        found.append(('Category IoU', percent(result['categories']['mean']),
                      f'mean over {len(result["categories"]["iou"])} categories'))
    if result.get('official'):
        mean = result['official']['mean']
        found.append(('iIoU', percent(mean['iiou']), f'of categories {percent(mean["category_iiou"])}'))
    if result.get('boundary'):
        boundary = result['boundary']
        found.append(('Boundary F-score', percent(boundary['mean']['f'][0]), f'within {boundary["pixels"][0]} pixels'))
    found.append(('Accuracy', percent(result['accuracy']), 'of the labelled pixels'))
    if result.get('calibration'):
        found.append(('Calibration error', percent(result['calibration']['ece']),
                      f'mean confidence {percent(result["calibration"]["confidence"])}'))
    found.append(('Images', f'{len(images):,}', f'{int(result["matrix"].sum()):,} labelled pixels'))
    return found


def _pixels(report: Report) -> np.ndarray:
    """int64 (K,): predicted pixels of each class."""
    counts = np.zeros(report.labels.num_classes, np.int64)
    for image in report.images:
        counts += image['pixels'][:len(counts)]
    return counts


def _classes(report: Report) -> Chart:
    names, result = report.labels.names, report.result
    palette = report.colors[:len(names)].tolist()
    height = 70 + figures.ROW * len(names)
    if result is None:
        pixels = _pixels(report)
        share = pixels / max(1, pixels.sum())
        found = [sum(image['pixels'][k] > 0 for image in report.images) for k in range(len(names))]
        words = [percent(value, 1) for value in share]
        hover = [f'{count:,} pixels, in {n} images' for count, n in zip(pixels, found)]
        axis = {'range': [0, 1.02 * max(share.max(), 0.01)], 'tickformat': '.0%'}
        rows = [['class', 'share of pixels', 'pixels', 'images'],
                *([name, percent(s), f'{n:,}', str(m)] for name, s, n, m in zip(names, share, pixels, found))]
        figure = figures.class_bars(names, palette, share.tolist(), words, hover, axis, 60)
        return Chart('classes', 'Share of the predicted pixels', '', figure, height,
                     'Bars: share of the pixels per class', rows, True)
    official = (result.get('official') or {}).get('classes')
    rows = [['class', 'IoU', 'precision', 'recall', *(['iIoU'] if official else []), 'labelled pixels'],
            *([name, *(percent(finite_or_none(result[key][i])) for key in ('iou', 'precision', 'recall')),
               *([percent(official[name]['iiou'])] if official else []), f'{int(result["matrix"][i].sum()):,}']
              for i, name in enumerate(names))]
    categories = bool(result.get('categories'))
    return Chart('iou', 'IoU per class', 'Bars: IoU. Marks: precision and recall.',
                 figures.score_bars(names, palette, result), height, f'Bars: IoU of {len(names)} classes, mean '
                 f'{percent(result["miou"])}', rows, wide=not categories)


def _categories(report: Report) -> list[Chart]:
    if not (report.result and report.result.get('categories')):
        return []
    iou = report.result['categories']['iou']
    rows = [('category', 'IoU'), *((name, percent(value)) for name, value in iou.items())]
    grey = [(110, 140, 190)] * len(iou)
    figure = figures.class_bars(list(iou), grey, figures.numbers(iou.values()),
                                [percent(value, 1) for value in iou.values()],
                                [f'IoU {percent(value)}' for value in iou.values()],
                                {'range': [0, 1], 'tickformat': '.0%', 'tickvals': [0, 0.25, 0.5, 0.75, 1]}, 60)
    return [Chart('categories', 'IoU per category', 'Errors between classes of one category do not count.', figure,
                  70 + figures.ROW * 2 * len(iou), 'Bars: IoU of the categories', rows)]


def _boundary(report: Report) -> list[Chart]:
    """Scores near the borders of the classes over the distance from them."""
    boundary = (report.result or {}).get('boundary')
    if not boundary:
        return []
    pixels = boundary['pixels']
    keys = (('f', 'boundary F-score'), ('trimap_iou', 'IoU near borders'))
    figure = figures.curves({name: (pixels, figures.numbers(boundary['mean'][key])) for key, name in keys}, 'mean',
                            True, 'distance in pixels')
    rows = [['class', *(f'{short} {distance} px' for _, short in (('f', 'F'), ('trimap_iou', 'IoU'))
                        for distance in pixels)],
            *([name, *(percent(value) for key, _ in keys for value in scores[key])]
              for name, scores in boundary['classes'].items())]
    return [Chart('boundary', 'Near borders', 'Means over the classes.', figure, 340,
                  'Boundary F-score and IoU near borders over the distance', rows, True)]


def _confusion(report: Report) -> list[Chart]:
    if report.result is None:
        return []
    names = report.labels.names
    return [Chart('confusion', 'Confusion matrix', 'Colour: share of the pixels of a true class (row). Point at a cell '
                  'for its counts; click it to sort the images by that error.',
                  figures.confusion(names, report.result['matrix']), 190 + 26 * len(names),
                  'Heat map of the confusion matrix; its largest errors are listed below', wide=True)]


def _worst(report: Report) -> str:
    """The largest confusions as buttons: what the heat map tells, for the keyboard and in words."""
    if report.result is None:
        return ''
    names = report.labels.names
    items = ''.join(
        f'<li><button type="button" data-actual="{i}" data-predicted="{j}"><span><b>{text(names[i])}</b> predicted as '
        f'<b>{text(names[j])}</b></span><span>{count:,} pixels, {percent(share, 1)}</span></button></li>'
        for i, j, count, share in figures.worst_confusions(names, report.result['matrix'], CONFUSIONS))
    return (f'<div class="card"><h3>Largest errors</h3><p class="soft">Pixels, and their share of the true class. A '
            f'click sorts the images by that error.</p><ol class="confusions">{items}</ol></div>' if items else '')


def _calibration(report: Report) -> list[Chart]:
    calibration = (report.result or {}).get('calibration')
    if not calibration:
        return []
    rows = [('confidence', 'right', 'mean confidence', 'pixels'),
            *((f'{part["low"]:.2f} to {part["high"]:.2f}', percent(finite_or_none(part['accuracy'])),
               percent(finite_or_none(part['confidence'])), f'{int(part["pixels"]):,}')
              for part in calibration['bins'])]
    return [Chart('reliability', 'Reliability', f'Expected calibration error {percent(calibration["ece"])}. Below the '
                  'diagonal the network is too sure of itself, above it too cautious.',
                  figures.reliability(calibration['bins']), 430, 'Share of right pixels for each confidence', rows,
                  True)]


def training(log: Sequence[Mapping[str, Any]]) -> list[Chart]:
    """Loss and scores over the iterations."""
    steps = [entry for entry in log if entry.get('kind') == 'train' and isinstance(entry.get('loss'), int | float)]
    charts = []
    if steps:
        loss = {'loss': _averaged([(entry['iteration'], entry['loss']) for entry in steps])}
        charts.append(Chart('loss', 'Training loss', 'Averages since the log line before.',
                            figures.curves(loss, 'loss', False), 340, f'Loss from {loss["loss"][1][0]} to '
                            f'{loss["loss"][1][-1]}'))
    scores: dict[str, tuple[Sequence[float], Sequence[float | None]]] = {}
    for kind, prefix in (('eval', ''), ('ema_eval', 'averaged weights: ')):
        for key, name in (('miou', 'mIoU'), ('accuracy', 'accuracy')):
            found = [(entry['iteration'], entry[key]) for entry in log if entry.get('kind') == kind and key in entry]
            if found:
                scores[prefix + name] = [step for step, _ in found], [value for _, value in found]
    if scores:
        charts.append(Chart('scores', 'Validation during training', '', figures.curves(scores, 'score', True), 340,
                            'mIoU and accuracy over the iterations'))
    if len(charts) == 1:
        charts = [Chart(**{**vars(charts[0]), 'wide': True})]
    return charts


def _averaged(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float | None]]:
    """At most POINTS (iteration, value): means of equal numbers of neighbours."""
    span = -(-len(points) // POINTS)
    groups = [points[i:i + span] for i in range(0, len(points), span)]
    return ([group[-1][0] for group in groups],
            figures.numbers(np.mean([value for _, value in group]) for group in groups))


# ---------------------------------------------------------------- the gallery

def _ratio(report: Report) -> float:
    """Width / height of the boxes in the gallery."""
    ratios = [width / height for height, width in (image['size'] for image in report.images)]
    return round(float(np.clip(np.median(ratios), 0.5, 3)), 4) if ratios else 2


def _gradient() -> str:
    stops = ','.join(f'rgb{tuple(color)}' for color in map_pictures.palette(9).tolist())
    return f'linear-gradient(90deg,{stops})'


def layers(report: Report) -> list[dict[str, str]]:
    """What a reader can look at of an image: {'key', 'title', 'file', 'kind'}, the photo first."""
    scales = report.images[0]['scales'] if report.images else []
    truth = [('truth', 'Ground truth', 'truth.png', 'labels')] if report.result is not None else []
    errors = [('errors', 'Errors', 'errors.png', 'errors')] if report.result is not None else []
    found = [('input', 'Input', 'input.jpg', 'photo'), *truth,
             ('prediction', 'Prediction', 'prediction.png', 'labels'), *errors,
             ('confidence', 'Confidence', 'confidence.jpg', 'map'),
             *([('scales', 'Scale that decided', 'scales.png', 'scales')] if scales else []),
             *((f'attention_{scale:g}', f'Attention, scale {scale:g}', f'attention_{scale:g}.jpg', 'map')
               for scale in scales)]
    return [dict(zip(('key', 'title', 'file', 'kind'), layer)) for layer in found]


def client_data(report: Report) -> dict[str, Any]:
    """What gallery.js needs. Of an image: x index, n name, d folder, h [H, W], c mean confidence, p shares of the
    predicted classes, e shares of the scales; with ground truth also s mIoU, a accuracy, i IoU of the classes, m the
    confusion matrix as [cell, pixels, ...].
    """
    count = report.labels.num_classes
    scored = {record['index']: record for record in (report.result or {}).get('images', ())}
    entries = []
    for image in report.images:
        pixels = np.array(image['pixels'][:count], np.float64)
        entry = {'x': image['index'], 'n': image['name'], 'd': image['folder'], 'h': image['size'],
                 'c': round(image['confidence'], 5), 'p': figures.numbers(pixels / max(1, pixels.sum())),
                 'e': image['decided']}
        if report.result is not None:
            score = scored[image['index']]
            matrix = np.asarray(score['matrix']).ravel()
            cells = np.flatnonzero(matrix)
            entry |= {'s': figures.numbers([score['miou']])[0], 'a': figures.numbers([score['accuracy']])[0],
                      'i': figures.numbers(score['iou']), 'm': np.stack([cells, matrix[cells]], 1).ravel().tolist()}
        entries.append(entry)
    scales = report.images[0]['scales'] if report.images else []
    return {'names': [look.printable(name) for name in report.labels.names],
            'colors': [','.join(map(str, color)) for color in report.colors[:count].tolist()],
            'truth': report.result is not None, 'layers': layers(report), 'scales': scales,
            'scaleColors': [','.join(map(str, color)) for color in map_pictures.palette(len(scales)).tolist()]
            if scales else [], 'images': entries}
