"""A report on drawn streets with made-up predictions, and the same shapes as an evaluation gives."""
import math

import cv2
import numpy as np
from cityscapesscripts.helpers.annotation import Annotation
from cityscapesscripts.preparation.json2labelImg import createLabelImage

from datasets.labels import CITYSCAPES
from inference import metrics
from inference.maps import Maps
from inference.report import folder, page
from inference.report.gallery import Gallery, drawn_images
from inference.report.page import Report
from inference.scores.categories import category_iou
from tools.toy.scene import compose

SCALES = (0.5, 1.0, 2.0)
BINS = 15


def scene(index, size):
    """(image uint8 (H, W, 3) BGR, train ids uint8 (H, W))."""
    import json

    picture, objects = compose(size, np.random.default_rng([7, index]))
    annotation = Annotation()
    annotation.fromJsonText(json.dumps({'imgHeight': size[0], 'imgWidth': size[1], 'objects': objects}))
    ids = np.array(createLabelImage(annotation, 'ids'))
    return np.ascontiguousarray(picture[..., ::-1]), CITYSCAPES.label_id_to_train_id()[ids]


def _noise(rng, size, cells):
    return cv2.resize(rng.random((cells, 2 * cells), np.float32), size[::-1], interpolation=cv2.INTER_CUBIC)


def guess(label, index, scales=SCALES):
    """inference.maps.Maps of a network that errs at borders and in patches."""
    rng = np.random.default_rng([8, index])
    size = label.shape
    shifted = np.roll(label, rng.integers(-3, 4, 2), (0, 1))
    patches = _noise(rng, size, 6) > rng.uniform(0.8, 1.1)
    classes = np.where(patches, shifted[::-1], shifted)
    classes = np.where(classes == 255, 0, classes).astype(np.uint8)
    edges = cv2.GaussianBlur((cv2.Laplacian(classes, cv2.CV_32F) != 0).astype(np.float32), (0, 0), 3)
    confidence = np.clip(0.99 - 0.9 * edges - 0.35 * patches - 0.1 * _noise(rng, size, 9), 0.2, 1).astype(np.float32)
    rows = np.linspace(0, 1, size[0], dtype=np.float32)[:, None]
    details = 0.7 * edges + _noise(rng, size, 7)
    weights = [np.exp(2.5 * (rows * (1 - 2 * i / max(1, len(scales) - 1)) + details * i / 2))
               for i in range(len(scales))]
    total = sum(weights)
    attention = {scale: (weight / total).astype(np.float32) for scale, weight in zip(scales, weights)}
    return Maps(classes, confidence, np.zeros(size, np.float32), attention)


def score(matrices, names, pairs, labels=CITYSCAPES):
    """As inference.evaluator.evaluate; pairs: (confidence, right) of all labelled pixels."""
    total = np.sum(matrices, axis=0)
    confidence, right = (np.concatenate(part) for part in zip(*pairs))
    which = np.minimum((confidence * BINS).astype(int), BINS - 1)
    bins = []
    for i in range(BINS):
        inside = which == i
        some = inside.any()
        bins.append({'low': i / BINS, 'high': (i + 1) / BINS, 'pixels': int(inside.sum()),
                     'accuracy': float(right[inside].mean()) if some else math.nan,
                     'confidence': float(confidence[inside].mean()) if some else math.nan})
    ece = sum(b['pixels'] * abs(b['accuracy'] - b['confidence']) for b in bins if b['pixels']) / len(right)
    return {**metrics.scores(total), 'matrix': total, **({'categories': category_iou(total, labels)}
                                                         if labels.categories else {}),
            'images': [{'index': i, 'name': name, 'matrix': matrix, **metrics.scores(matrix)}
                       for i, (name, matrix) in enumerate(zip(names, matrices))],
            'official': {'classes': {name: {'iou': 0.5, 'iiou': 0.25} for name in labels.names},
                         'mean': {'iou': 0.5, 'iiou': 0.4321, 'category_iou': 0.6, 'category_iiou': 0.5}},
            'boundary': {'pixels': [3, 5, 9], 'mean': {'f': [0.1234, 0.5, 0.75], 'trimap_iou': [0.2, 0.3, math.nan]},
                         'classes': {name: {'f': [0.5, 0.6, 0.7], 'trimap_iou': [0.1, math.nan, 0.3]}
                                     for name in labels.names}},
            'calibration': {'bins': bins, 'ece': ece, 'confidence': float(confidence.mean())}}


def log():
    """As metrics.jsonl of a run."""
    entries = []
    for i in range(50, 2001, 50):
        entries.append({'kind': 'train', 'iteration': i, 'loss': 2.4 * math.exp(-i / 500) + 0.3 + 0.05 * math.sin(i)})
        if i % 200 == 0:
            entries.append({'kind': 'eval', 'iteration': i, 'miou': 0.8 * (1 - math.exp(-i / 600)),
                            'accuracy': 0.95 * (1 - math.exp(-i / 300)), 'iou': {}})
    return entries


def make(root, count=6, size=(128, 256), truth=True, scales=SCALES, labels=CITYSCAPES, names=None, title='Toy streets',
         drawn=None, colors=None):
    """Write a report into the folder `root`; returns (path of index.html, its Report).

    drawn: that many different images; the others repeat them.
    """
    names = names or [f'toyburg/toyburg_{i:06d}_000019' for i in range(count)]
    folder.check(root)
    matrices, pairs, made = [], [], {}
    with Gallery(root, labels, threads=1) as gallery:
        for i in range(count):
            key = i % (drawn or count)
            if key not in made:
                image, label = scene(key, size)
                made = {**made, key: (image, label, guess(label, key, scales))} if drawn else \
                    {key: (image, label, guess(label, key, scales))}
            image, label, maps = made[key]
            gallery.add(i, names[i], lambda image=image: image, maps, label if truth else None)
            matrices.append(metrics.confusion_matrix(label, maps.classes, labels.num_classes, labels.ignore_index))
            valid = label != labels.ignore_index
            pairs.append((maps.confidence[valid], (maps.classes == label)[valid]))
    report = Report(title, [('Weights', 'output/toy/best_model/model.pdparams'), ('Config', 'configs/toy.yml'),
                            ('Test time', 'scales 0.5, 1, 2; flip')], labels,
                    labels.color_table() if colors is None else colors, drawn_images(root),
                    score(matrices, names, pairs, labels) if truth else None, log() if truth else [])
    return folder.finish(root, page.to_html(report)), report
