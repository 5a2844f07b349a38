"""Weight files of every kind that this family of networks comes in, read as arrays; nothing in them is run.

.pdparams, .pdopt and other files of paddle.save (2.x and 3.x); safetensors; the zip files of torch.save (.pth), without
torch. The kind is told by the content, not by the name.
"""
import json
import math
import os
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from common.errors import FileError, UserError
from models import safe_pickle
from models.safe_pickle import Refused, Room, fits, in_order, is_name, short

NAME_TABLE = 'StructuredToParameterName@@'  # of Paddle: entry of the state dict -> the parameter's name in the process
HEADER = 8 << 20  # bytes of a safetensors header, or of a zip file's list of members; 0.3 MB of HRNet-W48
_TORCH_LEGACY = b'\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.'  # magic number of torch.save before 1.6
_SAFETENSORS = {'F64': 'f8', 'F32': 'f4', 'F16': 'f2', 'I64': 'i8', 'I32': 'i4', 'I16': 'i2', 'I8': 'i1', 'U8': 'u1',
                'U16': 'u2', 'U32': 'u4', 'U64': 'u8', 'BOOL': '?', 'BF16': 'u2'}
_STORAGES = {'DoubleStorage': 'f8', 'FloatStorage': 'f4', 'HalfStorage': 'f2', 'LongStorage': 'i8', 'IntStorage': 'i4',
             'ShortStorage': 'i2', 'CharStorage': 'i1', 'ByteStorage': 'u1', 'BoolStorage': '?',
             'BFloat16Storage': 'bfloat16'}


def read_state(path: str | os.PathLike, kind: str = 'weights') -> Any:
    """What a file holds: dicts, lists, tuples, plain values and arrays.

    Arrays are read-only views of the file's bytes where that is possible. Tensors of paddle.save come as arrays without
    the names they had in the process. bfloat16 arrays of torch and safetensors become float32; Paddle's come as uint16,
    as Paddle takes them back. kind: for the text of errors.
    Raises FileError where there is no file, UserError with one line for one that is damaged, or asks for more than
    weights need.
    """
    path = Path(path)
    if not path.is_file():
        raise FileError(f'{path}: expected a {kind} file, found {"a folder" if path.is_dir() else "nothing"}; check '
                        'the path')
    try:
        with open(path, 'rb') as file:
            return _reader(file, path)(file)
    except Refused as error:
        raise UserError(f'{path}: expected {kind}, found {error}; such a file could run code or fill the memory, so '
                        'nothing in it was used: get it from its source') from error
    except UserError:
        raise
    except OSError as error:
        if error.errno is not None:
            raise
        raise _damaged(path, kind, error) from error
    except Exception as error:  # damaged data can break a decoder in any way, down to RecursionError
        raise _damaged(path, kind, error) from error


def _damaged(path: Path, kind: str, error: Exception) -> UserError:
    text = ascii(' '.join(str(error)[:200].split()))[1:-1][:80] or type(error).__name__
    return UserError(f'{path}: expected {kind} (of paddle.save, safetensors or torch.save), found a file that does not '
                     f'load ({text}); download or copy it again')


def _reader(file: BinaryIO, path: Path) -> Callable[[BinaryIO], Any]:
    head = file.read(512)
    file.seek(0)
    if head[:4] == b'PK\x03\x04':
        return _read_torch
    if head.startswith(_TORCH_LEGACY) or head[257:262] == b'ustar' or _is_tar(head):
        raise UserError(f'{path}: expected a zip file of torch.save, found the form that torch had before 1.6; save it '
                        f'anew where torch is installed: python -c "import torch; torch.save(torch.load(\'{path}\', '
                        '\'cpu\', weights_only=True), \'new.pth\')"')
    if head[8:9] == b'{' and (head[5:8] == b'\0\0\0' or head[:1] != b'\x80'):  # the length may begin as a pickle does
        return _read_safetensors
    if head[:1] == b'\x80':
        return _read_paddle
    raise ValueError('another kind of file' if head else 'an empty file')


def _is_tar(head: bytes) -> bool:
    try:
        tarfile.TarInfo.frombuf(head, 'utf-8', 'strict')
        return True
    except (tarfile.HeaderError, UnicodeDecodeError):
        return False


