"""Make a dataset for training from a folder of images and a folder of masks, with any classes.

    python tools/prepare_folder.py --images photos --masks masks --mapping classes.yml --out data/mine
    python train.py --config data/mine/train.yml --do_eval --save_dir output/mine

The mask of a/b.jpg is a/b.png. classes.yml defines what the masks' values or colours mean (tools/own_data/mapping.py):
    0: road
    1: car
    255: void        # ignored
--out receives the images (copies; JPEG and PNG byte for byte) and their labels in the layout of Cityscapes, dataset.yml
(names, colours, counts), mapping.yml (a copy) and train.yml. Safe to interrupt: the next run, also with more images,
continues and skips files that are up to date.
"""
import os
import sys
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import cv2
import numpy as np
from PIL import ExifTags, Image
from tqdm import tqdm

if __name__ == '__main__':
    from shared import repository
    repository.import_from_root()

from common import cli
from common.atomic_io import write_atomically
from common.errors import FileError, UserError
from datasets.description import FILE, Description, describe
from datasets.labels import LabelSet
from datasets.pairing import FINE
from datasets.reading import read_image
from tools.own_data.mapping import MaskMapping, read_mapping
from tools.own_data.pairs import Pairs, check_masks, pair_files, split_by_lists, split_by_shares
from tools.shared.folders import describe_folder
from tools.shared.workers import DiskFull, add_num_workers_flag, check_num_workers, results_of

BASE = Path(__file__).resolve().parents[1] / 'configs/mscale_ocr_cityscapes_autolabel_mapillary.yml'
MAPPING, CONFIG = 'mapping.yml', 'train.yml'
PREPARED, UP_TO_DATE = 'prepared', 'up to date'
COPIED = {'.jpg': '.jpg', '.jpeg': '.jpg', '.png': '.png'}  # others are converted to PNG, which is lossless
TOP = 'images'  # the layout has exactly one level of folders: this one is for images that are in none
Size: TypeAlias = tuple[int, int]  # (H, W)


class Job(NamedTuple):
    """One image. mask and label_out are None for images of split test without a mask."""
    image: Path
    mask: Path | None
    image_out: Path
    label_out: Path | None


# ---------------------------------------------------------------- one image

def prepare(job: Job, mapping: MaskMapping, mapping_time: float) -> tuple[str, Size | None] | str:
    """Write one image and its label; the function that the worker processes run.

    mapping_time: when the mapping was last changed; older labels are made again.
    Returns (PREPARED or UP_TO_DATE, size or None without mask), or a one-line message that says what is wrong. Raises
    DiskFull.
    """
    label = None
    try:
        if _is_up_to_date(job, mapping_time):
            with suppress(OSError), Image.open(job.label_out or job.image_out) as there:  # damaged ones are made again
                width, height = there.size
                return UP_TO_DATE, (height, width) if job.label_out else None
        size = _check_image(job.image)
        if job.mask:
            label = mapping.read(job.mask)
            if label.shape != size:
                hint = _rotation_hint(job.image, label.shape == size[::-1])
                raise UserError(f'{job.mask}: expected a mask of its image\'s size {size}, found {label.shape} '
                                f'(height, width){hint}; make the mask again')
        copied = job.image.suffix.lower() in COPIED
        picture = job.image.read_bytes() if copied else _png(read_image(str(job.image)))
    except (ValueError, OSError) as error:
        return str(error)
    try:
        if job.label_out and label is not None:
            write_atomically(job.label_out, _png(label))
        write_atomically(job.image_out, picture)
    except OSError as error:
        DiskFull.check(error, job.image_out)
        return f'{job.image_out}: expected to write it, found "{error.strerror}"; look at that folder'
    return PREPARED, size if job.mask else None


