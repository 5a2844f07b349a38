"""Time of converting one label image of 1024x2048 from label ids to train ids, against a loop over the classes.

    python benchmarks/conversion.py [--repeat 15]

    loop            Pillow decodes, out[labels == id] = train_id for each of the ids 0..33, Pillow encodes
    ours            what tools/cityscapes/label_conversion.py does with the bytes of a file
    decode, encode  these steps of ours alone; `rest` is the lookup and the check of the values

Of two images, both saved by Pillow as the real ones are: `toy`, a drawn street (large areas, straight edges, as
polygons give), and `blobs`, 34 ids in random winding bands (more edges than any street). One thread. The best and the
median of `--repeat` rounds, in which the candidates take turns, since the machine may be shared. The ratio is
loop / ours; `at most` is loop / decode, which no conversion that decodes this way can exceed. The last line is the
table as JSON.
"""
import argparse
import io
import json
import statistics
import sys
import time
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

SIZE = (1024, 2048)


def toy_labels():
    from cityscapesscripts.helpers.annotation import Annotation
    from cityscapesscripts.preparation.json2labelImg import createLabelImage

    from tools.toy.scene import compose
    _, objects = compose(SIZE, np.random.default_rng(0))
    annotation = Annotation()
    annotation.fromJsonText(json.dumps({'imgHeight': SIZE[0], 'imgWidth': SIZE[1], 'objects': objects}))
    return np.array(createLabelImage(annotation, 'ids'))


def blob_labels():
    field = cv2.GaussianBlur(np.random.default_rng(0).standard_normal(SIZE).astype(np.float32), (0, 0), 12)
    return np.minimum((field - field.min()) / (field.max() - field.min()) * 34, 33).astype(np.uint8)


def pillow_png(labels):
    file = io.BytesIO()
    Image.fromarray(labels).save(file, 'png')
    return file.getvalue()


def class_loop(data, table):
    labels = np.array(Image.open(io.BytesIO(data)))
    out = labels.copy()
    for label_id in range(34):
        out[labels == label_id] = table[label_id]
    return pillow_png(out)


def measure(name, labels, repeat):
    from datasets.labels import CITYSCAPES
    from tools.cityscapes.label_conversion import decode_label_ids, encode_png, highest_id, train_id_png
    data, table, highest = pillow_png(labels), CITYSCAPES.label_id_to_train_id(), highest_id(CITYSCAPES)
    buffer, train_ids = np.frombuffer(data, np.uint8), table[labels]
    candidates = {
        'loop': lambda: class_loop(data, table),
        'ours': lambda: train_id_png(decode_label_ids(data, name, highest, CITYSCAPES), CITYSCAPES),
        'decode': lambda: cv2.imdecode(buffer, cv2.IMREAD_UNCHANGED),
        'encode': lambda: encode_png(train_ids)}
    results = [np.array(Image.open(io.BytesIO(candidates[which]()))) for which in ('loop', 'ours')]
    assert (results[0] == results[1]).all(), 'both must give the same train ids'
    times = {which: [] for which in candidates}
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


def main():
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