# ---------------------------------------------------------------- Paddle

def _read_paddle(file: BinaryIO) -> Any:
    return _without_names(safe_pickle.load(file, os.fstat(file.fileno()).st_size))


def _without_names(value: Any) -> Any:
    """Arrays in place of (name, array), as paddle.save writes a tensor that is not an entry of a state dict."""
    if isinstance(value, dict):
        return {key: _without_names(item) for key, item in value.items()}
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], np.ndarray):
        return value[1]
    return type(value)(map(_without_names, value)) if isinstance(value, list | tuple) else value


# ---------------------------------------------------------------- safetensors

def _read_safetensors(file: BinaryIO) -> dict[str, np.ndarray]:
    size = os.fstat(file.fileno()).st_size
    length, = struct.unpack('<Q', file.read(8))
    if length > min(HEADER, size - 8):
        raise Refused(f'a header of {length} bytes in a file of {size}')
    header = json.loads(file.read(length), object_pairs_hook=_pairs, parse_constant=_no_number)
    header.pop('__metadata__', None)
    data = file.read()
    result, room, end = {}, Room(size), 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]['data_offsets']):
        kind, shape, (start, stop) = entry['dtype'], entry['shape'], entry['data_offsets']
        if kind not in _SAFETENSORS:
            raise Refused(f'a tensor of type {short(kind)}')
        dtype = np.dtype(_SAFETENSORS[kind]).newbyteorder('<')
        if type(stop) is not int or start != end or not end <= stop <= len(data) \
                or (stop - start) % dtype.itemsize or not fits(shape, (stop - start) // dtype.itemsize):
            raise Refused(f'tensor {short(name)} with a shape or place that does not fit the file')
        end = stop
        array = np.frombuffer(data, dtype, math.prod(shape), start).reshape(shape)
        result[name] = from_bfloat16(array) if kind == 'BF16' else in_order(array, room)
    if end != len(data):
        raise Refused(f'{len(data) - end} bytes that belong to no tensor')
    return {name: result[name] for name in header}


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs) or not all(map(is_name, result)):
        raise Refused('a name twice, or one that cannot be printed')
    return result


def _no_number(text: str) -> None:
    raise Refused(f'the number {text}')


def from_bfloat16(array: np.ndarray) -> np.ndarray:
    """uint16 bits of bfloat16 as float32, exactly."""
    return (array.astype(np.uint32) << 16).view(np.float32)


# ---------------------------------------------------------------- torch

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


def _read_torch(file: BinaryIO) -> Any:
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
        names = {f'torch {name}': _StorageType(code) for name, code in _STORAGES.items()}
        return safe_pickle.loads(member(pickles[0]), {
            **names, 'torch._utils _rebuild_tensor_v2': storages.tensor, 'torch._utils _rebuild_parameter': _parameter,
        }, storages.named)


class _StorageType:
    """A class like torch.FloatStorage: it names the type of a storage, and is never called."""

    def __init__(self, code: str) -> None:
        self.code = code

    def __call__(self, *_: Any) -> None:
        raise Refused('a storage outside of its archive')


class _Storages:
    """The storages of an archive, each read once, and tensors as views of them."""

    def __init__(self, member: Callable[[str], bytes], room: Room) -> None:
        self._member, self._room = member, room
        self._known: dict[tuple[str, str], np.ndarray] = {}

    def named(self, pid: Any) -> np.ndarray:
        """The storage of a persistent id ('storage', type, key, device, number of values)."""
        if not isinstance(pid, tuple) or len(pid) != 5 or pid[0] != 'storage' \
                or not isinstance(pid[1], _StorageType) or not is_name(pid[2]) or '/' in pid[2]:
            raise Refused('a persistent id that is no storage')
        key = pid[2], pid[1].code
        if key not in self._known:
            data = self._member(pid[2])
            self._known[key] = from_bfloat16(np.frombuffer(data, '<u2')) if pid[1].code == 'bfloat16' \
                else np.frombuffer(data, np.dtype(pid[1].code).newbyteorder('<'))
        if self._known[key].size != pid[4]:
            raise Refused(f'a storage of {self._known[key].size} values where {short(pid[4])} are announced')
        return self._known[key]

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
