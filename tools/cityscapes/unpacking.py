"""Members of archives become files: looked up first, then in parallel processes, each file whole or not at all."""
import os
import re
import shutil
import sys
import zipfile
from collections import Counter
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tqdm import tqdm

from common.atomic_io import write_atomically
from common.errors import FileError, UserError
from tools.cityscapes.archives import read_member
from tools.cityscapes.label_conversion import decode_label_ids, ends_as_png, highest_id, train_id_png
from tools.shared.workers import DiskFull, results_of

BLOCK = 4096  # what the smallest file takes of a disk
# What write_atomically() leaves when it is killed, of the names that are written here.
_TEMPORARY = re.compile(r'\.(dataset\.yml|.+_(leftImg8bit|gtFine_label(Train)?Ids)\.png|.+_gtFine_polygons\.json)'
                        r'\.[a-z0-9_]{8}')
_OPEN = {}  # {(process, archive): ZipFile}: one that was opened before a fork would share its position


@dataclass(frozen=True)
class Plan:
    """members: [Member] to write. there: how many files are there already. replaced: how many have another size."""
    members: list
    there: int = 0
    replaced: int = 0

    @property
    def bytes(self):
        return sum(member.size for member in self.members)


def plan(root, members, converted=False, gone=()):
    """The Plan of those of `members` whose file is not there.

    It is there if it has the member's size; converted: if it is a whole PNG. gone: Paths that will be moved away.
    Raises OSError for a folder or a dangling link in its place.
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
        if found and (ends_as_png(target) if converted else target.stat().st_size == member.size):
            there += 1
        else:
            missing.append(member)
            replaced += found
    return Plan(missing, there, replaced)


def check_target(root, members):
    """OSError, one line, where the files of `members` have no place: no folder, no permission, no room."""
    root = Path(root)
    needed, seen = Counter(), {}
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


def remove_leftovers(root):
    """Removes the temporary files of killed runs; returns how many."""
    folders = [Path(root)]
    for pattern in ('leftImg8bit/*/*/', 'gtFine/*/*/', 'leftImg8bit_trainextra/leftImg8bit/train_extra/*/',
                    'convert_autolabelled/*/'):
        folders += Path(root).glob(pattern)
    found = [entry.path for folder in folders if folder.is_dir() for entry in os.scandir(folder)
             if entry.name.startswith('.') and _TEMPORARY.fullmatch(entry.name)]
    for path in found:
        os.unlink(path)
    return len(found)


def unpack(root, members, num_workers, desc, label_set=None):
    """Writes the members; a damaged one is reported on standard error and the rest is done.

    label_set: LabelSet; with it the members are label ids, and what is written are train ids. Returns the number of
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


def read(member):
    """Bytes of a member. ValueError, one line, for a damaged one."""
    key = os.getpid(), member.archive
    if key not in _OPEN:
        _OPEN[key] = zipfile.ZipFile(member.archive)
    try:
        return read_member(_OPEN[key], _OPEN[key].infolist()[member.index])
    except ValueError as error:
        raise UserError(f'{member.archive}: member {member.name!r}: {error}; the archive is damaged: download it '
                         'again') from error


def gigabytes(size):
    """A number of bytes for people."""
    return f'{size / 1e9:.2f} GB' if size >= 1e7 else f'{size / 1e6:.2f} MB'


def _unpack_one(member, root, label_set):
    """None, or what is wrong with it."""
    target = Path(root, member.target)
    try:
        data = read(member)
        if label_set is not None:
            labels = decode_label_ids(data, f'{member.archive}: member {member.name}', highest_id(label_set), label_set)
            data = train_id_png(labels, label_set)
        try:
            write_atomically(target, data, flush=False)  # the next run looks at its size
        except OSError as error:
            DiskFull.check(error, target)
            raise
    except DiskFull:
        raise
    except (ValueError, OSError) as error:
        return str(error)


def _existing(folder):
    """The innermost existing folder on the way to `folder`. OSError where something else stands in the way."""
    for path in (folder, *folder.parents):
        if path.is_dir():
            return path
        if os.path.lexists(path):
            found = f'a link to {os.readlink(path)}, which is not there' if os.path.islink(path) else 'a file'
            raise FileError(f'{path}: expected a folder, found {found}; move it away, or choose another '
                                     '--dataset_root')

