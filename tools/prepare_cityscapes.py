"""Makes data/cityscapes from the downloaded archives: unpacks what is needed, converts all labels, verifies the result.

    python tools/prepare_cityscapes.py --zips ~/Downloads --dataset_root data/cityscapes
    python tools/prepare_cityscapes.py --dataset_root data/cityscapes --verify

--zips holds leftImg8bit_trainvaltest.zip, gtFine_trainvaltest.zip, leftImg8bit_trainextra.zip and
refinement_final_v0.zip, or some of them; what is in dataset_root already is used. Written are

    leftImg8bit/{train,val,test}/<city>/*_leftImg8bit.png
    gtFine/{train,val,test}/<city>/*_gtFine_labelIds.png and, made from them, *_gtFine_labelTrainIds.png
    leftImg8bit_trainextra/leftImg8bit/train_extra/<city>/*_leftImg8bit.png
    convert_autolabelled/<city>/*_leftImg8bit.png, made from the auto-labels, which are not unpacked themselves

Can be killed and run again: a file is there with the size that its archive states, or it is written. One with another
size is what an interrupted unzip left, and is replaced; nothing else that is there is changed. The exception is the
image of train_extra that Cityscapes' download page calls corrupt: where it cannot be decoded (or shows nothing) it is
not unpacked and its label not converted; one that lies in dataset_root already is renamed to *.png.unused, and so is
a label that was converted before, so that images and labels pair and training does not meet it.
"""
import argparse
import io
import os
import sys
from contextlib import suppress
from itertools import count
from pathlib import Path

if __name__ == '__main__':
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import cv2
import numpy as np
from PIL import Image

from common import cli
from common.atomic_io import FolderLock
from common.errors import UserError
from datasets.description import describe
from datasets.pairing import COARSE
from datasets.pairing import CORRUPT as CORRUPT_NAME
from tools import convert_cityscapes
from tools import convert_cityscapes_autolabeling as autolabeling
from tools.cityscapes.archives import AUTO, DESCRIPTION, EXTRA, FINE, KINDS, find_archives
from tools.cityscapes.label_conversion import available_cores, convert_all, describe_folder
from tools.cityscapes.unpacking import check_target, gigabytes, plan, read, remove_leftovers, unpack

CORRUPT = CORRUPT_NAME + autolabeling.ENDING
UNUSED = '.unused'


def prepare(root, zips, num_workers):
    """Unpacks and converts. root: Path. zips: folder or None. Returns the exit status: 1 if a file could not be done.

    Raises ValueError or OSError, with one line, for archives and folders that will not do (then nothing has been
    written) and for a full disk.
    """
    archives = {archive.kind: archive for archive in find_archives(zips)} if zips else {}
    members = {kind: archives[kind].members if kind in archives else [] for kind in KINDS}
    check_target(root, [])
    if not archives and not any((root / folder).is_dir() for folder in (
            'leftImg8bit', 'gtFine', 'leftImg8bit_trainextra', COARSE.labels, 'refinement_final')):
        raise UserError(_nothing(root, zips))
    describe(root)

    for archive in archives.values():
        print('\n'.join(archive.notes), end='\n' * bool(archive.notes))
    usable, aside, note = judge_corrupt(root, members)
    if not usable:
        members = {kind: [m for m in found if not m.target.endswith(CORRUPT)] for kind, found in members.items()}
    members[FINE] = _needed(root, members[FINE])
    if (root / DESCRIPTION).exists():  # the user's own counts and classes
        members = {kind: [m for m in found if m.target != DESCRIPTION] for kind, found in members.items()}
    plans = {kind: plan(root, members[kind], kind is AUTO, aside) for kind in archives}
    for kind, todo in plans.items():
        print(f'{kind.name}: {todo.there} files are there, {len(todo.members)} to '
              f'{"convert" if kind is AUTO else "unpack"} ({gigabytes(todo.bytes)})'
              + (f'; {todo.replaced} of them are there with another size, as an interrupted unzip leaves them, and are '
                 'replaced' if todo.replaced else ''))
    # The train ids of the fine labels are as large as their ids, so these count twice.
    check_target(root, [m for kind, todo in plans.items() for m in todo.members * (1 + (kind is FINE))])

    with FolderLock(root, '--dataset_root'):
        leftovers = remove_leftovers(root)
        if leftovers:
            print(f'{leftovers} half-written files of an interrupted run removed')
        if note:
            print(note)
        for path in aside:
            _set_aside(path)
        failed = unpack(root, [member for kind, todo in plans.items() if kind is not AUTO for member in todo.members],
                        num_workers, 'unpacking')
        label_set = describe(root).labels  # of a toy it has just been unpacked
        if AUTO in plans:
            failed += unpack(root, plans[AUTO].members, num_workers, 'auto-labels', label_set)
        status = int(failed > 0)
        if _some(root, f'gtFine/*/*/*{convert_cityscapes.SOURCE}', f'gtFine/*/*/*{convert_cityscapes.POLYGONS}'):
            status |= convert_all(convert_cityscapes.find_jobs(root), label_set, num_workers)
        if AUTO not in plans and _some(root, f'{autolabeling.SOURCE}/*/*{autolabeling.ENDING}'):
            autolabeling.check_origin(root, label_set)
            for leftover in root.glob(f'refinement_final/**/{autolabeling.LEFTOVER}/'):
                print(f'{leftover}: left out, it is no city')
            jobs = [job for job in autolabeling.find_jobs(root) if usable or not job[0].as_posix().endswith(CORRUPT)]
            status |= convert_all(jobs, label_set, num_workers)
    return status


