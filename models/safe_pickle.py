"""Reading pickles that hold arrays and plain values, without running anything that the file asks for.

A pickle is a program: `pickle.load` (and with it paddle.load and torch.load) calls whatever the file names. Here an
unpickler that knows few instructions builds plain containers; the few names that weight files need are replaced by
functions of this module, and every other name is refused. Memory and time stay in proportion to the size of the file:
instructions are counted, arrays are views of the file's bytes, and what must be copied is counted, too.
"""
import io
import math
import pickle
import reprlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

import numpy as np

DTYPES = {code: np.dtype(code) for code in ('f2', 'f4', 'f8', 'i1', 'i2', 'i4', 'i8', 'u1', 'u2', 'u4', 'u8', 'b1')}
MAX_NUMBER = 64  # bytes of an integer; names and counters need 8
MAX_INSTRUCTIONS = 1 << 19  # of at most 200 bytes each; HRNet-W48 has 45 000, its optimizer with two moments 110 000
HEADER = 8 << 20  # bytes of a safetensors header, or of a zip file's list of members; 0.3 MB of HRNet-W48
MAX_SIDES = 32  # dimensions of an array, as in NumPy 1
MAX_KEY = 1 << 48  # of a mapping: torch's old optimizers have addresses; from 1 << 61 on, integers can all collide
MAX_NAME = 512  # longer ones have no use

_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxtuple, _SHORT.maxlist, _SHORT.maxdict, _SHORT.maxstring = 2, 4, 4, 4, 40


class Refused(Exception):
    """A pickle that asks for something that weights do not need; the text says what, for the end of a sentence."""


def short(value: Any) -> str:
    """A value in a few printable characters. Lists that hold each other twice have a repr of exponential length."""
    return _SHORT.repr(value)[:60]


def fits(shape: Any, size: int) -> bool:
    """Whether `size` numbers fill an array of this shape: a tuple or list of as many sides as NumPy takes."""
    return isinstance(shape, tuple | list) and len(shape) <= MAX_SIDES \
        and all(type(side) is int and 0 <= side < 1 << 63 for side in shape) and math.prod(shape) == size


def is_name(value: Any) -> bool:
    """Whether a value is text that a log or an error can show."""
    return isinstance(value, str) and len(value) <= MAX_NAME and value.isprintable()


