"""Pairs of image and label, matched by city and file name, never by position in two sorted lists."""
import glob
import os
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from common.errors import UserError
from datasets.labels import LabelSet


@dataclass(frozen=True)
class Layout:
    """Where a set of images and labels lies under the dataset's root folder.

    An image is <images>/<city>/<stem><one of image_suffixes>, its label <labels>/<city>/<stem><label_suffix>.
    image_fix and label_fix: how to get missing files. The placeholders `{split}` (in folders) and `{root}` (in fixes)
    are filled in.
    """
    images: str
    labels: str
    label_suffix: str
    image_fix: str
    label_fix: str
    image_suffixes: tuple[str, ...] = ('_leftImg8bit.png', '_leftImg8bit.jpg', '_leftImg8bit.jpeg')


FINE = Layout(
    images='leftImg8bit/{split}',
    labels='gtFine/{split}',
    label_suffix='_gtFine_labelTrainIds.png',
    image_fix='unpack leftImg8bit_trainvaltest.zip in {root}, or correct dataset_root',
    label_fix='unpack gtFine_trainvaltest.zip in {root} and run '
              '`python tools/convert_cityscapes.py --cityscapes_path {root}`')

_OWN = replace(
    FINE, image_fix='make it from your folders with tools/prepare_folder.py, or correct dataset_root',
    label_fix='delete that label, if it is there, and run `python tools/prepare_folder.py ... --out {root}` again')

# <city>/<stem> of the image of train_extra that the Cityscapes download page calls corrupt and asks to delete.
CORRUPT = 'troisdorf/troisdorf_000000_000073'

COARSE = Layout(
    images='leftImg8bit_trainextra/leftImg8bit/train_extra',
    labels='convert_autolabelled',
    label_suffix='_leftImg8bit.png',
    image_fix='unpack leftImg8bit_trainextra.zip in {root}/leftImg8bit_trainextra, or set coarse_multiple: 0',
    label_fix='run `python tools/convert_cityscapes_autolabeling.py --dataset_root {root}` and delete the corrupt '
              'image troisdorf_000000_000073_leftImg8bit.png, or set coarse_multiple: 0')


def fine_layout(label_set: LabelSet) -> Layout:
    """FINE, with the fixes for a dataset of these labels: Cityscapes' archives or tools/prepare_folder.py."""
    return FINE if label_set.label_ids else _OWN


def find_images(root: str | os.PathLike, layout: Layout, split: str) -> list[str]:
    """Sorted paths of the images of a split. Raises UserError if there are none."""
    return list(_find_images(root, layout, split).values())


def find_pairs(root: str | os.PathLike, layout: Layout, split: str) -> list[tuple[str, str]]:
    """(image path, label path) of every image of a split, sorted by city and stem.

    Raises UserError for a missing or empty folder and for images without label or labels without image; its text is a
    summary and the first ten names.
    """
    images = _find_images(root, layout, split)
    labels = _find_files(root, layout.labels.format(split=split), (layout.label_suffix,), layout.label_fix)
    unpaired = sorted(images.keys() ^ labels.keys())
    if unpaired:
        raise UserError(_describe_unpaired(unpaired, images, root, layout, split))
    return [(image, labels[name]) for name, image in images.items()]


def _find_images(root: str | os.PathLike, layout: Layout, split: str) -> dict[str, str]:
    folder = layout.images.format(split=split)
    images = _find_files(root, folder, layout.image_suffixes, layout.image_fix)
    if not images:
        raise UserError(f'{os.path.join(root, folder)}: expected images <city>/<stem>{layout.image_suffixes[0]} (or '
                         f'.jpg); found none; {layout.image_fix.format(root=root)}')
    return images


def _find_files(root: str | os.PathLike, folder: str, suffixes: Sequence[str], fix: str) -> dict[str, str]:
    """{'<city>/<stem>': path}, sorted. Raises UserError for two files of one name, such as a PNG and a JPEG."""
    path = os.path.join(root, folder)
    if not os.path.isdir(path):
        raise UserError(f'{path}: expected a folder of <city>/<stem>{suffixes[0]}; found {_nearest(path)}; '
                         f'{fix.format(root=root)}')
    files: dict[str, list[str]] = defaultdict(list)
    for suffix in suffixes:
        for file in glob.glob(os.path.join(glob.escape(path), '*', '*' + suffix)):
            files[os.path.relpath(file, path)[:-len(suffix)]].append(file)
    for name, same in files.items():
        if len(same) > 1:
            raise UserError(f'{path}: expected one file for {name}; found '
                             f'{" and ".join(os.path.basename(file) for file in same)}; delete all but one')
    return dict(sorted((name, file) for name, (file,) in files.items()))


def _nearest(path: str) -> str:
    """The innermost existing parent folder of a missing path, with its first few entries."""
    while not os.path.isdir(path):
        path = os.path.dirname(os.path.abspath(path))
    names = sorted(os.listdir(path))
    return f'only {path} with {", ".join(names[:8]) or "nothing"}{", ..." if len(names) > 8 else ""} in it'


def _describe_unpaired(unpaired: Sequence[str], images: Collection[str], root: str | os.PathLike, layout: Layout,
                       split: str) -> str:
    missing = sum(name in images for name in unpaired)
    extra = len(unpaired) - missing
    found, fixes = [], []
    if missing:
        found.append(f'{missing} of {len(images)} images without label')
        fixes.append(layout.label_fix)
    if extra:
        found.append(f'{extra} labels without image')
        fixes.append('delete the labels without image or ' + layout.image_fix)
    folder = os.path.join(root, layout.labels.format(split=split))
    summary = (f'{folder}: expected one label <city>/<stem>{layout.label_suffix} for each image in '
               f'{layout.images.format(split=split)}; found {" and ".join(found)}; '
               f'{"; ".join(fixes).format(root=root)}')
    return '\n'.join([summary] + [f'  {name}: no {"label" if name in images else "image"}' for name in unpaired[:10]])