def judge_corrupt(root, members):
    """(whether the image that is known to be corrupt can be used, Paths to set aside, a line to print or None)."""
    image, label = Path(root, COARSE.images, CORRUPT), Path(root, COARSE.labels, CORRUPT)
    packed = next((member for member in members[EXTRA] if member.target.endswith(CORRUPT)), None)
    good = image.is_file() and _shows_something(image.read_bytes())
    aside = [image] if image.is_file() and not good else []
    if not good and packed:
        with suppress(ValueError):  # damaged, which is no better
            good = _shows_something(read(packed))
    if good:
        return True, aside, None
    aside += [label] if label.is_file() else []
    name = Path(CORRUPT).name
    if packed or aside[:1] == [image]:
        note = f'{name}: corrupt, as the download page of Cityscapes says; left out together with its label'
    elif aside or any(m.target.endswith(CORRUPT) for m in members[AUTO]) or (
            root / autolabeling.SOURCE / CORRUPT).is_file():
        note = f'{name}: there is no such image (Cityscapes\' download page calls it corrupt); its label is left out'
    else:
        note = None
    return False, aside, note


def _shows_something(data):
    try:
        with Image.open(io.BytesIO(data)) as image:  # first: OpenCV, which training reads with, prints what it thinks
            extrema = image.convert('RGB').getextrema()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return False
    return any(low < high for low, high in extrema) and cv2.imdecode(np.frombuffer(data, np.uint8), 1) is not None


def _set_aside(path):
    target = next(other for i in count(1) if not (other := Path(f'{path}{UNUSED}{i if i > 1 else ""}')).exists())
    os.rename(path, target)
    print(f'{path}: renamed to {target.name}')


def _needed(root, members):
    """Of the fine labels: the label images, and the polygons of those that are neither in the archive nor there."""
    images = {member.target for member in members if member.target.endswith(convert_cityscapes.SOURCE)}

    def image_of(polygons):
        return polygons.removesuffix(convert_cityscapes.POLYGONS) + convert_cityscapes.SOURCE

    return [member for member in members if member.target in images or not (
        image_of(member.target) in images or Path(root, image_of(member.target)).exists())]


def _some(root, *patterns):
    return any(next(root.glob(pattern), None) for pattern in patterns)


def _nothing(root, zips):
    return (f'--zips {zips or ""}: expected some of {", ".join(kind.name for kind in KINDS)}, found '
            f'{describe_folder(Path(zips)) if zips else "no --zips"}, and no data in --dataset_root {root}; download '
            f'the first three from {KINDS[0].source} (after logging in) and the last from {AUTO.source}')


def _verify(root, num_workers):
    from tools.verify_dataset import verify
    return verify(root, num_workers=num_workers)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--zips', help='folder with the archives; without it, what is in dataset_root is converted')
    parser.add_argument('--dataset_root', required=True, help='folder to make, like data/cityscapes')
    parser.add_argument('--num_workers', type=int, default=available_cores(), help='processes (default: all cores)')
    parser.add_argument('--verify', action='store_true', help='without --zips: do the last step alone')
    cli.add_debug_flag(parser)
    args = parser.parse_args(argv)
    if args.num_workers < 0:
        raise UserError(f'--num_workers: expected 0 or more, found {args.num_workers}')
    status = 0
    if args.zips is not None or not args.verify:
        status = prepare(Path(args.dataset_root), args.zips, args.num_workers)
    return max(status, _verify(args.dataset_root, args.num_workers))


if __name__ == '__main__':
    cli.run(main)
