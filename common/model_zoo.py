"""Weights by name or URL: downloaded once, continued where a download broke off, kept in the user's cache folder.

PaddleSeg publishes its backbones as archives, of which the one file of weights is unpacked beside the download.
"""
import contextlib
import fcntl
import functools
import gzip
import hashlib
import logging
import os
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from common.atomic_io import sha256_of, write_atomically, written_beside
from common.config_files import nearest
from common.errors import FileError, UserError

logger = logging.getLogger(__name__)

ZOO = Path(__file__).resolve().parents[1] / 'configs' / 'model_zoo.yml'
TIMEOUT = 30  # seconds without a byte
ARCHIVES = ('.tgz', '.tar.gz', '.tar', '.zip')
BLOCK = 1 << 16  # bytes; of a connection that breaks off, less than one block is lost


def local_weights(source: str | os.PathLike) -> Path:
    """The file of weights given as a path, as a name in configs/model_zoo.yml, or as a URL.

    A path is returned as it is, whether there is a file or not; of an archive, the weights in it. What is downloaded is
    kept with its SHA-256 beside it, and looked at before it is used again. Raises UserError or FileError with one line.
    """
    text = str(source)
    if text.startswith(('http://', 'https://')):
        path = _downloaded({'url': text})
        return _unpacked(path) if path.name.endswith(ARCHIVES) else path
    if text.endswith(ARCHIVES) and os.path.isfile(text):
        return _unpacked(Path(text))
    if os.path.exists(text) or os.sep in text or Path(text).suffix:
        return Path(source)
    zoo = yaml.safe_load(ZOO.read_text(encoding='utf-8'))
    if text not in zoo:
        raise FileError(f'{text}: expected a file of weights, a URL or a name in configs/{ZOO.name}, found neither; '
                        f'{nearest(text, zoo)}')
    return _downloaded(zoo[text])


def cache_folder() -> Path:
    """Where downloads and converted networks are kept: $MSCALE_CACHE, else mscale_ocrnet in the user's cache folder."""
    if chosen := os.environ.get('MSCALE_CACHE'):
        return Path(chosen)
    return Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'mscale_ocrnet'


def weights_folder() -> Path:
    """Where downloads are kept."""
    return cache_folder() / 'weights'


def _unpacked(archive: Path) -> Path:
    """The only *.pdparams of an archive, in the cache folder; nothing else of it is written anywhere."""
    target = weights_folder() / f'{sha256_of(archive)[:12]}-{archive.name.partition(".")[0]}.pdparams'
    if target.is_file():
        return target
    try:
        with _files(archive) as files:
            names = [name for name in files if name.endswith('.pdparams')]
            if len(names) != 1:
                raise FileError(f'{archive}: expected an archive with one file of weights (*.pdparams), found '
                                f'{len(names)}; unpack it and give the path of the right one')
            with written_beside(target) as temporary, files[names[0]]() as source, open(temporary, 'wb') as file:
                shutil.copyfileobj(source, file)
    except (tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise FileError(f'{archive}: expected an archive, found a damaged one ({error}); delete and download it again'
                        ) from error
    return target


@contextlib.contextmanager
def _files(archive: Path) -> Iterator[dict[str, Callable[[], Any]]]:
    """{name: opens it} of the files in a tar or zip file."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as zipped:
            yield {name: functools.partial(zipped.open, name) for name in zipped.namelist()}
    else:
        with tarfile.open(archive) as tar:
            yield {member.name: functools.partial(tar.extractfile, member) for member in tar if member.isfile()}


def _downloaded(entry: dict[str, Any]) -> Path:
    url = entry['url']
    name = Path(urlsplit(url).path).name or 'weights'
    target = weights_folder() / f'{hashlib.sha256(url.encode()).hexdigest()[:12]}-{name}'
    note = target.with_name(f'{target.name}.sha256')
    partial = target.with_name(f'{target.name}.partial')
    while True:
        if target.is_file() and note.is_file():
            if sha256_of(target) == note.read_text().strip():
                return target
            target.unlink(missing_ok=True)  # damaged since: only what this module wrote itself
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with open(partial, 'ab') as mine:
                fcntl.flock(mine, fcntl.LOCK_EX)  # one of several processes downloads, the others wait for it
                try:
                    if not os.path.samestat(os.fstat(mine.fileno()), os.stat(partial)):
                        continue
                except FileNotFoundError:  # another one was faster
                    continue
                if target.is_file() and note.is_file():
                    partial.unlink()
                    continue
                return _complete(entry, partial, note, target)
        except OSError as error:
            if isinstance(error, UserError):
                raise
            raise FileError(f'{partial}: expected to write it, found "{error.strerror or error}"; make room, or set '
                            'MSCALE_CACHE to another folder') from error


def _complete(entry: dict[str, Any], partial: Path, note: Path, target: Path) -> Path:
    url = entry['url']
    _fetch(url, partial)
    digest, size = sha256_of(partial), partial.stat().st_size
    for what, expected, found in (('SHA-256', entry.get('sha256'), digest), ('bytes', entry.get('bytes'), size)):
        if expected is not None and expected != found:
            partial.unlink()
            raise UserError(f'{url}: expected a file of {what} {expected}, found {found}; it was deleted: try again, '
                            'or find out who has changed it')
    unknown = '' if entry.get('sha256') else (
        '; nothing is known here to compare it with, so see that it is what its publisher states. It is kept, and '
        'compared with this whenever it is used again')
    logger.info('%s: downloaded for the first time, %d bytes, SHA-256 %s%s', url, size, digest, unknown)
    write_atomically(note, digest.encode())
    os.replace(partial, target)
    return target


def _fetch(url: str, partial: Path) -> None:
    """Append to `partial` what is missing of it; it is whole afterwards, or UserError."""
    import requests
    from tqdm import tqdm

    there = partial.stat().st_size if partial.exists() else 0
    try:
        with requests.get(url, stream=True, timeout=TIMEOUT, headers={'Range': f'bytes={there}-'} if there else {},
                          allow_redirects=True) as response:
            if there and response.status_code == 416:  # all of it is there
                return
            if response.status_code not in (200, 206):
                raise UserError(f'{url}: expected a file, found status {response.status_code} {response.reason}; check '
                                'the address, or download it by other means and give its path')
            if response.status_code == 200:
                there = 0  # the server sends all of it again
            announced = response.headers.get('Content-Length')
            total = there + int(announced) if announced else None
            with open(partial, 'ab' if there else 'wb') as file, tqdm(
                    total=total, initial=there, desc=partial.name[13:-8], unit='B', unit_scale=True,
                    disable=None) as bar:
                for block in response.iter_content(BLOCK):
                    file.write(block)
                    bar.update(len(block))
                found = file.tell()
        if total is not None and found != total:
            raise UserError(f'{url}: expected {total} bytes, found {found} when the connection ended; run the same '
                            'command again, it continues')
    except requests.RequestException as error:
        reason = ' '.join(str(error).split())
        raise UserError(f'{url}: expected to download it, found no connection ({type(error).__name__}: {reason:.120}); '
                        'run the same command again, it continues, or download it by other means and give its path'
                        ) from error
