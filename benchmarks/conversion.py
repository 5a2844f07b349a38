"""Time to convert a label image of 1024x2048 from label ids to train ids, compared with a loop over the classes.

    python -m benchmarks.conversion [--repeat 15]

    loop            Pillow decodes, out[labels == id] = train_id for each of the ids 0..33, Pillow encodes
    ours            what tools/cityscapes/label_conversion.py does with the content of a file
    decode, encode  these steps of ours alone; `rest` is the lookup and the validation of the values

There are two images, both saved by Pillow like the real ones: `toy`, a drawn street (large areas and straight edges,
as in polygons), and `blobs`, 34 ids in random winding bands (more edges than any street). One thread. The table has the
best and the median of `--repeat` rounds, in which the candidates take turns, since the machine may be shared. The ratio
is loop / ours; `at most` is loop / decode, which no conversion that decodes this way can exceed. The last line is the
table as JSON.
"""
import argparse
import io
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from PIL import Image

SIZE = (1024, 2048)


def toy_labels() -> np.ndarray:
    """uint8 (H, W) label ids of a drawn street."""
    from cityscapesscripts.helpers.annotation import Annotation
    from cityscapesscripts.preparation.json2labelImg import createLabelImage

    from tools.toy.scene import compose
    _, objects = compose(SIZE, np.random.default_rng(0))
    annotation = Annotation()
    annotation.fromJsonText(json.dumps({'imgHeight': SIZE[0], 'imgWidth': SIZE[1], 'objects': objects}))
    return np.array(createLabelImage(annotation, 'ids'))


def blob_labels() -> np.ndarray:
    """uint8 (H, W) label ids in winding bands."""
    field = cv2.GaussianBlur(np.random.default_rng(0).standard_normal(SIZE).astype(np.float32), (0, 0), 12)
    return np.minimum((field - field.min()) / (field.max() - field.min()) * 34, 33).astype(np.uint8)


def pillow_png(labels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(labels).save(file, 'png')
    return file.getvalue()


def class_loop(data: bytes, table: np.ndarray) -> bytes:
    """The loop over the classes: content of a PNG of label ids -> that of train ids. table: uint8 (256,)."""
    labels = np.array(Image.open(io.BytesIO(data)))
    out = labels.copy()
    for label_id in range(34):
        out[labels == label_id] = table[label_id]
    return pillow_png(out)


def measure(name: str, labels: np.ndarray, repeat: int) -> dict[str, Any]:
    """The row of an image, uint8 (H, W) label ids."""
    from datasets.labels import CITYSCAPES
    from tools.cityscapes.label_conversion import train_id_png
    from tools.shared.label_ids import decode_label_ids, highest_id
    from tools.shared.png import encode_png
    data, table, highest = pillow_png(labels), CITYSCAPES.label_id_to_train_id(), highest_id(CITYSCAPES)
    buffer, train_ids = np.frombuffer(data, np.uint8), table[labels]
    candidates: dict[str, Callable[[], Any]] = {
        'loop': lambda: class_loop(data, table),
        'ours': lambda: train_id_png(decode_label_ids(data, name, highest, CITYSCAPES), CITYSCAPES),
        'decode': lambda: cv2.imdecode(buffer, cv2.IMREAD_UNCHANGED),
        'encode': lambda: encode_png(train_ids)}
    results = [np.array(Image.open(io.BytesIO(candidates[which]()))) for which in ('loop', 'ours')]
    assert (results[0] == results[1]).all(), 'both must give the same train ids'
    times: dict[str, list[float]] = {which: [] for which in candidates}
    for _ in range(repeat):
        for which, run in candidates.items():
            start = time.perf_counter()
            run()
            times[which].append(1000 * (time.perf_counter() - start))
    best = {which: min(values) for which, values in times.items()}
    return {'image': name, 'bytes in': len(data), 'bytes out (loop)': len(candidates['loop']()),
            'bytes out (ours)': len(candidates['ours']()), 'ms, best': best,
            'ms, median': {which: statistics.median(values) for which, values in times.items()},
            'rest': best['ours'] - best['decode'] - best['encode'],
            'ratio': best['loop'] / best['ours'], 'at most': best['loop'] / best['decode']}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--repeat', type=int, default=15)
    args = parser.parse_args()
    cv2.setNumThreads(1)
    rows = [measure(name, labels(), args.repeat) for name, labels in (('toy', toy_labels), ('blobs', blob_labels))]
    for row in rows:
        print(f'{row["image"]}: {row["bytes in"]} bytes of label ids to {row["bytes out (ours)"]} of train ids (loop: '
              f'{row["bytes out (loop)"]})')
        for which, best in row['ms, best'].items():
            print(f'    {which:8}{best:8.2f} ms  (median {row["ms, median"][which]:.2f})')
        print(f'    {"rest":8}{row["rest"]:8.2f} ms\n    ratio {row["ratio"]:.1f}, at most {row["at most"]:.1f}')
    print(json.dumps(rows))


if __name__ == '__main__':
    main()
