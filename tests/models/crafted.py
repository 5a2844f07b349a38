"""Files that pretend to be weights: each tries to run code, or to fill the memory, when it is loaded."""
import io
import json
import os
import pickle
import pickletools
import struct
import subprocess
import zipfile
from functools import partial

import numpy as np


class Call:
    """Pickled as the call of a function."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


class Named:
    """A name that exists nowhere here, to be pickled as it stands."""

    def __init__(self, module, name):
        self.module, self.name = module, name


def dumps(value, protocol=4):
    return pickle.dumps(value, protocol)


def call(module, name, *arguments):
    """A pickle that calls module.name, by hand: for functions that pickle itself would not write."""
    body = b''.join(pickle.dumps(argument, 2)[2:-1] for argument in arguments)
    return b'\x80\x02c' + f'{module}\n{name}\n'.encode() + b'(' + body + b'tR.'


def state(value):
    """A state dict with the value under the name of a tensor."""
    return dumps({'ocrnet.head.cls_head.bias': value})


def torch_zip(data, compress=zipfile.ZIP_STORED, **members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w', compress) as archive:
        archive.writestr('archive/data.pkl', data)
        for name, content in members.items():
            archive.writestr(f'archive/data/{name}', content)
    return buffer.getvalue()


def safetensors(header, data=b'', length=None):
    text = json.dumps(header).encode() if not isinstance(header, bytes) else header
    return struct.pack('<Q', len(text) if length is None else length) + text + data


def shared(depth):
    """Lists in lists, each twice in the next one: 2**depth leaves in a few bytes."""
    value = [0]
    for _ in range(depth):
        value = [value, value]
    return dumps({'a': value})


def deep_key(depth):
    """A mapping whose key is a tuple in tuples: hashing it would exhaust the stack."""
    return b'\x80\x04}' + b')' + b'\x85' * depth + b'K\x01s.'


def array_announcing(shape, data=b'\0' * 4):
    """numpy.ndarray with another shape than its data have."""
    return call('numpy.core.multiarray', '_reconstruct', 0)[:-1] + b'(K\x01' + pickle.dumps(shape, 2)[2:-1] + \
        call('numpy', 'dtype', 'f4', False, True)[2:-1] + b'\x89' + pickle.dumps(data, 3)[2:-1] + b'tb.'


def text(value):
    """The instruction that puts text on the stack."""
    data = value.encode()
    return b'X' + struct.pack('<I', len(data)) + data


def global_(module, name):
    """A name from the stack, which may hold what a line cannot."""
    return b'\x80\x04' + text(module) + text(name) + b'\x93.'


def plain(value):
    """The instructions of plain values, without head and end."""
    return pickletools.optimize(pickle.dumps(value, 3))[2:-1]  # which puts nothing into the memo


def dtype(code, state=None):
    """The instructions of numpy.dtype(code) with a state."""
    return b'cnumpy\ndtype\n' + plain((code, False, True)) + b'R' + (b'' if state is None else plain(state) + b'b')


def array(dtype_code, shape=b'K\x01\x85', data=b'\0' * 4):
    """An array of these instructions for dtype and shape; data: bytes, or instructions that find them."""
    return (b'cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85C\x01b\x87R(K\x01' + shape + dtype_code
            + b'\x89' + data + b'tb')


def array_pickle(dtype_code, shape=b'K\x01\x85', data=b'\0' * 4):
    return b'\x80\x03' + array(dtype_code, shape, plain(data)) + b'.'


def twice(depth):
    """Instructions of tuples that each hold the one before twice: their repr has 2**depth parts."""
    return b'K\0' + b''.join(b'r' + struct.pack('<I', i) + b'j' + struct.pack('<I', i) + b'\x86' for i in range(depth))


def many(first, each, count):
    """A list of `each` over and over, after something that is put into memo 0."""
    return b'\x80\x03' + first + b'r\0\0\0\0](' + each * count + b'e.'


def more_pickles(touch):
    """{what: bytes}: of every instruction that is known, and of every name, what goes beyond weights."""
    system = b'cos\nsystem\n'
    big = b'B' + struct.pack('<I', 16 << 20) + bytes(16 << 20)
    long_text = b'X' + struct.pack('<I', 16 << 20) + b'a' * (16 << 20)
    memo = b'j\0\0\0\0'
    return {
        'object dtype': array_pickle(dtype('O8', (3, '|', None, None, None, -1, -1, 63))),
        'dtype of a subarray': array_pickle(dtype('f4', (3, '|', ('f4', (2,)), None, None, -1, -1, 0))),
        'dtype with names': array_pickle(dtype('f4', (3, '|', None, ('a',), None, -1, -1, 0))),
        'dtype with metadata': dumps(np.zeros(2, np.dtype('f4', metadata={'a': Call(os.system, touch)}))),
        'dtype of a million fields': array_pickle(dtype('f4,' * 1_000_000)),
        'dtype of brackets': array_pickle(dtype('(' * 100_000)),
        'structured dtype': array_pickle(dtype('V8', (3, '|', None, None, None, 8, 1, 0))),
        'dtype of times': array_pickle(dtype('M8', (4, '<', None, None, None, -1, -1, 0, ({}, (b'D', 1, 1, 1))))),
        'dtype of text': array_pickle(dtype('U1', (3, '<', None, None, None, 4, 4, 8))),
        'dtype that is a list': b'\x80\x03cnumpy\ndtype\n]\x85R.',
        'state of another length': array_pickle(dtype('f4', (3,))),
        'array of many sides': array_pickle(dtype('f4'), plain((1,) * 100)),
        'array of huge sides': array_pickle(dtype('f4'), plain((1 << 500,) * 20_000)),
        'array of nothing by huge sides': array_pickle(dtype('f4'), plain((0, 1 << 100)), b''),
        'array of text': array_pickle(dtype('f4'), data='aaaa'),
        'shape with lists in it': array_pickle(dtype('f4'), plain(([1],))),
        'bytes used by many arrays': many(big, array(dtype('f4', (3, '>', None, None, None, -1, -1, 0)),
                                                     plain((4 << 20,)), memo), 40),
        'text encoded many times': many(long_text, b'c_codecs\nencode\n' + memo + b'\x85R', 40),
        'list copied many times': many(plain([0] * 10_000), b'cbuiltins\ntuple\n' + memo + b'\x85R', 4_000),
        'pairs copied many times': many(plain([('a', 1)] * 10_000), b'ccollections\nOrderedDict\n' + memo + b'\x85R',
                                        4_000),
        'millions of lists': b'\x80\x02' + b']' * 600_000 + b'.',
        'millions of marks': b'\x80\x02' + b'(' * 600_000 + b'.',
        'doubled tuples as a type': b'\x80\x02cnumpy\ndtype\n' + twice(60) + b'\x85R.',
        'doubled tuples as a shape': array_pickle(dtype('f4'), twice(60)),
        'doubled tuples as an expression': b'\x80\x02cbuiltins\neval\n' + twice(60) + b'}\x86R.',
        'doubled tuples as a key': b'\x80\x02}' + twice(60) + b'K\0s.',
        'colliding keys': b'\x80\x02}(' + b''.join(b'\x8a\x0a' + (i * ((1 << 61) - 1)).to_bytes(10, 'little') + b'K\0'
                                                  for i in range(50_000)) + b'u.',
        'name with a line break': global_('os', 'system\nerror: fine'),
        'name that colours the terminal': global_('os', '\x1b[31msystem'),
        'name of megabytes': global_('a' * (4 << 20), 'b' * (4 << 20)),
        'name with dots': global_('numpy', 'dtype.__init__.__globals__'),
        'name of a stand-in': global_('models.safe_pickle', '_Unpickler'),
        'key that colours the terminal': dumps({'\x1b[31m': 1}),
        'key of megabytes': dumps({'a' * (1 << 20): 1}),
        'key of half a character': b'\x80\x02}X\x03\0\0\0\xed\xa0\x80K\0s.',
        'integer of 255 bytes': b'\x80\x02\x8a\xff' + b'\xff' * 255 + b'.',
        'integer as text': b'\x80\x02I' + b'9' * 6_000 + b'\n.',
        'memo as text': b'\x80\x02]p99999999999999999999\n.',
        'duplicate': b'\x80\x02]2a.',
        'pop': b'\x80\x02]]0.',
        'set': dumps({'a': {1, 2}}),
        'bytearray': pickle.dumps({'a': bytearray(8)}, 5),
        'complex number': dumps({'a': 1j}),
        'call of an array': b'\x80\x03' + array(dtype('f4'), data=plain(b'abcd')) + b')R.',
        'call of a call': b'\x80\x03cnumpy\ndtype\n' + plain(('f4',)) + b'R' + plain(('f4',)) + b'R.',
        'call with a name': b'\x80\x02cbuiltins\neval\n' + system + plain({'data': 1}) + b'\x86R.',
        'call of bytes with a number': b'\x80\x02cbuiltins\nbytes\nJ\0\0\0\x7f\x85R.',
        'call with another number of values': b'\x80\x02c_codecs\nencode\n)R.',
        'call without a tuple': b'\x80\x02cnumpy\ndtype\n]R.',
        'state for a mapping': b'\x80\x02}}b.',
        'state for a list': b'\x80\x02]' + plain((1,)) + b'b.',
        'state of numbers for an array': b'\x80\x02' + array(dtype('f4'), data=plain(b'abcd')) + b'K\0b.',
        'entry of a list': b'\x80\x02]' + plain('a') + b'K\0s.',
        'item of a mapping': b'\x80\x02}K\0a.',
        'a bare name': b'\x80\x02}' + plain('a') + b'cnumpy\nndarray\ns.',
        'a bare type of numbers': b'\x80\x02}' + plain('a') + dtype('f4') + b's.',
        'frame in a frame': b'\x80\x04\x95' + struct.pack('<Q', 12) + b'\x95' + struct.pack('<Q', 1) + b']]].',
        'endless frame': b'\x80\x04\x95' + struct.pack('<Q', 1 << 63) + b']',
        'empty stack': b'\x80\x02.',
        'no end': b'\x80\x02]',
        'protocol 255': b'\x80\xff].',
    }


def tensor(key='0', size=b'K\x04\x85', stride=b'K\x01\x85', offset=b'K\0', count=b'K\x04', kind='Float', view=b''):
    """Instructions that rebuild a tensor as torch writes them; numbers are instructions, too. view: b'N' before 1.6."""
    return (b'ctorch._utils\n_rebuild_tensor_v2\n((' + text('storage') + f'ctorch\n{kind}Storage\n'.encode()
            + text(key) + text('cpu') + count + view + b'tQ' + offset + size + stride + b'\x89}tR')


def torch_file(*tensors, data=b'\0' * 16, **members):
    return torch_zip(b'\x80\x02](' + b''.join(tensors) + b'e.', **{'0': data, **members})


def files(marker):
    """{what: bytes}; what runs would create the file `marker`."""
    touch = f'touch {marker}'
    return {**_files(marker), **more_pickles(touch)}


def _files(marker):
    touch = f'touch {marker}'
    opener = partial(open, str(marker), 'w')
    storage = call('os', 'system', touch)
    return {
        'os.system': dumps(Call(os.system, touch)),
        'os.system in a state dict': state(Call(os.system, touch)),
        'subprocess': dumps(Call(subprocess.call, ['touch', str(marker)])),
        'eval': state(Call(eval, f'open({str(marker)!r}, "w")')),
        'exec': state(Call(exec, f'open({str(marker)!r}, "w")')),
        'eval with data that is no data': state(Call(eval, 'data', {'__builtins__': {}})),
        'open': state(Call(open, str(marker), 'w')),
        'getattr chain': state(Call(getattr, Call(__import__, 'os'), 'system')),
        'partial': state(opener),
        'protocol 0': b"cos\nsystem\n(S'" + touch.encode() + b"'\ntR.",
        'protocol 2': call('os', 'system', touch),
        'inst': b"(S'" + touch.encode() + b"'\nios\nsystem\n.",
        'obj': b'\x80\x02(cos\nsystem\n' + pickle.dumps(touch, 2)[2:-1] + b'o.',
        'newobj': b'\x80\x02cos\nsystem\n' + pickle.dumps((touch,), 2)[2:-1] + b'\x81.',
        'extension': b'\x80\x02\x82\x01.',
        'object array': dumps({'a': np.array([Call(os.system, touch)], object)}),
        'object array in an object array': dumps({'a': np.array([np.array([1, None], object)], object)}),
        'record array': dumps({'a': np.zeros(2, [('x', 'f4'), ('y', 'O')])}),
        'numpy load': call('numpy', 'load', str(marker)),
        'numpy f2py': call('numpy.testing._private.utils', 'runstring', touch, {}),
        'operator': call('operator', 'methodcaller', 'system', touch),
        'persistent id': b'\x80\x02X\x01\0\0\0aQ.',
        'persistent id as text': b'\x80\x02Pa\n.',
        'state for a function': b'\x80\x02cnumpy\ndtype\n}b.',
        'huge memo': b'\x80\x02r\xff\xff\xff\x7f' + b'.',
        'gigabytes of text': b'\x80\x04\x8d' + struct.pack('<Q', 8 << 30) + b'a.',
        'gigabytes of bytes': b'\x80\x04\x8e' + struct.pack('<Q', 8 << 30) + b'a.',
        'gigabytes of frame': b'\x80\x04\x95' + struct.pack('<Q', 8 << 30) + b'a.',
        'gigabytes of bytearray': b'\x80\x05\x96' + struct.pack('<Q', 8 << 30) + b'a.',
        'out-of-band buffer': b'\x80\x05\x97.',
        'gigabytes of integer': b'\x80\x02\x8b' + struct.pack('<i', 1 << 30) + b'a.',
        'gigabytes of array': array_announcing((1 << 33,)),
        'negative array': array_announcing((-1,)),
        'array without data': call('numpy.core.multiarray', '_reconstruct', 0),
        'exponential lists': shared(40),
        'deep key': deep_key(200_000),
        'deep lists': b'\x80\x04' + b']' * 100_000 + b'a' * 99_999 + b'.',
        'two memos of itself': b'\x80\x04]\x94h\0a.',
        'torch: os.system': torch_zip(call('os', 'system', touch)),
        'torch: in a storage': torch_zip(storage, **{'0': b'\0' * 4}),
        'torch: a view beyond its storage': torch_zip(
            b'\x80\x02ctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0'
            b'\0\0cpuK\x04tQK\0M\xe8\x03\x85K\x01\x85\x89}tR.', **{'0': b'\0' * 16}),
        'torch: gigabytes by stride 0': torch_zip(
            b'\x80\x02ctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0'
            b'\0\0cpuK\x04tQK\0J\0\0\0\x40\x85K\0\x85\x89}tR.', **{'0': b'\0' * 16}),
        'torch: a member elsewhere': torch_zip(
            b'\x80\x02((X\x07\0\0\0storagectorch\nFloatStorage\nX\x0a\0\0\0../../../xX\x03\0\0\0cpuK\x04tQt.'),
        'torch: compressed': torch_zip(dumps({'a': 1}), zipfile.ZIP_DEFLATED, **{'0': b'\0' * (1 << 20)}),
        'torch: no pickle': torch_zip(b'')[:0] + zip_of('readme.txt'),
        'torch: tar': b'pickle'.ljust(257, b'\0') + b'ustar\x0000' + b'\0' * 300,
        'safetensors: long header': safetensors({'a': 1}, length=1 << 40),
        'safetensors: beyond the file': safetensors({'a': {'dtype': 'F32', 'shape': [9], 'data_offsets': [0, 36]}}),
        'safetensors: another shape': safetensors(
            {'a': {'dtype': 'F32', 'shape': [1 << 40], 'data_offsets': [0, 4]}}, b'\0' * 4),
        'safetensors: deep JSON': safetensors(b'{"a":' + b'[' * 200_000),
        'safetensors: unknown type': safetensors({'a': {'dtype': 'X9', 'shape': [1], 'data_offsets': [0, 4]}}, b'abcd'),
    }


def zip_of(name):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w') as archive:
        archive.writestr(name, 'x')
    return buffer.getvalue()
