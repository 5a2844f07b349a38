"""NVIDIA's network as its files have it: names, weights filled by name, and the logits of its own code for them."""
import json
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np

from tests import fill
from tests.models import crafted, crafted_streams

REFERENCE = Path(__file__).parent / 'reference'
CASES = {'s3': ([0.5, 1.0, 2.0], 31), 's1': ([1.0], 31), 's2': ([0.5, 1.0], 32)}


def listed():
    """[[name, shape, dtype]] of NVIDIA's state dict, in its order."""
    return json.loads((REFERENCE / 'nvidia_state_dict.json').read_text())


def filled():
    """Weights by NVIDIA's names, as they were filled for the reference logits."""
    state = {}
    for name, shape, dtype in listed():
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        if dtype != 'float32':
            state[name] = np.zeros(shape, dtype)
        elif len(shape) == 4:
            state[name] = rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
        elif name.endswith('running_var'):
            state[name] = rng.uniform(0.8, 1.2, shape)
        elif len(shape) == 1 and name.endswith('.weight'):
            state[name] = rng.uniform(0.4, 0.9, shape)
        else:
            state[name] = rng.normal(0, 0.1, shape)
    return {name: value.astype('int64' if value.dtype == 'int64' else 'float32') for name, value in state.items()}


def image(case):
    """float32 (1, 3, 64, 128)."""
    return fill.image(CASES[case][1], [1, 3, 64, 128])


def logits(case):
    """Every other row and column of NVIDIA's logits, (1, 19, 32, 64)."""
    return np.load(REFERENCE / 'nvidia_mscale.npz')[case]


def write_pth(path, state, prefix='module.', inside=True, form='zip'):
    """A file as torch.save writes a state dict of contiguous tensors: {'epoch': ..., 'state_dict': OrderedDict}.

    form: 'stream' for what it wrote before torch 1.6.
    """
    kinds = {'float32': 'Float', 'float16': 'Half', 'float64': 'Double', 'int64': 'Long'}
    view = b'N' if form == 'stream' else b''
    entries = [crafted.text(prefix + name) + crafted.tensor(
        str(key), crafted.plain(value.shape),
        crafted.plain(tuple(stride // value.itemsize for stride in value.strides)), count=crafted.plain(value.size),
        kind=kinds[value.dtype.name], view=view) for key, (name, value) in enumerate(state.items())]
    body = b'ccollections\nOrderedDict\n)R(' + b''.join(entries) + b'u'
    if inside:
        body = b'}(' + crafted.text('epoch') + b'K\xae' + crafted.text('state_dict') + body + b'u'
    data = {str(key): np.asarray(value, order='C') for key, value in enumerate(state.values())}
    if form == 'stream':
        with open(path, 'wb') as file:
            file.write(crafted_streams.stream(body, {}, list(data)))
            for value in data.values():
                file.write(struct.pack('<q', value.size) + value.tobytes())
        return path
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr(f'{path.stem}/data.pkl', b'\x80\x02' + body + b'.')
        archive.writestr(f'{path.stem}/byteorder', b'little')
        for key, value in data.items():
            archive.writestr(f'{path.stem}/data/{key}', value.tobytes())
        archive.writestr(f'{path.stem}/version', b'3\n')
    return path


def hrnet_ocr(state):
    """NVIDIA's names as HRNet's authors have them: backbone and heads side by side, in a wrapper with its loss."""
    renamed = {'ocr.conv3x3_ocr.1.0.': 'conv3x3_ocr.1.', 'ocr.aux_head.1.0.': 'aux_head.1.',
               'ocr.aux_head.2.': 'aux_head.3.', 'ocr.': '', 'backbone.': ''}
    result = {'loss.criterion.weight': np.ones(3, 'float32')}
    for name, value in state.items():
        old = next((old for old in renamed if name.startswith(old)), None)
        if old is not None:
            result[f'model.{renamed[old]}{name.removeprefix(old)}'] = value
    return result
