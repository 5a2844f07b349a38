"""As crafted.py: zip files of torch.save and safetensors files whose lists, places and shapes do not fit."""
import copy
import io
import struct
import warnings
import zipfile

from tests.models.crafted import plain, safetensors, tensor, text, torch_file, torch_zip, zip_of


def files():
    """{what: bytes}."""
    return {**torch_files(), **safetensors_files()}


def torch_files():
    """{what: bytes}: zip files of torch.save with members, storages and views that do not fit."""
    good = torch_file(tensor())
    encrypted = bytearray(good)
    for start in (i for i in range(len(good)) if good[i:i + 4] == b'PK\x01\x02'):
        encrypted[start + 8] |= 1
    side = 2048
    square = dict(size=b'M\0\x08M\0\x08\x86', stride=b'K\x01M\0\x08\x86', count=plain(side * side))
    return {
        'torch: encrypted': bytes(encrypted),
        'torch: storage shorter than announced': torch_file(tensor(count=b'K\x05', size=b'K\x05\x85')),
        'torch: storage longer than announced': torch_file(tensor(count=b'K\x03', size=b'K\x03\x85')),
        'torch: storage of odd length': torch_file(tensor(), data=b'\0' * 15),
        'torch: strides beyond the storage': torch_file(tensor(stride=b'K\x02\x85')),
        'torch: negative offset': torch_file(tensor(offset=b'J\xff\xff\xff\xff', size=b'K\1\x85')),
        'torch: negative stride': torch_file(tensor(stride=b'J\xff\xff\xff\xff\x85')),
        'torch: offset beyond the storage': torch_file(tensor(offset=b'K\x04', size=b'K\1\x85')),
        'torch: overflowing stride': torch_file(tensor(stride=b'\x8a\x09' + bytes(8) + b'\1\x85', size=b'K\2\x85')),
        'torch: sides and strides of other numbers': torch_file(tensor(size=b'K\1K\4\x86')),
        'torch: many sides': torch_file(tensor(size=plain((1,) * 100), stride=plain((1,) * 100))),
        'torch: a shape that is a storage': torch_file(tensor(size=tensor(), stride=tensor())),
        'torch: a shape that is text': torch_file(tensor(size=text('aa'), stride=text('aa'))),
        'torch: a storage that is no storage': torch_zip(b'\x80\x02' + plain(('storage', 1, '0', 'cpu', 4)) + b'Q.'),
        'torch: a key that is a list': torch_zip(b'\x80\x02(' + text('storage') + b'ctorch\nFloatStorage\n]'
                                                 + text('cpu') + b'K\4tQ.'),
        'torch: a call of a storage': torch_zip(b'\x80\x02ctorch\nFloatStorage\nK\4\x85R.'),
        'torch: one storage turned many times': torch_file(*[tensor(**square)] * 40, data=bytes(4 * side * side)),
        'torch: a storage that is not there': torch_file(tensor('7')),
        'torch: big-endian': _edited_zip(good, {'archive/byteorder': b'big'}),
        'torch: a whole module': torch_zip(b'\x80\x02ctorch.nn.modules.conv\nConv2d\n)\x81.'),
        'torch: two pickles': _edited_zip(good, {'other/data.pkl': b'\x80\x02].'}),
        'torch: one name twice': _edited_zip(good, {'archive/data/0': b'1' * 16}),
        'torch: the pickle above': _edited_zip(zip_of('a'), {'../x/data.pkl': b'\x80\x02].'}),
        'torch: members that share their bytes': _overlapping(40, 16 << 20),
        'torch: a member of gigabytes': _with_size(good, 3 << 30),
        'torch: millions of members': _listing(60_000),
        'torch: no list of members': good[:-30],
        'torch: nothing but a head': b'PK\x03\x04' + bytes(600),
    }


