"""Writing files so that a reader never sees a partial one, even after a kill."""
import contextlib
import fcntl
import hashlib
import os
import platform
import secrets
from collections.abc import Iterator
from pathlib import Path

from common.errors import UserError


def write_atomically(path: str | os.PathLike, data: bytes, flush: bool = True) -> None:
    """Write bytes to a temporary file in the same folder, flush it to disk, rename it to `path`.

    flush: False is 20 times as fast for a small file. After a kill the file is still complete or absent, but a power
    cut can leave an empty one: only for files that can be recreated and are checked before use.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = _open_temporary(path)
    try:
        with os.fdopen(handle, 'wb') as file:
            file.write(data)
            if flush:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
        if flush:
            flush_folder(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def written_beside(path: str | os.PathLike) -> Iterator[Path]:
    """A path for a library to write to, which becomes `path`, flushed to disk, when the block ends without an error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f'.{path.name}.{secrets.token_hex(4)}')
    try:
        yield temporary
        with open(temporary, 'rb') as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        flush_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def flush_folder(path: str | os.PathLike) -> None:
    """Make renames in a folder survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256_of(path: str | os.PathLike) -> str:
    """Hexadecimal SHA-256 of a file."""
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


class FolderLock:
    """Held by the only run that writes into a folder; released when the process ends, however it ends."""

    def __init__(self, folder: str | os.PathLike, flag: str = '--save_dir') -> None:
        """Raises UserError, which names the flag, if another process holds the lock."""
        path = Path(folder) / '.lock'
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(path, 'a+')  # noqa: SIM115 (open as long as the lock is held)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.seek(0)
            owner = self._file.read().strip() or 'unknown'
            raise UserError(f'{flag} {folder}: expected no other run to write there, found {owner}; wait for it, '
                             f'or choose another {flag}') from None
        self._file.truncate(0)
        self._file.write(f'process {os.getpid()} on {platform.node()}')
        self._file.flush()

    def __enter__(self) -> 'FolderLock':
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def remove(self) -> None:
        """Release it, and leave no trace in the folder."""
        Path(self._file.name).unlink(missing_ok=True)
        self._file.close()


def _open_temporary(path: Path) -> tuple[int, Path]:
    """A new file beside `path`, opened for writing; the kernel applies the umask to its mode, as to any new file's."""
    while True:
        temporary = path.with_name(f'.{path.name}.{secrets.token_hex(4)}')
        with contextlib.suppress(FileExistsError):
            return os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666), temporary
