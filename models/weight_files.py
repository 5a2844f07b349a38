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
from models.safe_pickle import Refused

NAME_TABLE = 'StructuredToParameterName@@'  # of Paddle: entry of the state dict -> the parameter's name in the process
HEADER = 100 << 20  # bytes of a safetensors header, as the format's own reader allows
_TORCH_LEGACY = b'\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.'  # magic number of torch.save before 1.6
_SAFETENSORS = {'F64': 'f8', 'F32': 'f4', 'F16': 'f2', 'I64': 'i8', 'I32': 'i4', 'I16': 'i2', 'I8': 'i1', 'U8': 'u1',
                'U16': 'u2', 'U32': 'u4', 'U64': 'u8', 'BOOL': '?', 'BF16': 'u2'}
_STORAGES = {'DoubleStorage': 'f8', 'FloatStorage': 'f4', 'HalfStorage': 'f2', 'LongStorage': 'i8', 'IntStorage': 'i4',
             'ShortStorage': 'i2', 'CharStorage': 'i1', 'ByteStorage': 'u1', 'BoolStorage': '?',
             'BFloat16Storage': 'bfloat16'}


def read_state(path: str | os.PathLike, kind: str = 'weights') -> Any:
    """What a file holds: dicts, lists, tuples, plain values and arrays.

    Tensors of paddle.save come as arrays without the names they had in the process. bfloat16 arrays of torch and
    safetensors become float32; Paddle's come as uint16, as Paddle takes them back. kind: for the text of errors.
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
    text = ' '.join(str(error).split())[:80] or type(error).__name__
    return UserError(f'{path}: expected {kind} (of paddle.save, safetensors or torch.save), found a file that does not '
                     f'load ({text}); download or copy it again')


def _reader(file: BinaryIO, path: Path) -> Callable[[BinaryIO], Any]:
    head = file.read(512)
    file.seek(0)
    if head[:4] == b'PK\x03\x04':
        return _read_torch
    if head.startswith(_TORCH_LEGACY) or head[257:262] == b'ustar' or _is_tar(head):
        raise UserError(f'{path}: expected a zip file of torch.save, found the form that torch had before 1.6; load it '
                        'with torch where you trust it, and save it again')
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
    header = json.loads(file.read(length))
    header.pop('__metadata__', None)
    result = {}
    for name, entry in header.items():
        code, shape, (start, stop) = _SAFETENSORS.get(entry['dtype']), entry['shape'], entry['data_offsets']
        if code is None:
            raise Refused(f'a tensor of type {entry["dtype"]!r:.20}')
        numbers = (*shape, start, stop)
        if not all(isinstance(number, int) and number >= 0 for number in numbers) or stop > size - 8 - length \
                or stop - start != math.prod(shape) * np.dtype(code).itemsize:
            raise Refused(f'tensor {name!r:.80} with a shape or place that does not fit the file')
        file.seek(8 + length + start)
        array = np.frombuffer(file.read(stop - start), np.dtype(code).newbyteorder('<')).reshape(shape)
        result[name] = from_bfloat16(array) if entry['dtype'] == 'BF16' else array.copy()
    return result


def from_bfloat16(array: np.ndarray) -> np.ndarray:
    """uint16 bits of bfloat16 as float32, exactly."""
    return (array.astype(np.uint32) << 16).view(np.float32)


# ---------------------------------------------------------------- torch

def _read_torch(file: BinaryIO) -> Any:
    with zipfile.ZipFile(file) as archive:
        pickles = [name for name in archive.namelist() if name.count('/') == 1 and name.endswith('/data.pkl')]
        if len(pickles) != 1:
            raise Refused('a zip file without the data.pkl of torch.save')
        folder = pickles[0].partition('/')[0]
        if any(info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 for info in archive.infolist()):
            raise Refused('compressed members, which torch.save does not write')
        order = archive.read(f'{folder}/byteorder') if f'{folder}/byteorder' in archive.namelist() else b'little'
        if order != b'little':
            raise Refused(f'byte order {order!r:.20}')
        names = {f'torch {name}': _Storage(code) for name, code in _STORAGES.items()}
        return safe_pickle.loads(archive.read(pickles[0]), {
            **names, 'torch._utils _rebuild_tensor_v2': _tensor, 'torch._utils _rebuild_parameter': _parameter,
        }, lambda pid: _storage(archive, folder, pid))


class _Storage:
    """A class like torch.FloatStorage: it names the type of a storage, and is never called."""

    def __init__(self, code: str) -> None:
        self.code = code

    def __call__(self, *_: Any) -> None:
        raise Refused('a storage outside of its archive')


def _storage(archive: zipfile.ZipFile, folder: str, pid: Any) -> np.ndarray:
    if not isinstance(pid, tuple) or len(pid) != 5 or pid[0] != 'storage' or not isinstance(pid[1], _Storage) \
            or not isinstance(pid[2], str) or '/' in pid[2]:
        raise Refused('a persistent id that is no storage')
    data = archive.read(f'{folder}/data/{pid[2]}')
    if pid[1].code == 'bfloat16':
        return from_bfloat16(np.frombuffer(data, '<u2'))
    return np.frombuffer(data, np.dtype(pid[1].code).newbyteorder('<'))


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> np.ndarray:
    numbers = (offset, *size, *stride)
    if not isinstance(storage, np.ndarray) or storage.ndim != 1 or len(size) != len(stride) \
            or not all(isinstance(number, int) and number >= 0 for number in numbers):
        raise Refused('a tensor that is no view of a storage')
    last = offset + sum((side - 1) * step for side, step in zip(size, stride))
    if math.prod(size) > storage.size or (math.prod(size) and last >= storage.size):
        raise Refused(f'a tensor of shape {tuple(size)!r:.60} in a storage of {storage.size} values')
    view = np.lib.stride_tricks.as_strided(storage[offset:], size, [step * storage.itemsize for step in stride])
    return np.ascontiguousarray(view).reshape(size)


def _parameter(data: Any, *_: Any) -> Any:
    return data
