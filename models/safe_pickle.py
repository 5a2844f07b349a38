"""Reading pickles that hold arrays and plain values, without running anything that the file asks for.

A pickle is a program: `pickle.load` (and with it paddle.load and torch.load) calls whatever the file names. Here an
unpickler that knows few instructions builds plain containers; the few names that weight files need are replaced by
functions of this module, and every other name is refused. Memory stays in proportion to the size of the file.
"""
import io
import pickle
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

import numpy as np

DTYPES = frozenset(np.dtype(code) for code in ('f2', 'f4', 'f8', 'i1', 'i2', 'i4', 'i8', 'u1', 'u2', 'u4', 'u8', '?'))
MAX_NUMBER = 64  # bytes of an integer; names and counters need 8


class Refused(Exception):
    """A pickle that asks for something that weights do not need; the text says what, for the end of a sentence."""


class BoundedFile:
    """A file of which nobody can ask for more bytes than it has: pickle would reserve memory for them first."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._left = file, size

    def read(self, size: int) -> bytes:
        if not 0 <= size <= self._left:
            raise ValueError(f'{size} bytes announced where {self._left} are left')
        self._left -= size
        return self._file.read(size)

    def readline(self) -> bytes:
        line = self._file.readline(1 << 16)
        self._left -= len(line)
        return line


def load(file: BinaryIO, size: int, names: Mapping[str, Callable[..., Any]] | None = None,
         persistent: Callable[[Any], Any] | None = None) -> Any:
    """The object in a pickle of `size` bytes: dicts, lists, tuples, numbers, text, bytes, and NumPy arrays.

    names: further '<module> <name>' that may be called, and what is called in their place. persistent: what stands for
    a persistent id (torch's storages). Raises Refused for anything else; ValueError, and
    what pickle raises, for damaged data.
    """
    unpickler = _Unpickler(BoundedFile(file, size), {**_NAMES, **(names or {})}, persistent)
    return _finished(unpickler.load())


# ---------------------------------------------------------------- stand-ins for what weight files name

class _Dtype:
    """numpy.dtype: only numbers, no objects and no records."""

    def __init__(self, code: str, *_: Any) -> None:
        self.dtype = _known(code)

    def __setstate__(self, state: tuple) -> None:
        if len(state) < 5 or state[1] not in ('<', '>', '=', '|') or any(part is not None for part in state[2:5]):
            raise Refused('an array of objects or records')
        self.dtype = self.dtype.newbyteorder('=' if state[1] == '|' else state[1])


def _known(code: Any) -> np.dtype:
    try:
        dtype = np.dtype(code) if isinstance(code, str) else None
    except TypeError:
        dtype = None
    if dtype not in DTYPES:
        raise Refused(f'an array of {code!r:.40}')
    return dtype


class _Array:
    """numpy.ndarray under construction; nothing is allocated before shape and data fit."""

    def __init__(self, *_: Any) -> None:
        self.array: np.ndarray | None = None

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, column_major, data = state
        self.array = _array(data, dtype, shape, 'F' if column_major else 'C')


def _array(data: Any, dtype: Any, shape: Any, order: str = 'C') -> np.ndarray:
    if not isinstance(dtype, _Dtype) or not isinstance(data, bytes) or not isinstance(shape, tuple):
        raise Refused('an array of objects')
    if not all(isinstance(side, int) and side >= 0 for side in shape) \
            or _product(shape) * dtype.dtype.itemsize != len(data):
        raise Refused(f'{len(data)} bytes for an array of shape {shape!r:.60}')
    array = np.frombuffer(data, dtype.dtype).reshape(shape, order='F' if order == 'F' else 'C')
    return np.array(array, array.dtype.newbyteorder('='), order='C')


def _product(shape: tuple) -> int:
    total = 1
    for side in shape:
        total *= side
    return total


def _scalar(dtype: Any, data: Any = b'') -> Any:
    return _array(data, dtype, ()).item()


def _encode(text: Any, encoding: Any = 'latin1') -> bytes:
    """What protocol 2 writes in place of bytes."""
    if not isinstance(text, str) or encoding not in ('latin1', 'latin-1'):
        raise Refused('a text encoding other than latin1')
    return text.encode('latin1')


def _bytes(*arguments: Any) -> bytes:
    """What protocol 2 writes in place of no bytes."""
    if arguments:
        raise Refused('a call of bytes')
    return b''


def _value_of(expression: Any, values: Any) -> Any:
    """Paddle writes some tensors as eval('data', {'data': array}); no other expression is accepted."""
    if expression != 'data' or not isinstance(values, dict) or 'data' not in values:
        raise Refused(f'eval of {expression!r:.60}')
    return values['data']


def _tuple(items: Any = ()) -> tuple:
    if not isinstance(items, tuple | list):
        raise Refused('a tuple of something that is no list')
    return tuple(items)


def _ordered_dict(items: Any = ()) -> OrderedDict:
    result: OrderedDict = OrderedDict()
    for item in items if isinstance(items, tuple | list) else ():
        if not isinstance(item, tuple | list) or len(item) != 2:
            raise Refused('an OrderedDict of something other than pairs')
        result[_key(item[0])] = item[1]
    return result


class _ArrayClass:
    """Stands for the class numpy.ndarray, which is only handed to _reconstruct."""


def _reconstruct(*_: Any) -> _Array:
    return _Array()


_NAMES: dict[str, Callable[..., Any]] = {
    'numpy ndarray': _ArrayClass, 'numpy dtype': _Dtype, '_codecs encode': _encode,
    **{f'{module} tuple': _tuple for module in ('builtins', '__builtin__')},
    **{f'{module} bytes': _bytes for module in ('builtins', '__builtin__')},
    **{f'{module} eval': _value_of for module in ('builtins', '__builtin__')},
    'collections OrderedDict': _ordered_dict,
    **{f'numpy.{core}.multiarray _reconstruct': _reconstruct for core in ('core', '_core')},
    **{f'numpy.{core}.multiarray scalar': _scalar for core in ('core', '_core')},
    **{f'numpy.{core}.numeric _frombuffer': _array for core in ('core', '_core')},
}


def _key(value: Any) -> Any:
    """A key of a mapping: hashing deep tuples could exhaust the stack."""
    if not isinstance(value, str | int):
        raise Refused(f'a mapping with a key of type {type(value).__name__}')
    return value


def _finished(value: Any) -> Any:
    """Arrays out of their stand-ins; bounded, since one object may stand in a pickle many times over."""
    budget = [1 << 20]

    def walk(node: Any, depth: int) -> Any:
        budget[0] -= 1
        if budget[0] < 0 or depth > 16:
            raise Refused('containers nested too deep, or more than a million values')
        if isinstance(node, dict):
            return {key: walk(item, depth + 1) for key, item in node.items()}
        if isinstance(node, list | tuple):
            return type(node)(walk(item, depth + 1) for item in node)
        if isinstance(node, _Array):
            if node.array is None:
                raise Refused('an array without data')
            return node.array
        if isinstance(node, np.ndarray | str | int | float | bytes | None):
            return node
        raise Refused(f'a bare {type(node).__name__}')

    return walk(value, 0)


# ---------------------------------------------------------------- the instructions

_PythonUnpickler: Any = pickle._Unpickler  # the one in Python: its memo is a dict, which a file cannot make huge


class _Unpickler(_PythonUnpickler):
    """Knows the instructions that weight files use, and calls what `names` has."""

    def __init__(self, file: BoundedFile, names: Mapping[str, Callable[..., Any]],
                 persistent: Callable[[Any], Any] | None) -> None:
        super().__init__(file, fix_imports=False)
        self._names, self._persistent = names, persistent

    def find_class(self, module: str, name: str) -> Any:
        found = self._names.get(f'{module} {name}')
        if found is None:
            raise Refused(f'the name {module}.{name}'[:100])
        return found

    def persistent_load(self, pid: Any) -> Any:
        if self._persistent is None:
            raise Refused('a persistent id')
        return self._persistent(pid)

    def _reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack[-1]
        if not isinstance(arguments, tuple) or not any(function is known for known in self._names.values()):
            raise Refused('a call of something other than a known name')
        try:
            self.stack[-1] = function(*arguments)
        except TypeError as error:
            raise Refused('a call with other arguments than weights have') from error

    def _build(self) -> None:
        state, built = self.stack.pop(), self.stack[-1]
        if isinstance(built, _Array | _Dtype) and isinstance(state, tuple):
            try:
                built.__setstate__(state)
            except (TypeError, ValueError) as error:
                raise Refused('a state that no array has') from error
        elif not isinstance(built, OrderedDict):  # torch's have attributes, which hold nothing of use
            raise Refused(f'a state for {type(built).__name__}')

    def _set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._mapping()[_key(key)] = value

    def _set_items(self) -> None:
        items = self.pop_mark()
        mapping = self._mapping()
        for i in range(0, len(items) - 1, 2):
            mapping[_key(items[i])] = items[i + 1]

    def _mapping(self) -> dict:
        if not isinstance(self.stack[-1], dict):
            raise Refused('an entry for something that is no mapping')
        return self.stack[-1]

    def _appended(self) -> list:
        if not isinstance(self.stack[-1], list):
            raise Refused('an item for something that is no list')
        return self.stack[-1]

    def _append(self) -> None:
        value = self.stack.pop()
        self._appended().append(value)

    def _append_all(self) -> None:
        items = self.pop_mark()
        self._appended().extend(items)

    def _long(self) -> None:
        size = self.read(1)[0]
        if size > MAX_NUMBER:
            raise Refused(f'an integer of {size} bytes')
        self.append(int.from_bytes(self.read(size), 'little', signed=True))

    def _unknown(self) -> None:
        raise Refused('an instruction that weights do not need')

    dispatch = dict.fromkeys(_PythonUnpickler.dispatch, _unknown)
    for _code in (pickle.PROTO, pickle.FRAME, pickle.STOP, pickle.MARK, pickle.NONE, pickle.NEWTRUE, pickle.NEWFALSE,
                  pickle.BININT, pickle.BININT1, pickle.BININT2, pickle.BINFLOAT, pickle.BINUNICODE,
                  pickle.SHORT_BINUNICODE, pickle.BINUNICODE8, pickle.BINBYTES, pickle.SHORT_BINBYTES,
                  pickle.BINBYTES8, pickle.EMPTY_DICT, pickle.EMPTY_LIST, pickle.EMPTY_TUPLE, pickle.TUPLE,
                  pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3, pickle.BINPUT, pickle.LONG_BINPUT, pickle.MEMOIZE,
                  pickle.BINGET, pickle.LONG_BINGET, pickle.GLOBAL, pickle.STACK_GLOBAL, pickle.BINPERSID):
        dispatch[_code[0]] = _PythonUnpickler.dispatch[_code[0]]
    for _code, _method in ((pickle.REDUCE, _reduce), (pickle.BUILD, _build), (pickle.SETITEM, _set_item),
                           (pickle.SETITEMS, _set_items), (pickle.APPEND, _append), (pickle.APPENDS, _append_all),
                           (pickle.LONG1, _long)):
        dispatch[_code[0]] = _method
    del _code, _method


def loads(data: bytes, names: Mapping[str, Callable[..., Any]] | None = None,
          persistent: Callable[[Any], Any] | None = None) -> Any:
    """As load(), of bytes."""
    return load(io.BytesIO(data), len(data), names, persistent)