def _is_up_to_date(job: Job, mapping_time: float) -> bool:
    """Whether the copy and the label are newer than their sources. A copy must also have the size of its source."""
    if not job.image_out.exists() or (job.label_out and not job.label_out.exists()):
        return False
    source, copy = job.image.stat(), job.image_out.stat()
    same = copy.st_mtime >= source.st_mtime and (
        copy.st_size == source.st_size or job.image.suffix.lower() not in COPIED)
    if job.mask is None or job.label_out is None:
        return same
    return same and job.label_out.stat().st_mtime >= max(job.mask.stat().st_mtime, mapping_time)


def _check_image(path: Path) -> Size:
    """Size of an image as it is decoded in training. Raises FileError for one that is damaged."""
    try:
        height, width = read_image(str(path)).shape[:2]
        if path.suffix.lower() in ('.jpg', '.jpeg'):  # OpenCV accepts truncated ones
            with Image.open(path) as image:
                image.draft('L', (1, 1))  # reads the whole file, but decodes at an eighth of the resolution
                image.load()
    except (ValueError, OSError, Image.DecompressionBombError) as error:
        found = (f'one that cannot be read ({error})' if 'truncated' in str(error) else
                 f'{path.stat().st_size} bytes that are none' if path.exists() else 'a link to nothing')
        raise FileError(f'{path}: expected an image, found {found}; copy it again or leave it out') from None
    return height, width


def _rotation_hint(path: Path, swapped: bool) -> str:
    """The end of an error message for an image and a mask of different sizes. swapped: height for width."""
    with Image.open(path) as image:
        if swapped and image.getexif().get(ExifTags.Base.Orientation, 1) > 4:
            return ' (the image is turned by its EXIF orientation, the mask is not)'
    return ''


def _png(pixels: np.ndarray) -> bytes:
    return cv2.imencode('.png', pixels)[1].tobytes()


# ---------------------------------------------------------------- all of them

def plan_jobs(pairs: Pairs, splits: Mapping[str, str], out: Path) -> list[Job]:
    """One job per image. The layout has one level of folders: a/b/x.jpg becomes <split>/a_b/x_leftImg8bit.jpg."""
    jobs: list[Job] = []
    taken: dict[tuple[str, str, str], Path] = {}
    for name, split in splits.items():
        image, mask = pairs[name]
        folder, _, stem = name.rpartition('/')
        city = folder.replace('/', '_') or TOP
        other = taken.setdefault((split, city, stem), image)
        if other != image:
            raise UserError(f'{image}: expected a name of its own, found {city}/{stem} for {other} as well, as '
                             'folders become one level; rename a folder')
        suffix = COPIED.get(image.suffix.lower(), '.png')
        image_out = out / FINE.images.format(split=split) / city / f'{stem}_leftImg8bit{suffix}'
        label_out = out / FINE.labels.format(split=split) / city / f'{stem}{FINE.label_suffix}'
        jobs.append(Job(image, mask, image_out, label_out if mask else None))
    return jobs


def check_out(out: Path, sources: Mapping[str, str | os.PathLike], labels: LabelSet,
              jobs: Sequence[Job]) -> Description | None:
    """Refuse to write among the sources, among other files, or into another dataset: raises UserError or FileError.

    sources: {flag: folder}. Returns the content of dataset.yml, None if there is none yet.
    """
    if out.exists() and not out.is_dir():
        raise FileError(f'--out {out}: expected a folder, found a file; choose another')
    real = out.resolve()
    for flag, source in sources.items():
        folder = Path(source).resolve()
        if folder == real or folder in real.parents or real in folder.parents:
            raise UserError(f'--out {out}: expected a folder apart from {flag}, found one within the other; choose '
                             'another')
    if not out.exists() or all(path.name.startswith('.') for path in out.iterdir()):
        return None
    if not (out / FILE).is_file():
        raise FileError(f'--out {out}: expected a new or empty folder or one made by this script, found '
                              f'{describe_folder(out)}; choose another')
    found = describe(str(out))
    if (found.labels.names, found.labels.ignore_index) != (labels.names, labels.ignore_index):
        raise FileError(f'{out / FILE}: expected the classes of the mapping, {_listed(labels.names)}, found '
                              f'{_listed(found.labels.names)}; choose another --out or delete that folder')
    ours = {path for job in jobs for path in (job.image_out, job.label_out)}
    others = sorted(path for top in ('leftImg8bit', 'gtFine') for path in (out / top).rglob('*')
                    if path not in ours and path.is_file() and not path.name.startswith('.'))
    if others:
        raise FileError(f'--out {out}: expected nothing but what this command makes, found {len(others)} other '
                              f'files like {others[0]} (of other images, or of another split); delete them or that '
                              'folder, or choose another --out')
    return found


