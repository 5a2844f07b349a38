"""Make data/cityscapes from the downloaded archives: unpack what is needed, convert all labels, verify the result.

    python tools/prepare_cityscapes.py --zips ~/Downloads --dataset_root data/cityscapes
    python tools/prepare_cityscapes.py --dataset_root data/cityscapes --verify

--zips holds leftImg8bit_trainvaltest.zip, gtFine_trainvaltest.zip, leftImg8bit_trainextra.zip and
refinement_final_v0.zip, or some of them; files that already exist in dataset_root are used. It writes

    leftImg8bit/{train,val,test}/<city>/*_leftImg8bit.png
    gtFine/{train,val,test}/<city>/*_gtFine_labelIds.png and, made from them, *_gtFine_labelTrainIds.png
    gtFine/val/<city>/*_gtFine_instanceIds.png, for val.py --official
    leftImg8bit_trainextra/leftImg8bit/train_extra/<city>/*_leftImg8bit.png
    convert_autolabelled/<city>/*_leftImg8bit.png, made from the auto-labels, which are not unpacked themselves

The archives are validated before anything is written. Safe to interrupt, or kill, and run again: files that have the
size stated in their archive are skipped, and existing files are never deleted. A file of another size was left by an
interrupted unzip and is replaced. The only other exception is the image of train_extra that Cityscapes' download page
calls corrupt: if it cannot be decoded (or is blank), neither it nor its label is written, and if they already exist
they are renamed to *.png.unused, so that every image has a label and training never reads it.
"""
import io
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path

if __name__ == '__main__':
    from shared import repository
    repository.import_from_root()

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
from tools.cityscapes.archives import AUTO, DESCRIPTION, EXTRA, FINE, KINDS, LEFTOVER, Kind, Member, find_archives
from tools.cityscapes.label_conversion import convert_all
from tools.cityscapes.unpacking import check_target, gigabytes, plan_unpacking, read, remove_leftovers, unpack
from tools.shared.folders import describe_folder
from tools.shared.workers import add_num_workers_flag, check_num_workers

CORRUPT = CORRUPT_NAME + autolabeling.SUFFIX
UNUSED = '.unused'
INSTANCES = '_gtFine_instanceIds.png'


def prepare(root: Path, zips: str | os.PathLike | None, num_workers: int) -> int:
    """Unpack and convert. zips: folder of the archives or None. Returns the exit status: 1 if any file failed.

    Raises UserError or OSError, with one line, for unusable archives and folders (before anything is written) and for a
    full disk.
    """
    archives = {archive.kind: archive for archive in find_archives(zips)} if zips else {}
    members = {kind: archives[kind].members if kind in archives else [] for kind in KINDS}
    check_target(root, [])
    if not archives and not any((root / folder).is_dir() for folder in (
            'leftImg8bit', 'gtFine', 'leftImg8bit_trainextra', COARSE.labels, 'refinement_final')):
        raise UserError(_nothing_to_do(root, zips))
    describe(root)

    for archive in archives.values():
        print('\n'.join(archive.notes), end='\n' * bool(archive.notes))
    usable, aside, note = check_corrupt_image(root, members)
    if not usable:
        members = {kind: [m for m in found if not m.target.endswith(CORRUPT)] for kind, found in members.items()}
    members[FINE] = _needed_labels(root, members[FINE])
    if (root / DESCRIPTION).exists():  # keep the user's own counts and classes
        members = {kind: [m for m in found if m.target != DESCRIPTION] for kind, found in members.items()}
    plans = {kind: plan_unpacking(root, members[kind], kind is AUTO, aside) for kind in archives}
    for kind, todo in plans.items():
        print(f'{kind.name}: {todo.there} files are there, {len(todo.members)} to '
              f'{"convert" if kind is AUTO else "unpack"} ({gigabytes(todo.bytes)})'
              + (f'; {todo.replaced} of them are there with another size, as an interrupted unzip leaves them, and are '
                 'replaced' if todo.replaced else ''))
    # The fine labels count twice: train ids take as much space as label ids.
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
        label_set = describe(root).labels  # read again: the dataset.yml of a toy dataset has just been unpacked
        if AUTO in plans:
            failed += unpack(root, plans[AUTO].members, num_workers, 'auto-labels', label_set)
        status = int(failed > 0)
        if _any_exists(root, f'gtFine/*/*/*{convert_cityscapes.SOURCE}', f'gtFine/*/*/*{convert_cityscapes.POLYGONS}'):
            status |= convert_all(convert_cityscapes.find_jobs(root), label_set, num_workers)
        if AUTO not in plans and _any_exists(root, f'{autolabeling.SOURCE}/*/*{autolabeling.SUFFIX}'):
            autolabeling.check_origin(root, label_set)
            for leftover in root.glob(f'refinement_final/**/{LEFTOVER}/'):
                print(f'{leftover}: left out, it is no city')
            jobs = [job for job in autolabeling.find_jobs(root) if usable or not job[0].as_posix().endswith(CORRUPT)]
            status |= convert_all(jobs, label_set, num_workers)
    return status