class Room:
    """Bytes that may be allocated besides those of the file."""

    def __init__(self, size: int) -> None:
        self._left = size

    def take(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise Refused('more data than the file has, by using some of it many times')


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
    makers = _Makers(Room(size + (1 << 20)))
    unpickler = _Unpickler(BoundedFile(file, size), {**_NAMES, **makers.names(), **(names or {})}, persistent)
    return _finished(unpickler.load())


# ---------------------------------------------------------------- stand-ins for what weight files name

class _Dtype:
    """numpy.dtype: only numbers, no objects and no records."""

    def __init__(self, code: Any, *_: Any) -> None:
        if not isinstance(code, str) or code not in DTYPES:
            raise Refused(f'an array of {short(code)}')
        self.dtype = DTYPES[code]

    def __setstate__(self, state: tuple) -> None:
        if len(state) < 5 or state[1] not in ('<', '>', '=', '|') or any(part is not None for part in state[2:5]):
            raise Refused('an array of objects or records')
        self.dtype = self.dtype.newbyteorder('=' if state[1] == '|' else state[1])


class _Array:
    """numpy.ndarray under construction; nothing is allocated before shape and data fit."""

    def __init__(self, room: Room) -> None:
        self.array: np.ndarray | None = None
        self._room = room

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, column_major, data = state
        self.array = _array(self._room, data, dtype, shape, 'F' if column_major else 'C')


def _array(room: Room, data: Any, dtype: Any, shape: Any, order: str = 'C') -> np.ndarray:
    """A view of the data, read-only; a copy where bytes or axes are in another order."""
    if not isinstance(dtype, _Dtype) or not isinstance(data, bytes) or not isinstance(shape, tuple):
        raise Refused('an array of objects')
    if len(data) % dtype.dtype.itemsize or not fits(shape, len(data) // dtype.dtype.itemsize):
        raise Refused(f'{len(data)} bytes for an array of shape {short(shape)}')
    array = np.frombuffer(data, dtype.dtype).reshape(shape, order='F' if order == 'F' else 'C')
    return in_order(array, room)


def in_order(array: np.ndarray, room: Room) -> np.ndarray:
    """The array in this machine's order of bytes, rows first; itself where it is so already."""
    if array.dtype.isnative and array.flags.c_contiguous and array.flags.aligned:
        return array
    room.take(array.nbytes)
    return np.array(array, array.dtype.newbyteorder('='), order='C')


def from_bfloat16(array: np.ndarray) -> np.ndarray:
    """uint16 bits of bfloat16 as float32, exactly."""
    return (array.astype(np.uint32) << 16).view(np.float32)


class _Makers:
    """What stands for names that make something new; one for each file, with its room."""

    def __init__(self, room: Room) -> None:
        self._room = room

    def reconstruct(self, *_: Any) -> _Array:
        return _Array(self._room)

    def scalar(self, dtype: Any, data: Any = b'') -> Any:
        return _array(self._room, data, dtype, ()).item()

    def from_buffer(self, data: Any, dtype: Any, shape: Any, order: str = 'C') -> np.ndarray:
        return _array(self._room, data, dtype, shape, order)

    def encode(self, text: Any, encoding: Any = 'latin1') -> bytes:
        """What protocol 2 writes in place of bytes."""
        if not isinstance(text, str) or encoding not in ('latin1', 'latin-1'):
            raise Refused('a text encoding other than latin1')
        self._room.take(len(text))
        return text.encode('latin1')

    def tuple(self, items: Any = ()) -> tuple:
        if not isinstance(items, tuple | list):
            raise Refused('a tuple of something that is no list')
        self._room.take(8 * len(items))
        return tuple(items)

    def ordered_dict(self, items: Any = ()) -> OrderedDict:
        if not isinstance(items, tuple | list):
            raise Refused('an OrderedDict of something that is no list')
        self._room.take(100 * len(items))
        result: OrderedDict = OrderedDict()
        for item in items:
            if not isinstance(item, tuple | list) or len(item) != 2:
                raise Refused('an OrderedDict of something other than pairs')
            result[_key(item[0])] = item[1]
        return result

    def names(self) -> dict[str, Callable[..., Any]]:
        return {'_codecs encode': self.encode, 'collections OrderedDict': self.ordered_dict,
                **{f'{module} tuple': self.tuple for module in ('builtins', '__builtin__')},
                **{f'numpy.{core}.multiarray _reconstruct': self.reconstruct for core in ('core', '_core')},
                **{f'numpy.{core}.multiarray scalar': self.scalar for core in ('core', '_core')},
                **{f'numpy.{core}.numeric _frombuffer': self.from_buffer for core in ('core', '_core')}}


def _bytes(*arguments: Any) -> bytes:
    """What protocol 2 writes in place of no bytes."""
    if arguments:
        raise Refused('a call of bytes')
    return b''


def _value_of(expression: Any, values: Any) -> Any:
    """Paddle writes some tensors as eval('data', {'data': array}); no other expression is accepted."""
    if expression != 'data' or not isinstance(values, dict) or 'data' not in values:
        raise Refused(f'eval of {short(expression)}')
    return values['data']


class _ArrayClass:
    """Stands for the class numpy.ndarray, which is only handed to _reconstruct."""


_NAMES: dict[str, Callable[..., Any]] = {
    'numpy ndarray': _ArrayClass, 'numpy dtype': _Dtype,
    **{f'{module} bytes': _bytes for module in ('builtins', '__builtin__')},
    **{f'{module} eval': _value_of for module in ('builtins', '__builtin__')},
}


def _key(value: Any) -> Any:
    """A key of a mapping: hashing deep tuples could exhaust the stack."""
    if not is_name(value) and not (isinstance(value, int) and abs(value) < MAX_KEY):
        raise Refused(f'a mapping with the key {short(value)}')
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
        self._names, self._persistent, self._instructions = names, persistent, 0

    def find_class(self, module: str, name: str) -> Any:
        found = self._names.get(f'{module} {name}')
        if found is None:
            text = f'{module[:80]}.{name[:80]}'
            raise Refused('the name ' + (text if text.isprintable() else ascii(text)))
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

    @staticmethod
    def _counted(instruction: Callable[[Any], None]) -> Callable[[Any], None]:
        def run(self: Any) -> None:
            self._instructions += 1
            if self._instructions > MAX_INSTRUCTIONS:
                raise Refused(f'more than {MAX_INSTRUCTIONS} instructions')
            instruction(self)

        return run

    dispatch: Any = dict.fromkeys(range(256), _unknown)
    for _code in (pickle.PROTO, pickle.FRAME, pickle.STOP, pickle.MARK, pickle.NONE, pickle.NEWTRUE, pickle.NEWFALSE,
                  pickle.BININT, pickle.BININT1, pickle.BININT2, pickle.BINFLOAT, pickle.BINUNICODE,
                  pickle.SHORT_BINUNICODE, pickle.BINUNICODE8, pickle.BINBYTES, pickle.SHORT_BINBYTES,
                  pickle.BINBYTES8, pickle.EMPTY_DICT, pickle.EMPTY_LIST, pickle.EMPTY_TUPLE, pickle.TUPLE,
                  pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3, pickle.BINPUT, pickle.LONG_BINPUT, pickle.MEMOIZE,
                  pickle.BINGET, pickle.LONG_BINGET, pickle.GLOBAL, pickle.STACK_GLOBAL, pickle.BINPERSID):
        dispatch[_code[0]] = _counted(_PythonUnpickler.dispatch[_code[0]])
    for _code, _method in ((pickle.REDUCE, _reduce), (pickle.BUILD, _build), (pickle.SETITEM, _set_item),
                           (pickle.SETITEMS, _set_items), (pickle.APPEND, _append), (pickle.APPENDS, _append_all),
                           (pickle.LONG1, _long)):
        dispatch[_code[0]] = _counted(_method)
    del _code, _method


def loads(data: bytes, names: Mapping[str, Callable[..., Any]] | None = None,
          persistent: Callable[[Any], Any] | None = None) -> Any:
    """As load(), of bytes."""
    return load(io.BytesIO(data), len(data), names, persistent)
