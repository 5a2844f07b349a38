"""As crafted.py: what torch.save wrote before 1.6, and streams of that form whose parts do not fit."""
import pickle
import struct

from tests.models.crafted import plain, tensor, text

NUMBER = 0x1950a86a20f9469cfc6c
MAGIC = pickle.dumps(NUMBER, 2)
HEAD = MAGIC + pickle.dumps(1001, 2)
ONE = {'0': (4, b'\0' * 16)}  # the storage of crafted.tensor


def machine(little_endian=True, protocol=2):
    return pickle.dumps({'protocol_version': 1001, 'little_endian': little_endian,
                         'type_sizes': {'short': 2, 'int': 4, 'long': 4}}, protocol)


def after(storages, keys=None, protocol=2):
    """The list of keys and the storages of a stream. storages: {key: (number of values, bytes)}."""
    return pickle.dumps(list(storages) if keys is None else keys, protocol) + b''.join(
        struct.pack('<q', count) + data for count, data in storages.values())


def stream(body, storages, keys=None, protocol=2):
    """The file of torch.save. body: instructions of the object."""
    head = b''.join(pickle.dumps(part, protocol) for part in (NUMBER, 1001)) + machine(protocol=protocol)
    return head + b'\x80' + bytes([protocol]) + body + b'.' + after(storages, keys, protocol)


def files(touch):
    """{what: bytes}. touch: a command that makes the file which nothing may make."""
    def in_stream(*tensors):
        return b'](' + b''.join(tensors) + b'e'

    def of(view=b'N', **options):
        return in_stream(tensor(view=view, **options))

    one = of()
    system = b'cposix\nsystem\n' + text(touch) + b'\x85R'
    good = stream(one, ONE)
    cuts = {'magic number': len(MAGIC) - 3, 'version': len(HEAD) - 1, 'machine': len(HEAD) + 20,
            'pickle': len(HEAD + machine()) + 40, 'list of storages': len(good) - 26,
            'size of a storage': len(good) - 18, 'storage': len(good) - 1}
    side = 2048
    square = dict(size=plain((side, side)), stride=plain((1, side)), count=plain(side * side))
    huge = plain(1 << 60)
    return {
        **{f'stream: the {what} cut off': good[:end] for what, end in cuts.items()},
        'stream: code after the magic number': MAGIC + b'\x80\x02' + system + b'.',
        'stream: code as the version': MAGIC + b'\x80\x02' + system + b'.' + machine() + good[len(HEAD + machine()):],
        'stream: code as the machine': HEAD + b'\x80\x02' + system + b'.' + good[len(HEAD + machine()):],
        'stream: code as the object': stream(system, {}),
        'stream: code in a state dict': stream(b'}(' + text('a') + system + b'u', {}),
        'stream: code as a storage': stream(b'((' + text('storage') + system + b'tQ', ONE),
        'stream: code as the list of storages': HEAD + machine() + b'\x80\x02' + one + b'.\x80\x02' + system + b'.',
        'stream: another version': MAGIC + pickle.dumps(1002, 2) + good[len(HEAD):],
        'stream: big-endian': HEAD + machine(False) + good[len(HEAD + machine()):],
        'stream: no machine': HEAD + pickle.dumps([], 2) + good[len(HEAD + machine()):],
        'stream: bytes at the end': good + b'\0',
        'stream: a second file at the end': good + good,
        'stream: a storage larger than announced': stream(one, {'0': (5, b'\0' * 20)}),
        'stream: a storage smaller than announced': stream(one, {'0': (3, b'\0' * 12)}),
        'stream: a storage of less than nothing': stream(one, {'0': (-1, b'')}),
        'stream: gigabytes of storage': stream(of(count=huge), {'0': (1 << 60, b'\0' * 16)}),
        'stream: gigabytes of one storage, little of another': stream(
            of(count=huge, size=plain((1 << 60,))), ONE),
        'stream: less than nothing announced': stream(of(count=plain(-4)), {'0': (-4, b'\0' * 16)}),
        'stream: a number of values that is text': stream(of(count=text('4')), ONE),
        'stream: a number of values with a fraction': stream(of(count=plain(4.0)), ONE),
        'stream: a storage that is not there': stream(one, {}),
        'stream: a storage under another key': stream(of(key='7'), ONE),
        'stream: a storage that nothing uses': stream(one, {**ONE, '1': (1, b'\0' * 4)}),
        'stream: a storage listed twice': stream(one, {**ONE, '1': ONE['0']}, ['0', '0']),
        'stream: a list of storages with a number': stream(one, ONE, [0]),
        'stream: a list of storages with a list': stream(one, ONE, [['0']]),
        'stream: a list of storages that is text': stream(one, ONE, '0'),
        'stream: a storage of two types': stream(in_stream(tensor(view=b'N'), tensor(view=b'N', kind='Int')), ONE),
        'stream: a storage of two sizes': stream(
            in_stream(tensor(view=b'N'), tensor(view=b'N', size=b'K\2\x85', count=b'K\2')), ONE),
        'stream: a view beyond its storage': stream(of(size=b'K\5\x85'), ONE),
        'stream: strides beyond the storage': stream(of(stride=b'K\2\x85'), ONE),
        'stream: one storage turned many times': stream(
            in_stream(*[tensor(view=b'N', **square)] * 40), {'0': (side * side, bytes(4 * side * side))}),
        'stream: a part of another storage': stream(of(view=plain(('1', 2, 2))), ONE),
        'stream: a persistent id as in zip files': stream(of(view=b''), ONE),
        'stream: a persistent id with a part more': stream(of(view=b'NN'), ONE),
        'stream: a persistent id that is text': stream(text('0') + b'Q', ONE),
        'stream: a persistent id that is a list': stream(b']Q', ONE),
        'stream: a key that is a list': stream(
            b'(' + text('storage') + b'ctorch\nFloatStorage\n]' + text('cpu') + b'K\4NtQ', ONE),
        'stream: a key of megabytes': stream(of(key='0' * (4 << 20)), ONE),
        'stream: a call of a storage': stream(b'ctorch\nFloatStorage\nK\4\x85R', {}),
        'stream: a whole module': stream(b'ctorch.nn.modules.conv\nConv2d\n)\x81}b', {}),
        'stream: a module with its source': stream(
            b'(' + text('module') + b'cseg_hrnet\nHighResolutionNet\n' + text('a.py') + text('import os') + b'tQ', {}),
        'stream: in a stream': stream(MAGIC[2:-1] + b'0', ONE),
        'stream: a frame over the storages': HEAD + machine() + b'\x80\x04\x95' + struct.pack(
            '<Q', len(one) + 1 + len(after(ONE))) + one + b'.' + after(ONE),
    }
