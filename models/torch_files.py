"""Files of torch.save, read as arrays without torch: zip files, and the stream of pickles that torch wrote before 1.6.

Both hold a pickle in which a tensor is a view of a storage, named by a persistent id, and beside it the bytes of the
storages. In the stream they follow the pickle that announces them.
"""
import math
import os
import struct
import zipfile
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np

from models import safe_pickle
from models.safe_pickle import HEADER, Refused, Room, from_bfloat16, in_order, is_name, short

STREAM = b'\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.'  # the instructions for the number with which the stream begins
_MAGIC, _VERSION = 0x1950a86a20f9469cfc6c, 1001
_STORAGES = {'DoubleStorage': 'f8', 'FloatStorage': 'f4', 'HalfStorage': 'f2', 'LongStorage': 'i8', 'IntStorage': 'i4',
             'ShortStorage': 'i2', 'CharStorage': 'i1', 'ByteStorage': 'u1', 'BoolStorage': '?',
             'BFloat16Storage': 'bfloat16'}


class _Directory:
    """A file of which, while its members are listed, nobody reads more than HEADER at once: each becomes an object."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._size, self.listing = file, size, True
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, size: int = -1) -> bytes:
        left = self._size - self._file.tell()
        if self.listing and min(left, size if size >= 0 else left) > HEADER:
            raise Refused(f'a list of members of {size} bytes')
        return self._file.read(size)


def read_zip(file: BinaryIO) -> Any:
    """What torch.save wrote into a zip file (torch 1.6 and later)."""
    size = os.fstat(file.fileno()).st_size
    directory: Any = _Directory(file, size)
    with zipfile.ZipFile(directory) as archive:
        directory.listing = False
        members = {info.filename: info for info in archive.infolist()}
        if len(members) < len(archive.infolist()):
            raise Refused('two members of one name')
        pickles = [name for name in members if name.count('/') == 1 and name.endswith('/data.pkl')]
        if len(pickles) != 1:
            raise Refused('a zip file without the data.pkl of torch.save')
        folder = pickles[0].partition('/')[0]
        if any(info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 for info in members.values()):
            raise Refused('compressed or encrypted members, which torch.save does not write')
        room = Room(size)

        def member(name: str) -> bytes:
            room.take(members[name].file_size)  # members that share their bytes are more than the file has
            return archive.read(name)

        order = member(f'{folder}/byteorder') if f'{folder}/byteorder' in members else b'little'
        if order != b'little':
            raise Refused(f'byte order {short(order)}')
        storages = _Storages(lambda key: member(f'{folder}/data/{key}'), Room(size))
        return safe_pickle.loads(member(pickles[0]), storages.names(), storages.named)


def is_stream(head: bytes) -> bool:
    """Whether the first bytes of a file are those of torch.save before 1.6, of any protocol of pickle."""
    return head[:1] == b'\x80' and STREAM in head[:len(STREAM) + 16]


def read_stream(file: BinaryIO) -> Any:
    """What torch.save wrote before torch 1.6: pickles of a number, a version, the machine, the object and the list of
    its storages; and each storage, as its number of values (8 bytes) and the values.

    The object's pickle is read twice: first for its end and for what it announces, then with the storages.
    """
    size = os.fstat(file.fileno()).st_size

    def load(names: Any = None, persistent: Any = None) -> Any:
        return safe_pickle.load(file, size - file.tell(), names, persistent)

    if load() != _MAGIC or load() != _VERSION:
        raise Refused('another version of what torch wrote before 1.6')
    machine = load()
    if not isinstance(machine, dict) or machine.get('little_endian') is not True:
        raise Refused('numbers of a machine that is not little-endian')
    start = file.tell()
    announced: dict[str, tuple[str, int]] = {}

    def announce(pid: Any) -> None:
        key, code, count = _storage_of(pid, in_stream=True)
        if announced.setdefault(key, (code, count)) != (code, count):
            raise Refused(f'storage {short(key)} of two types or sizes')

    load(_names(lambda *_: None), announce)
    keys = load()
    if not isinstance(keys, list) or not all(map(is_name, keys)) or sorted(keys) != sorted(announced):
        raise Refused('a list of storages other than those that are used')
    data = {}
    for key in keys:
        (count,), (code, expected) = struct.unpack('<q', file.read(8)), announced[key]
        length, left = expected * _item(code).itemsize, size - file.tell()
        if count != expected:
            raise Refused(f'a storage of {count} values where {expected} are announced')
        if length > left:
            raise ValueError(f'{length} bytes announced where {left} are left')
        data[key] = file.read(length)
    if file.tell() != size:
        raise Refused(f'{size - file.tell()} bytes after the last storage')
    file.seek(start)
    storages = _Storages(data.__getitem__, Room(size), in_stream=True)
    return load(storages.names(), storages.named)


class _StorageType:
    """A class like torch.FloatStorage: it names the type of a storage, and is never called."""

    def __init__(self, code: str) -> None:
        self.code = code

    def __call__(self, *_: Any) -> None:
        raise Refused('a storage outside of its archive')


def _item(code: str) -> np.dtype:
    """The type of a storage's values as they are in the file."""
    return np.dtype('<u2' if code == 'bfloat16' else code).newbyteorder('<')


