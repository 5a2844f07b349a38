"""Weight files of every kind that this family of networks comes in, read as arrays; nothing in them is run.

.pdparams, .pdopt and other files of paddle.save (2.x and 3.x); safetensors; .pth of torch.save, without torch
(models.torch_files). The kind is told by the content, not by the name.
"""
import json
import math
import os
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from common.errors import FileError, UserError
from models import safe_pickle, torch_files
from models.safe_pickle import HEADER, Refused, Room, fits, from_bfloat16, in_order, is_name, short

NAME_TABLE = 'StructuredToParameterName@@'  # of Paddle: entry of the state dict -> the parameter's name in the process
_SAFETENSORS = {'F64': 'f8', 'F32': 'f4', 'F16': 'f2', 'I64': 'i8', 'I32': 'i4', 'I16': 'i2', 'I8': 'i1', 'U8': 'u1',
                'U16': 'u2', 'U32': 'u4', 'U64': 'u8', 'BOOL': '?', 'BF16': 'u2'}


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
        return torch_files.read_zip
    if torch_files.is_stream(head):
        return torch_files.read_stream
    if head[257:262] == b'ustar' or _is_tar(head):
        raise UserError(f'{path}: expected a zip file or a stream of torch.save, found the tar form of the first '
                        'versions of torch; if you trust its source (this can run code), save it anew with torch: '
                        f'python -c "import torch; torch.save(torch.load(\'{path}\', \'cpu\', weights_only=False), '
                        '\'new.pth\')"')
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
