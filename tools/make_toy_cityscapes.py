"""Make a small dataset of drawn street scenes in the folder layout of Cityscapes, for trying things out.

    python tools/make_toy_cityscapes.py --out data/toy --train 80 --val 20 --extra 40
    python tools/make_toy_cityscapes.py --out data/toy_zips --as-zips

The result goes through the same steps as the real data: tools/convert_cityscapes.py makes the training labels of
gtFine, tools/convert_cityscapes_autolabeling.py those of the extra images. With --as-zips the result is the four
archives, as they are downloaded, from which tools/prepare_cityscapes.py makes everything. A dataset.yml holds the
number of images.
"""
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __name__ == '__main__':
    from shared import repository
    repository.import_from_root()

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

MARKER = 'toy_cityscapes.json'  # marks a folder as a toy dataset and identifies it
VERSION = 1  # of the drawings: the same version and arguments give the same bytes
SMALLEST = 64
CITIES = {
    'train': ('toyburg', 'puppenheim', 'kreiselstadt'),
    'val': ('murmeltal', 'klotzingen'),
    'train_extra': ('holzhausen', 'drachenau', 'zinnfeld'),
    'test': ('blechdorf', 'figurenau'),
}


def make_toy(out: str | os.PathLike, size: tuple[int, int] = (128, 256), train: int = 80, val: int = 20,
             extra: int = 40, seed: int = 0, test: int = 0, as_zips: bool = False) -> bool:
    """Write the dataset; the folder `out` appears only once it is complete.

    out: folder that is missing, empty, or already this very dataset (then nothing is written). size: (H, W) of every
    image. train, val, extra, test: number of images; those of test have dummy labels. seed: an image depends on (seed,
    split, its index, size) alone. as_zips: write the four archives instead of the tree.
    Returns True if the dataset was made, False if it existed. Raises UserError for bad arguments and FileError for an
    `out` that holds anything else.
    """
    out = Path(out).absolute()
    counts = {'train': train, 'val': val, 'train_extra': extra, 'test': test}
    if min(counts.values()) < 0 or seed < 0:
        raise UserError(f'numbers of images and the seed must be 0 or more, found train {train}, val {val}, '
                         f'extra {extra}, test {test}, seed {seed}')
    if min(size) < SMALLEST:
        raise UserError(f'size must be at least {SMALLEST} {SMALLEST} (H W), found {size[0]} {size[1]}')
    identity: dict[str, Any] = {'version': VERSION, 'size': list(size), 'seed': seed, **counts, 'zips': as_zips}
    for key in ('test', 'zips'):  # absent from the markers of older versions, which had neither
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


def _is_there(out: Path, identity: dict[str, Any]) -> bool:
    """True if `out` already is this dataset. Raises FileError if it is anything but empty or missing."""
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


def _some(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir())
    return ', '.join(names[:3]) + (', ...' if len(names) > 3 else '')


def _make_image(root: Path, split: str, index: int, size: tuple[int, int], rng: np.random.Generator) -> None:
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
    # json2instanceImg() cannot be used: it saves a 32-bit image as PNG, which Pillow no longer supports.
    instances = np.array(createInstanceImage(annotation, 'ids')).astype(np.uint16)
    _save(instances, folder / f'{stem}_gtFine_instanceIds.png')
    (folder / f'{stem}_gtFine_polygons.json').write_text(text + '\n')


def _save(image: Image.Image | np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(path)


def main(argv: Sequence[str] | None = None) -> None:
    parser = cli.ArgumentParser(description=__doc__.splitlines()[0])
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