def _storage_of(pid: Any, in_stream: bool) -> tuple[str, str, int]:
    """(key, type, number of values) of a persistent id: ('storage', type, key, device, number of values).

    In the stream there is one part more, which is None unless the storage is a part of another one; nothing has
    written such a part since torch 0.4.
    """
    if not isinstance(pid, tuple) or len(pid) != 5 + in_stream or pid[0] != 'storage' \
            or not isinstance(pid[1], _StorageType) or not is_name(pid[2]) or '/' in pid[2] \
            or type(pid[4]) is not int or pid[4] < 0 or (in_stream and pid[5] is not None):
        raise Refused('a persistent id that is no storage')
    return pid[2], pid[1].code, pid[4]


def _names(tensor: Callable[..., Any]) -> dict[str, Callable[..., Any]]:
    """The names that torch's pickles need; tensor: what rebuilds one."""
    return {**{f'torch {name}': _StorageType(code) for name, code in _STORAGES.items()},
            'torch._utils _rebuild_tensor_v2': tensor, 'torch._utils _rebuild_parameter': _parameter}


class _Storages:
    """The storages of a file, each read once, and tensors as views of them."""

    def __init__(self, member: Callable[[str], bytes], room: Room, in_stream: bool = False) -> None:
        self._member, self._room, self._in_stream = member, room, in_stream
        self._known: dict[tuple[str, str], np.ndarray] = {}

    def names(self) -> dict[str, Callable[..., Any]]:
        return _names(self.tensor)

    def named(self, pid: Any) -> np.ndarray:
        """The storage of a persistent id."""
        key, code, count = _storage_of(pid, self._in_stream)
        if (key, code) not in self._known:
            array = np.frombuffer(self._member(key), _item(code))
            self._known[key, code] = from_bfloat16(array) if code == 'bfloat16' else array
        storage = self._known[key, code]
        if storage.size != count:
            raise Refused(f'a storage of {storage.size} values where {short(count)} are announced')
        return storage

    def tensor(self, storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> np.ndarray:
        """torch._utils._rebuild_tensor_v2."""
        if not isinstance(storage, np.ndarray) or storage.ndim != 1 or not isinstance(size, tuple) \
                or not isinstance(stride, tuple) or len(size) != len(stride) or len(size) > safe_pickle.MAX_SIDES \
                or not all(type(number) is int and 0 <= number < 1 << 40 for number in (offset, *size, *stride)):
            raise Refused('a tensor that is no view of a storage')
        count = math.prod(size)
        last = offset + sum((side - 1) * step for side, step in zip(size, stride))
        if count > storage.size or (count and last >= storage.size):
            raise Refused(f'a tensor of shape {short(size)} in a storage of {storage.size} values')
        if not count:
            return np.zeros(size, storage.dtype)
        steps = [step * storage.itemsize for step in stride]
        return in_order(np.lib.stride_tricks.as_strided(storage[offset:], size, steps, writeable=False), self._room)


def _parameter(data: Any, *_: Any) -> Any:
    return data
