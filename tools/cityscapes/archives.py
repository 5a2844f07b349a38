"""The four archives of Cityscapes and their members, validated from the zip directories before anything is written."""
import os
import re
import stat
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common.errors import FileError, UserError
from datasets.pairing import COARSE

# The largest member of the official archives is a photograph of about 3 MB, and PNG data hardly compresses in a zip:
# members above a megabyte have a ratio of about 1, polygons and small label images of up to 20.
MAX_MEMBER = 64 << 20
MAX_RATIO, RATIO_FROM = 100, 1 << 20

_PAGE = 'https://www.cityscapes-dataset.com/downloads/'
_DRIVE = 'https://drive.google.com/file/d/1DtPo-WP-hjaOwsbj6ZxTtOo_7R_4TKRG/view'
_CITY = r'(?P<city>[^/]+)/(?P<file>[^/]+'


@dataclass(frozen=True)
class Kind:
    """One of the four archives.

    name: its file name. holds: its content in words. members: pattern of the member names that are used. target: path
    of such a member below the dataset's root, a format string for the groups of the pattern.
    """
    name: str
    holds: str
    members: re.Pattern
    target: str
    source: str = _PAGE
    size: str = ''

    @property
    def origin(self) -> str:
        return f'{self.name}{f" ({self.size})" if self.size else ""} from {self.source}'


IMAGES = Kind('leftImg8bit_trainvaltest.zip', 'the images of train, val and test',
              re.compile(rf'leftImg8bit/(?P<split>train|val|test)/{_CITY}_leftImg8bit\.png)'),
              'leftImg8bit/{split}/{city}/{file}', size='11 GB')
FINE = Kind('gtFine_trainvaltest.zip', 'the fine labels',
            re.compile(rf'gtFine/(?P<split>train|val|test)/{_CITY}_gtFine_((label|instance)Ids\.png|polygons\.json))'),
            'gtFine/{split}/{city}/{file}', size='241 MB')
EXTRA = Kind('leftImg8bit_trainextra.zip', 'the images of train_extra',
             re.compile(rf'leftImg8bit/train_extra/{_CITY}_leftImg8bit\.png)'),
             COARSE.images + '/{city}/{file}', size='44 GB')
AUTO = Kind('refinement_final_v0.zip', 'the auto-labels of train_extra',
            re.compile(rf'refinement_final/train_extra/{_CITY}_leftImg8bit\.png)'),
            COARSE.labels + '/{city}/{file}', source=_DRIVE)
KINDS = (IMAGES, FINE, EXTRA, AUTO)
DESCRIPTION = 'dataset.yml'  # only in toy archives: in the one of the images, at the top
LEFTOVER = 'tmp'  # a stray folder in the released auto-labels, not a city


@dataclass(frozen=True)
class Member:
    """A file to unpack. index: its position in the zip directory. size: in bytes. target: path below the root."""
    archive: Path
    index: int
    name: str
    size: int
    target: str


@dataclass(frozen=True)
class Archive:
    """A valid archive. members: in the order of their data. notes: lines about what is left out."""
    kind: Kind
    members: list[Member]
    notes: list[str]


def find_archives(folder: str | os.PathLike) -> list[Archive]:
    """Those of the four archives that are in a folder, validated. Raises UserError or FileError with one line."""
    folder = Path(folder)
    if not folder.is_dir():
        raise FileError(f'--zips {folder}: expected a folder with archives of Cityscapes, found '
                                f'{"a file" if folder.exists() else "nothing"}; correct the path')
    return [open_archive(folder / kind.name, kind) for kind in KINDS if (folder / kind.name).exists()]


def open_archive(path: str | os.PathLike, kind: Kind) -> Archive:
    """The Archive at a path. Raises UserError with one line if it cannot be unpacked, or not safely."""
    path = Path(path)
    again = f'download {kind.origin} again'
    try:
        with zipfile.ZipFile(path) as file:
            infos, data_end = file.infolist(), file.start_dir
            starts = _starts_fit(file, infos)
    except (zipfile.BadZipFile, NotImplementedError, EOFError, IsADirectoryError) as error:
        found = _found_instead(path, error)
        raise UserError(f'{path}: expected a whole zip archive, found {found}; {again}') from error
    if sum(info.compress_size for info in infos) > data_end or not starts:
        raise UserError(f'{path}: expected a whole zip archive, found one whose directory does not fit its '
                         f'{data_end} bytes of data (truncated or damaged); {again}')
    for info in infos:
        fault = _fault(info)
        if fault:
            raise UserError(f'{path}: expected files that can be unpacked into a folder, found member '
                             f'{info.orig_filename!r:.200} {fault}; nothing was unpacked: {again}')
    return _select_members(path, kind, infos)


