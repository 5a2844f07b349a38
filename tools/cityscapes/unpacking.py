"""Unpacking members of archives: planned first, then done in parallel processes, each file whole or not at all."""
import os
import re
import shutil
import sys
import zipfile
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tqdm import tqdm

from common.atomic_io import write_atomically
from common.errors import FileError, UserError
from datasets.labels import LabelSet
from tools.cityscapes.archives import Member, read_member
from tools.cityscapes.label_conversion import train_id_png
from tools.shared.label_ids import decode_label_ids, highest_id
from tools.shared.png import is_whole_png_file
from tools.shared.workers import DiskFull, results_of

BLOCK = 4096  # disk space that the smallest file takes
# Names of the temporary files that write_atomically() leaves behind when it is killed while it writes files here.
_TEMPORARY = re.compile(r'\.(dataset\.yml|.+_(leftImg8bit|gtFine_(label|labelTrain|instance)Ids)\.png|'
                        r'.+_gtFine_polygons\.json)\.[a-z0-9_]{8}')
# {(process id, archive): ZipFile}: one that was opened before a fork would share its file position.
_OPEN: dict[tuple[int, Path], zipfile.ZipFile] = {}


@dataclass(frozen=True)
class Plan:
    """What to unpack.

    members: those to write. there: number of files that exist already. replaced: number of existing files that will be
    replaced, as their size is wrong.
    """
    members: list[Member]
    there: int = 0
    replaced: int = 0

    @property
    def bytes(self) -> int:
        return sum(member.size for member in self.members)


def plan_unpacking(root: str | os.PathLike, members: Iterable[Member], converted: bool = False,
                   gone: Collection[Path] = ()) -> Plan:
    """The Plan for those of `members` whose file does not exist yet.

    A file counts as existing if it has the member's size or, with `converted`, if it is a whole PNG. gone: files that
    will be moved away. Raises OSError for a folder or a dangling link at a file's path.
    """
    missing, there, replaced = [], 0, 0
    for member in members:
        target = Path(root, member.target)
        if os.path.islink(target) and not target.exists():
            raise FileError(f'{target}: expected a file or nothing, found a link to {os.readlink(target)}, '
                                    'which is not there (a disk that is not mounted?)')
        if target.is_dir():
            raise IsADirectoryError(f'{target}: expected a file or nothing, found a folder; move it away')
        found = target.exists() and target not in gone
        if found and (is_whole_png_file(target) if converted else target.stat().st_size == member.size):
            there += 1
        else:
            missing.append(member)
            replaced += found
    return Plan(missing, there, replaced)


def check_target(root: str | os.PathLike, members: Iterable[Member]) -> None:
    """Raise OSError, with one line, if `members` cannot be written: no folder, no permission, or a full disk."""
    root = Path(root)
    needed: Counter[int] = Counter()  # bytes for each device
    seen: dict[Path, Path] = {}
    for member in members:
        folder = Path(root, member.target).parent
        if folder not in seen:
            seen[folder] = _existing(folder)
        needed[os.stat(seen[folder]).st_dev] += -(-member.size // BLOCK) * BLOCK
    for folder in {_existing(root), *seen.values()}:
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(f'{folder}: expected a folder that may be written to, found one that may not; change '
                                  'its permissions, or choose another --dataset_root')
    for folder in seen.values():
        need, free = needed.pop(os.stat(folder).st_dev, 0), shutil.disk_usage(folder).free
        if need > free:
            raise FileError(f'{folder}: expected {gigabytes(need)} of free disk for what is still to unpack, found '
                          f'{gigabytes(free)}; make room, or put a link to a folder on another disk there')


def remove_leftovers(root: str | os.PathLike) -> int:
    """Remove the temporary files of killed runs; returns how many there were."""
    folders = [Path(root)]
    for pattern in ('leftImg8bit/*/*/', 'gtFine/*/*/', 'leftImg8bit_trainextra/leftImg8bit/train_extra/*/',
                    'convert_autolabelled/*/'):
        folders += Path(root).glob(pattern)
    found = [entry.path for folder in folders if folder.is_dir() for entry in os.scandir(folder)
             if entry.name.startswith('.') and _TEMPORARY.fullmatch(entry.name)]
    for path in found:
        os.unlink(path)
    return len(found)


def unpack(root: str | os.PathLike, members: Sequence[Member], num_workers: int, desc: str,
           label_set: LabelSet | None = None) -> int:
    """Write the members; damaged ones are reported on standard error, and the others are still written.

    label_set: if given, the members are images of label ids and are converted to train ids. Returns the number of
    failures. Raises DiskFull.
    """
    failed = 0
    work = partial(_unpack_one, root=root, label_set=label_set)
    total = sum(member.size for member in members)
    with closing(results_of(work, members, num_workers)) as results, \
            tqdm(total=total, desc=desc, unit='B', unit_scale=True, disable=None) as bar:
        for member, error in zip(members, results):
            bar.update(member.size)
            if error:
                failed += 1
                tqdm.write(f'error: {error}', file=sys.stderr)
    return failed


def read(member: Member) -> bytes:
    """Content of a member. Raises UserError with one line if it is damaged."""
    key = os.getpid(), member.archive
    if key not in _OPEN:
        _OPEN[key] = zipfile.ZipFile(member.archive)
    try:
        return read_member(_OPEN[key], _OPEN[key].infolist()[member.index])
    except ValueError as error:
        raise UserError(f'{member.archive}: member {member.name!r}: {error}; the archive is damaged: download it '
                         'again') from error


def gigabytes(size: int) -> str:
    """A number of bytes in readable units."""
    return f'{size / 1e9:.2f} GB' if size >= 1e7 else f'{size / 1e6:.2f} MB'


def _unpack_one(member: Member, root: str | os.PathLike, label_set: LabelSet | None) -> str | None:
    """Write one member; returns None, or a one-line message that says what is wrong with it."""
    target = Path(root, member.target)
    try:
        data = read(member)
        if label_set is not None:
            labels = decode_label_ids(data, f'{member.archive}: member {member.name}', highest_id(label_set), label_set)
            data = train_id_png(labels, label_set)
        try:
            write_atomically(target, data, flush=False)  # the next run checks its size
        except OSError as error:
            DiskFull.check(error, target)
            raise
    except DiskFull:
        raise
    except (ValueError, OSError) as error:
        return str(error)
    return None


def _existing(folder: Path) -> Path:
    """The innermost existing folder on the way to `folder`. Raises FileError if something else is in the way."""
    for path in (folder, *folder.parents):
        if path.is_dir():
            return path
        if os.path.lexists(path):
            found = f'a link to {os.readlink(path)}, which is not there' if os.path.islink(path) else 'a file'
            raise FileError(f'{path}: expected a folder, found {found}; move it away, or choose another '
                                     '--dataset_root')
    raise FileNotFoundError(folder)  # the working directory has been removed