def write_description(out: Path, found: Description | None, labels: LabelSet, splits: Mapping[str, str]) -> None:
    """Write dataset.yml, before anything else: without it the folder would be taken for Cityscapes.

    found: an existing one, whose names and colours may have been edited by hand and are kept.
    """
    counts = {'train': 0, 'val': 0, **Counter(splits.values())}
    text = Description(found.name if found else out.resolve().name, found.labels if found else labels, counts).to_yaml()
    if not found or found.images != counts:
        try:
            write_atomically(out / FILE, text.encode())
        except OSError as error:
            raise FileError(f'--out {out}: expected a folder to write into, found "{error.strerror}"; choose another '
                            'or change its permission') from None


def prepare_all(jobs: Sequence[Job], mapping: MaskMapping, mapping_time: float,
                num_workers: int) -> tuple[int, list[Size]]:
    """Returns (number of failed images, sizes of the labelled images of train, or of val if train has none)."""
    work = partial(prepare, mapping=mapping, mapping_time=mapping_time)
    counts: Counter[str] = Counter()
    sizes: dict[str, list[Size | None]] = defaultdict(list)
    failed = 0
    with closing(results_of(work, jobs, num_workers)) as results:
        for job, result in zip(jobs, tqdm(results, total=len(jobs), desc='preparing', unit='image', disable=None)):
            if isinstance(result, str):
                failed += 1
                tqdm.write(f'error: {result}', file=sys.stderr)
            else:
                counts[result[0]] += 1
                sizes[job.image_out.parts[-3]].append(result[1])
    print(f'{counts[PREPARED]} prepared, {counts[UP_TO_DATE]} already up to date, {failed} failed')
    return failed, [size for size in sizes['train'] or sizes['val'] if size]


def _listed(names: Sequence[str]) -> str:
    return f'{", ".join(names[:4])}{", ..." if len(names) > 4 else ""} ({len(names)})'


# ---------------------------------------------------------------- the config

def config_text(base: str | os.PathLike, out: Path, sizes: Collection[Size], num_classes: int) -> str:
    """Text of a config to train with: what has to differ from `base` for these images.

    The crop size is at most that of the smallest training image and a multiple of 16; min_K is 5% of its pixels.
    """
    cli.start_paddle()
    import yaml

    from common.config import Config

    dic = Config(base).dic
    if dic['train_dataset']['type'] != 'CityscapesAutolabeling':
        raise UserError(f'--base_config {base}: expected train_dataset.type CityscapesAutolabeling, found '
                         f'{dic["train_dataset"]["type"]}; choose one of configs/')
    mine: dict[str, Any] = {'_base_': os.path.relpath(os.path.realpath(base), os.path.realpath(out)), 'model': {},
            'train_dataset': {'dataset_root': str(out), 'coarse_multiple': 0},
            'val_dataset': {'dataset_root': str(out)}}
    if dic['model'].get('pretrained'):
        mine['model']['fresh_head'] = True
    if 'num_classes' in dic['model']:
        mine['model']['num_classes'] = num_classes
    if not mine['model']:
        del mine['model']
    transforms = dic['train_dataset']['transforms']
    crops = [transform for transform in transforms if 'crop_size' in transform]
    if crops and sizes:
        largest = [min(size[axis] for size in sizes) for axis in (1, 0)]  # w, h, as in the config
        crop = [min(wanted, side - side % 16 or side) for wanted, side in zip(crops[0]['crop_size'], largest)]
        if crop != crops[0]['crop_size']:
            crops[0]['crop_size'] = crop
            mine['train_dataset']['transforms'] = transforms
            for loss in dic['loss']['types']:
                if 'min_K' in loss:
                    loss['min_K'] = max(1, round(0.05 * crop[0] * crop[1]))
            mine['loss'] = {'types': [dict(loss) for loss in dic['loss']['types']]}
    text = yaml.safe_dump(mine, sort_keys=False, default_flow_style=None, allow_unicode=True)
    return f'# Made by tools/prepare_folder.py; yours to change.\n#   {_training_command(out)}\n{text}'