def read_member(file: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    """Content of a member of an open ZipFile. Raises UserError, with one line without the file names, if damaged.

    Never unpacks more than the declared size, whatever the data would expand to.
    """
    try:
        with file.open(info) as stream:
            data = stream.read(info.file_size)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
        raise UserError(f'expected {info.file_size} bytes with the checksum of its directory, found others '
                         f'({" ".join(str(error).split()) or type(error).__name__})') from error
    if len(data) != info.file_size or not data:
        raise UserError(f'expected {info.file_size or "some"} bytes, found {len(data)}')
    return data


def member_name(info: zipfile.ZipInfo) -> str:
    """Name of a member; some programs write UTF-8 without setting the flag for it."""
    if not info.flag_bits & 0x800:
        try:
            return info.filename.encode('cp437').decode()
        except UnicodeError:
            pass
    return info.filename


def _starts_fit(file: zipfile.ZipFile, infos: Sequence[zipfile.ZipInfo]) -> bool:
    """Whether the first and the last member start where the directory says, unlike in a file with missing parts."""
    ends = (min, max) if infos else ()
    stream = file.fp
    assert stream is not None, 'the archive is open'
    for info in [end(infos, key=lambda info: info.header_offset) for end in ends]:
        stream.seek(max(info.header_offset, 0))
        if info.header_offset < 0 or stream.read(4) != b'PK\x03\x04':
            return False
    return True


def _found_instead(path: Path, error: Exception) -> str:
    if path.is_dir():
        return 'a folder'
    with open(path, 'rb') as file:
        head = file.read(2048)
    size = f'{path.stat().st_size} bytes'
    if not head:
        return 'an empty file'
    if re.search(rb'<!doctype html|<html|<head', head.lower()):
        return (f'a web page of {size}, saved in its place (a login, or the page on which Google Drive asks to confirm '
                'the download of a file too large for its virus scan)')
    if head.startswith(b'PK'):
        return f'one of {size} that is truncated or damaged ({" ".join(str(error).split())})'
    return f'{size} that are no zip archive'


def _fault(info: zipfile.ZipInfo) -> str | None:
    """What is wrong with a member, or None; decided from its directory entry, before any of its data is read."""
    name = info.orig_filename
    parts = name.split('/')
    kind = stat.S_IFMT(info.external_attr >> 16)
    if name.startswith('/') or {'.', '..'} & set(parts) or '\\' in name or '\0' in name or re.match('[A-Za-z]:', name):
        return 'whose path leaves it'
    if kind == stat.S_IFLNK:
        return 'that is a symbolic link'
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return 'that is no file'
    if info.flag_bits & 0x41:
        return 'that is protected by a password'
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return f'packed by method {info.compress_type} (expected: deflated)'
    if info.file_size > MAX_MEMBER or info.file_size > max(RATIO_FROM, MAX_RATIO * info.compress_size):
        return f'that expands without end ({info.compress_size} bytes to {info.file_size})'
    return None


def _select_members(path: Path, kind: Kind, infos: Sequence[zipfile.ZipInfo]) -> Archive:
    """The Archive of valid members. Raises UserError if they are those of another archive."""
    names = [member_name(info) for info in infos]
    counts = {other: sum(other.members.fullmatch(name) is not None for name in names) for other in KINDS}
    if not counts[kind]:
        other = max(KINDS, key=counts.__getitem__)
        if counts[other]:
            raise UserError(f'{path}: expected {kind.holds}, found {other.holds} (those of {other.name}); give it '
                             f'that name, and download {kind.origin}')
        some = ', '.join(map(repr, names[:3])) or 'nothing'
        raise UserError(f'{path}: expected {kind.holds}, found {len(names)} other files ({some:.200}); '
                         f'download {kind.origin}')
    members: dict[str, Member] = {}
    leftovers: list[str] = []
    twice: list[str] = []
    for index, (info, name) in sorted(enumerate(zip(infos, names)), key=lambda item: item[1][0].header_offset):
        match = kind.members.fullmatch(name)
        if kind is AUTO and LEFTOVER in name.split('/')[:-1]:
            leftovers += [name] * (not name.endswith('/'))
            continue
        if kind is IMAGES and name == DESCRIPTION:
            target = DESCRIPTION
        elif match:
            target = kind.target.format(**match.groupdict())
        else:
            continue
        if target in members:
            twice.append(name)
        else:
            members[target] = Member(path, index, name, info.file_size, target)
    notes = [f'{path.name}: {_count(found)} {what}, left out'
             for found, what in ((leftovers, f'in a folder {LEFTOVER}, which is no city'),
                                 (twice, 'that is there before under the same name')) if found]
    return Archive(kind, list(members.values()), notes)


def _count(names: Sequence[str]) -> str:
    return f'{names[0]!r}' + (f' and {len(names) - 1} more' if len(names) > 1 else '')