def _edited_zip(data, added):
    buffer = io.BytesIO(data)
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, 'a') as archive:
        warnings.simplefilter('ignore')  # of one name twice
        for name, content in added.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def _overlapping(count, size):
    """Members data/0, data/1, ... whose headers all lead to the first one's bytes."""
    tensors = [tensor(str(i), size=plain((size // 4,)), count=plain(size // 4)) for i in range(count)]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w') as archive:
        archive.writestr('a/data.pkl', b'\x80\x02](' + b''.join(tensors) + b'e.')
        archive.writestr('a/data/0', bytes(size))
        first = archive.infolist()[-1]
        for i in range(1, count):
            other = copy.copy(first)
            other.filename = other.orig_filename = f'a/data/{i}'
            archive.filelist.append(other)
    return buffer.getvalue()


def _with_size(data, size):
    """The last member's sizes replaced in the list of members."""
    start = data.rindex(b'PK\x01\x02')
    return data[:start + 20] + struct.pack('<II', size, size) + data[start + 28:]


def _listing(count):
    """A list of `count` members, each an entry of 46 bytes and a name, which all lead to the first."""
    entry = struct.pack('<IHHHHHHIIIHHHHHII', 0x02014b50, 20, 20, 0, 0, 0, 33, 0, 0, 0, 100, 0, 0, 0, 0, 0, 0)
    listed = b''.join(entry + f'{i:0>100}'.encode() for i in range(count))
    end = struct.pack('<IHHHHIIH', 0x06054b50, 0, 0, count, count, len(listed), 30, 0)
    return b'PK\x03\x04' + bytes(26) + listed + end


def safetensors_files():
    """{what: bytes}: headers whose names, types, shapes and places do not fit."""
    def one(shape, offsets, kind='F32', data=b'\0' * 8, **others):
        return safetensors({'a': {'dtype': kind, 'shape': shape, 'data_offsets': offsets}, **others}, data)

    def raw(entry, data=b'\0' * 8):
        return safetensors(b'{"a":' + entry + b'}', data)

    return {
        'safetensors: overlapping': one([2], [0, 8], b={'dtype': 'F32', 'shape': [1], 'data_offsets': [4, 8]}),
        'safetensors: all of it many times': safetensors({
            f't{i}': {'dtype': 'F16', 'shape': [8 << 20], 'data_offsets': [0, 16 << 20]} for i in range(40)},
            bytes(16 << 20)),
        'safetensors: a hole': one([1], [4, 8]),
        'safetensors: bytes left over': one([1], [0, 4]),
        'safetensors: out of range': one([3], [0, 12]),
        'safetensors: negative place': one([2], [-8, 0]),
        'safetensors: backwards': one([2], [8, 0]),
        'safetensors: type and bytes differ': one([2], [0, 8], 'F64'),
        'safetensors: half a number': one([1], [0, 7], data=b'\0' * 7),
        'safetensors: shape of truth': one([True, 2], [0, 8]),
        'safetensors: shape of fractions': one([2.0], [0, 8]),
        'safetensors: shape of text': one('2', [0, 8]),
        'safetensors: negative shape': one([-2, -1], [0, 8]),
        'safetensors: many sides': one([1] * 100 + [2], [0, 8]),
        'safetensors: nothing by huge sides': one([0, 1 << 100], [0, 0], data=b''),
        'safetensors: huge sides': one([1 << 4000] * 1000, [0, 8]),
        'safetensors: NaN': raw(b'{"dtype":"F32","shape":[NaN],"data_offsets":[0,8]}'),
        'safetensors: infinity': raw(b'{"dtype":"F32","shape":[1e999],"data_offsets":[0,8]}'),
        'safetensors: thousands of digits': raw(
            b'{"dtype":"F32","shape":[' + b'9' * 6000 + b'],"data_offsets":[0,8]}'),
        'safetensors: one name twice': safetensors(b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},'
                                                   b'"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', b'a'),
        'safetensors: one key twice': raw(b'{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}'),
        'safetensors: three offsets': one([2], [0, 8, 9]),
        'safetensors: no type': raw(b'{"shape":[2],"data_offsets":[0,8]}'),
        'safetensors: a type that is a list': one([2], [0, 8], ['F32']),
        'safetensors: an entry that is text': raw(b'"F32"'),
        'safetensors: name with a line break': safetensors({'a\nerror: fine': {
            'dtype': 'F32', 'shape': [2], 'data_offsets': [0, 8]}}, bytes(8)),
        'safetensors: lists by the megabyte': safetensors(b'{"a":[' + b'[],' * (3 << 20) + b'[]]}'),
        'safetensors: no text': safetensors(b'{"\xff\xfe":1}'),
        'safetensors: header cut off': struct.pack('<Q', 400) + b'{"a":',
    }