def _training_command(out: Path) -> str:
    return f'python train.py --config {out / CONFIG} --do_eval --save_dir output/{out.resolve().name}'


def write_config(base: str | os.PathLike, out: Path, sizes: Collection[Size], num_classes: int) -> None:
    """Write train.yml, but keep an existing one, which may have been edited by hand."""
    path, text = out / CONFIG, config_text(base, out, sizes, num_classes)
    if not path.exists():
        write_atomically(path, text.encode())
    elif path.read_text(encoding='utf-8') != text:
        print(f'{path}: kept, though it differs from what would be written now; delete it to have it made again')


# ---------------------------------------------------------------- command line

def main(argv: Sequence[str] | None = None) -> int:
    parser = cli.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--images', required=True, help='folder of images, with sub-folders if you like')
    parser.add_argument('--masks', required=True, help='folder of PNG masks with the names of the images')
    parser.add_argument('--mask_suffix', default='', help='what masks have behind the name: _mask for a/b_mask.png')
    parser.add_argument('--mapping', required=True, help='YAML file: what the values or colours of masks mean')
    parser.add_argument('--out', required=True, help='folder of the data set: new, or made by this script')
    group = parser.add_mutually_exclusive_group()
    group.add_argument('--split', nargs='+', default=['train=0.8', 'val=0.2'], metavar='SPLIT=SHARE',
                       help='random splits, of train, val, test (default: train=0.8 val=0.2); frames of one drive look '
                            'alike and belong in one split: better use --lists')
    group.add_argument('--lists', nargs='+', metavar='FILE', help='lists of images: train.txt, val.txt, test.txt')
    parser.add_argument('--seed', type=int, default=0, help='another one gives other random splits (default: 0)')
    parser.add_argument('--base_config', default=str(BASE), help='config that train.yml builds on (default: recipe)')
    add_num_workers_flag(parser)
    cli.add_debug_flag(parser)
    args = parser.parse_args(argv)
    check_num_workers(args.num_workers)
    if not os.path.isfile(args.base_config):
        raise FileError(f'--base_config {args.base_config}: expected a file, found nothing; see configs/')
    out = Path(args.out)
    mapping = read_mapping(args.mapping)
    pairs = pair_files(args.images, args.masks, args.mask_suffix)
    splits = (split_by_lists(pairs, args.lists, args.images) if args.lists else
              split_by_shares(pairs, args.split, args.seed))
    check_masks(pairs, splits, args.masks, args.mask_suffix)
    jobs = plan_jobs(pairs, splits, out)
    found = check_out(out, {'--images': args.images, '--masks': args.masks}, mapping.labels, jobs)
    write_description(out, found, mapping.labels, splits)
    text = Path(args.mapping).read_bytes()
    if not (out / MAPPING).is_file() or (out / MAPPING).read_bytes() != text:
        write_atomically(out / MAPPING, text)
    failed, sizes = prepare_all(jobs, mapping, (out / MAPPING).stat().st_mtime, args.num_workers)
    write_config(args.base_config, out, sizes, mapping.labels.num_classes)
    if len(splits) < len(pairs):
        print(f'{len(pairs) - len(splits)} of {len(pairs)} images are in no list and were left out')
    if failed:
        print(f'{out}: not complete; correct what is named above and run the same command again')
        return cli.EXIT_ERROR
    from tools.verify_dataset import verify
    status = verify(str(out), args.num_workers)
    if not status:
        print(f'next: {_training_command(out)}')
    return status


if __name__ == '__main__':
    cli.run(main)
