"""Makes a small data set of drawn street scenes in the folder layout of Cityscapes, for trying things out.

    python tools/make_toy_cityscapes.py --out data/toy --train 80 --val 20 --extra 40
    python tools/make_toy_cityscapes.py --out data/toy_zips --as-zips

The result takes every step the real data takes: tools/convert_cityscapes.py makes the training labels of gtFine,
tools/convert_cityscapes_autolabeling.py those of the extra images. With --as-zips it is the four archives, as they are
downloaded, from which tools/prepare_cityscapes.py makes everything. A dataset.yml says how many images there are.
"""
import argparse
import json
import os
import shutil
import sys
from pathlib import Path

if __name__ == '__main__':
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
from cityscapesscripts.helpers.annotation import Annotation
from cityscapesscripts.preparation.json2instanceImg import createInstanceImage
from cityscapesscripts.preparation.json2labelImg import createLabelImage
from PIL import Image
from tqdm import tqdm

from common import cli
from common.atomic_io import write_atomically
from common.errors import FileError, UserError
from datasets.description import FILE, SPLITS
from tools.toy.scene import compose
from tools.toy.zips import write_zips

MARKER = 'toy_cityscapes.json'  # says that a folder is a toy data set, and which one
VERSION = 1  # of the drawings: the same arguments and version give the same bytes
SMALLEST = 64
CITIES = {
    'train': ('toyburg', 'puppenheim', 'kreiselstadt'),
    'val': ('murmeltal', 'klotzingen'),
    'train_extra': ('holzhausen', 'drachenau', 'zinnfeld'),
    'test': ('blechdorf', 'figurenau'),
}


def make_toy(out, size=(128, 256), train=80, val=20, extra=40, seed=0, test=0, as_zips=False):
    """Writes the data set; the folder `out` appears when it is complete, never half of it.

    out: folder that is missing, empty, or already this very data set (then nothing is written). size: (H, W) of every
    image. train, val, extra, test: number of images; those of test have dummy labels. seed: int; an image depends on
    (seed, split, its index, size) alone. as_zips: leave the four archives instead of the tree.
    Returns True if the data set was made, False if it was there. Raises ValueError or OSError for bad arguments and for
    an `out` that holds anything else.
    """
    out = Path(out).absolute()
    counts = {'train': train, 'val': val, 'train_extra': extra, 'test': test}
    if min(counts.values()) < 0 or seed < 0:
        raise UserError(f'numbers of images and the seed must be 0 or more, found train {train}, val {val}, '
                         f'extra {extra}, test {test}, seed {seed}')
    if min(size) < SMALLEST:
        raise UserError(f'size must be at least {SMALLEST} {SMALLEST} (H W), found {size[0]} {size[1]}')
    identity = {'version': VERSION, 'size': list(size), 'seed': seed, **counts, 'zips': as_zips}
    for key in ('test', 'zips'):  # as a folder says that was made before there were such
        if not identity[key]:
            del identity[key]
    description = (f'name: toy Cityscapes\nimages: {{{", ".join(f"{split}: {counts[split]}" for split in SPLITS)}}}\n')
    if _is_there(out, identity):
        if not as_zips and not (out / FILE).exists():
            write_atomically(out / FILE, description.encode())
        return False

    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f'.{out.name}.partial-{os.getpid()}')
    partial.mkdir()
    tree = partial / 'tree' if as_zips else partial
    tree.mkdir(exist_ok=True)
    try:
        with tqdm(total=sum(counts.values()), desc='drawing', unit='image', disable=None) as bar:
            for number, (split, count) in enumerate(counts.items()):
                for index in range(count):
                    _make_image(tree, split, index, size, np.random.default_rng([seed, number, index]))
                    bar.update()
        (tree / FILE).write_text(description)
        if as_zips:
            write_zips(tree, partial)
            shutil.rmtree(tree)
        (partial / MARKER).write_text(json.dumps(identity) + '\n')
        os.replace(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return True


def _is_there(out, identity):
    """True if `out` already is this data set; an error if it is anything else than empty or missing."""
    if not out.exists():
        return False
    if not out.is_dir():
        raise FileError(f'{out}: expected a folder for the toy data set, found a file; choose another --out')
    if not any(out.iterdir()):
        return False
    marker = out / MARKER
    if not marker.is_file():
        raise FileError(f'{out}: expected a new or empty folder, found one with other files ({_some(out)}); '
                              f'choose another --out')
    found = marker.read_text().strip()
    if found != json.dumps(identity):
        raise FileError(f'{out}: found another toy data set, {found}, expected {json.dumps(identity)}; '
                              f'choose another --out or delete that folder')
    return True


def _some(folder):
    names = sorted(path.name for path in folder.iterdir())
    return ', '.join(names[:3]) + (', ...' if len(names) > 3 else '')


def _make_image(root, split, index, size, rng):
    city = CITIES[split][index % len(CITIES[split])]
    stem = f'{city}_{index // len(CITIES[split]):06d}_000019'
    picture, objects = compose(size, rng)
    if split == 'test':
        objects = []
    text = json.dumps({'imgHeight': size[0], 'imgWidth': size[1], 'objects': objects})
    annotation = Annotation()
    annotation.fromJsonText(text)
    label_ids = createLabelImage(annotation, 'ids')
    if split == 'train_extra':
        _save(picture, root / 'leftImg8bit_trainextra/leftImg8bit/train_extra' / city / f'{stem}_leftImg8bit.png')
        _save(label_ids, root / 'refinement_final/train_extra' / city / f'{stem}_leftImg8bit.png')
        return
    _save(picture, root / 'leftImg8bit' / split / city / f'{stem}_leftImg8bit.png')
    folder = root / 'gtFine' / split / city
    _save(label_ids, folder / f'{stem}_gtFine_labelIds.png')
    _save(createLabelImage(annotation, 'color'), folder / f'{stem}_gtFine_color.png')
    # json2instanceImg() itself ends in saving a 32-bit image as PNG, which Pillow no longer does.
    instances = np.array(createInstanceImage(annotation, 'ids')).astype(np.uint16)
    _save(instances, folder / f'{stem}_gtFine_instanceIds.png')
    (folder / f'{stem}_gtFine_polygons.json').write_text(text + '\n')


def _save(image, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(path)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--out', required=True, help='folder of the data set: new or empty')
    parser.add_argument('--size', nargs=2, type=int, default=(128, 256), metavar=('H', 'W'), help='default: 128 256')
    parser.add_argument('--train', type=int, default=80, help='number of training images (default: 80)')
    parser.add_argument('--val', type=int, default=20, help='number of validation images (default: 20)')
    parser.add_argument('--extra', type=int, default=40, help='number of auto-labelled extra images (default: 40)')
    parser.add_argument('--test', type=int, default=0, help='number of test images, without labels (default: 0)')
    parser.add_argument('--as-zips', action='store_true', help='make the four archives instead of their contents')
    parser.add_argument('--seed', type=int, default=0, help='the same seed draws the same streets (default: 0)')
    cli.add_debug_flag(parser)
    args = parser.parse_args(argv)
    made = make_toy(args.out, tuple(args.size), args.train, args.val, args.extra, args.seed, args.test, args.as_zips)
    print(f'{args.out}: {args.train} training, {args.val} validation, {args.extra} extra and {args.test} test images'
          + ('' if made else ' (already there)'))


if __name__ == '__main__':
    cli.run(main)