def check_corrupt_image(root: Path, members: Mapping[Kind, Sequence[Member]]) -> tuple[bool, list[Path], str | None]:
    """(whether the image that is known to be corrupt can be used, files to set aside, a line to print or None)."""
    image, label = Path(root, COARSE.images, CORRUPT), Path(root, COARSE.labels, CORRUPT)
    packed = next((member for member in members[EXTRA] if member.target.endswith(CORRUPT)), None)
    good = image.is_file() and _shows_something(image.read_bytes())
    aside = [image] if image.is_file() and not good else []
    if not good and packed:
        with suppress(ValueError):  # damaged in the archive, which is no better
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


def _shows_something(data: bytes) -> bool:
    try:
        with Image.open(io.BytesIO(data)) as image:  # before OpenCV, which training reads with, as it prints warnings
            extrema = image.convert('RGB').getextrema()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return False
    shows = any(low < high for low, high in extrema)  # type: ignore[misc]  # a pair for each of R, G and B
    return shows and cv2.imdecode(np.frombuffer(data, np.uint8), 1) is not None


def _set_aside(path: Path) -> None:
    target = next(other for i in count(1) if not (other := Path(f'{path}{UNUSED}{i if i > 1 else ""}')).exists())
    os.rename(path, target)
    print(f'{path}: renamed to {target.name}')


def _needed_labels(root: Path, members: Sequence[Member]) -> list[Member]:
    """The members of the fine labels to unpack: label images, the instances of val, and polygons where there is no
    label image anywhere."""
    images = {member.target for member in members if member.target.endswith(convert_cityscapes.SOURCE)}

    def image_of(polygons: str) -> str:
        return polygons.removesuffix(convert_cityscapes.POLYGONS) + convert_cityscapes.SOURCE

    return [member for member in members if member.target in images
            or (member.target.endswith(INSTANCES) and member.target.startswith('gtFine/val/'))
            or (member.target.endswith(convert_cityscapes.POLYGONS) and not (
                image_of(member.target) in images or Path(root, image_of(member.target)).exists()))]


def _any_exists(root: Path, *patterns: str) -> bool:
    return any(next(root.glob(pattern), None) for pattern in patterns)


def _nothing_to_do(root: Path, zips: str | os.PathLike | None) -> str:
    return (f'--zips {zips or ""}: expected some of {", ".join(kind.name for kind in KINDS)}, found '
            f'{describe_folder(Path(zips)) if zips else "no --zips"}, and no data in --dataset_root {root}; download '
            f'the first three from {KINDS[0].source} (after logging in) and the last from {AUTO.source}')


def _verify(root: str | os.PathLike, num_workers: int) -> int:
    from tools.verify_dataset import verify
    return verify(root, num_workers=num_workers)


def main(argv: Sequence[str] | None = None) -> int:
    parser = cli.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--zips', help='folder with the archives; without it, what is in dataset_root is converted')
    parser.add_argument('--dataset_root', required=True, help='folder to make, like data/cityscapes')
    add_num_workers_flag(parser)
    parser.add_argument('--verify', action='store_true', help='without --zips: do the last step alone')
    cli.add_debug_flag(parser)
    args = parser.parse_args(argv)
    check_num_workers(args.num_workers)
    status = 0
    if args.zips is not None or not args.verify:
        status = prepare(Path(args.dataset_root), args.zips, args.num_workers)
    return max(status, _verify(args.dataset_root, args.num_workers))


if __name__ == '__main__':
    cli.run(main)
