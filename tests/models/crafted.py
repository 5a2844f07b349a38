"""Files that pretend to be weights: each tries to run code, or to fill the memory, when it is loaded."""
import io
import json
import os
import pickle
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


def files(marker):
    """{what: bytes}; what runs would create the file `marker`."""
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
        'torch: no pickle': torch_zip(b'')[:0] + _zip_of('readme.txt'),
        'torch: legacy': b'\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.' + call('os', 'system', touch),
        'torch: tar': b'pickle'.ljust(257, b'\0') + b'ustar\x0000' + b'\0' * 300,
        'safetensors: long header': safetensors({'a': 1}, length=1 << 40),
        'safetensors: beyond the file': safetensors({'a': {'dtype': 'F32', 'shape': [9], 'data_offsets': [0, 36]}}),
        'safetensors: another shape': safetensors(
            {'a': {'dtype': 'F32', 'shape': [1 << 40], 'data_offsets': [0, 4]}}, b'\0' * 4),
        'safetensors: deep JSON': safetensors(b'{"a":' + b'[' * 200_000),
        'safetensors: unknown type': safetensors({'a': {'dtype': 'X9', 'shape': [1], 'data_offsets': [0, 4]}}, b'abcd'),
    }


def _zip_of(name):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w') as archive:
        archive.writestr(name, 'x')
    return buffer.getvalue()
