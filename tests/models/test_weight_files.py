"""Reading weights of every kind, and refusing files that want more than that."""
import importlib
import json
import resource
import signal
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import paddle
import pytest
import safetensors.numpy

from common.errors import UserError
from models.weight_files import NAME_TABLE, read_state
from tests.conftest import PATIENCE, run_script
from tests.models import crafted, crafted_archives, crafted_streams

ARRAYS = {'a': np.arange(6, dtype='float32').reshape(2, 3), 'b': np.array(3), 'c': np.zeros([0, 4], 'float32'),
          'd': np.arange(4, dtype='int32'), 'e': np.array([True, False]), 'f': np.linspace(0, 1, 5).astype('float16')}


def same(found, expected):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype and found[name].shape == array.shape, name
        np.testing.assert_array_equal(found[name], array, err_msg=name)
        assert found[name].flags.c_contiguous


@pytest.mark.parametrize('protocol', [2, 3, 4])
def test_what_paddle_writes(tmp_path, protocol):
    layer = paddle.nn.Sequential(paddle.nn.Conv2D(2, 3, 1), paddle.nn.BatchNorm2D(3))
    path = str(tmp_path / 'model.pdparams')
    paddle.save(layer.state_dict(), path, protocol=protocol)
    found = read_state(path)
    table = found.pop(NAME_TABLE)
    assert table == {name: tensor.name for name, tensor in layer.state_dict().items()}
    same(found, paddle.load(path, return_numpy=True))
    paddle.save({**{name: paddle.to_tensor(array) for name, array in ARRAYS.items()}, 'LR_Scheduler': {
        'last_epoch': 3, 'last_lr': 0.25, 'many': [1, -2, 3.5, None, True], 'big': 1 << 60}, 'np': np.float64(0.1)},
        path, protocol=protocol)
    found = read_state(path)
    assert found.pop('LR_Scheduler') == {'last_epoch': 3, 'last_lr': 0.25, 'many': [1, -2, 3.5, None, True],
                                         'big': 1 << 60}
    assert found.pop('np') == 0.1
    same(found, ARRAYS)


def test_an_optimizer_state_of_paddle(tmp_path):
    layer = paddle.nn.Linear(3, 2)
    optimizer = paddle.optimizer.Adam(paddle.optimizer.lr.PolynomialDecay(0.1, 10), parameters=layer.parameters())
    layer(paddle.ones([2, 3])).sum().backward()
    optimizer.step()
    path = str(tmp_path / 'model.pdopt')
    paddle.save(optimizer.state_dict(), path)
    found = read_state(path)
    found.pop(NAME_TABLE, None)
    assert found.pop('LR_Scheduler') == optimizer.state_dict()['LR_Scheduler']
    same(found, {name: value.numpy() for name, value in optimizer.state_dict().items() if name != 'LR_Scheduler'})


def test_tensors_of_old_paddle(tmp_path):
    """Static-graph tensors were written as eval('data', {'data': array})."""
    path = tmp_path / 'old.pdparams'
    path.write_bytes(crafted.state(crafted.Call(eval, 'data', {'data': ARRAYS['a']})))
    same(read_state(path), {'ocrnet.head.cls_head.bias': ARRAYS['a']})


def test_column_major_and_big_endian_arrays(tmp_path):
    path = tmp_path / 'x.pdparams'
    path.write_bytes(crafted.dumps({'a': np.asfortranarray(ARRAYS['a']), 'b': ARRAYS['a'].astype('>f4')}))
    same(read_state(path), {'a': ARRAYS['a'], 'b': ARRAYS['a']})


def test_safetensors(tmp_path):
    path = tmp_path / 'x.safetensors'
    path.write_bytes(safetensors.numpy.save(ARRAYS, {'license': 'none'}))
    same(read_state(path), ARRAYS)
    half = crafted.safetensors({'h': {'dtype': 'BF16', 'shape': [2], 'data_offsets': [0, 4]}}, b'\x80\x3f\x20\xc0')
    path.write_bytes(half)
    same(read_state(path), {'h': np.array([1.0, -2.5], 'float32')})


@pytest.mark.parametrize('form', ['zip', 'stream'])
def test_files_of_torch_without_torch(tmp_path, form):
    """An OrderedDict with views of one storage: contiguous, transposed, with an offset; a scalar, bfloat16, nothing."""
    def tensor(key, size, stride, offset=0, kind='Float', count=12):
        return crafted.tensor(key, crafted.plain(size), crafted.plain(stride), crafted.plain(offset),
                              crafted.plain(count), kind, b'' if form == 'zip' else b'N')

    data = np.arange(12, dtype='float32')
    entries = {'plain': tensor('0', (3, 4), (4, 1)), 'transposed': tensor('0', (4, 3), (1, 4)),
               'offset': tensor('0', (2,), (3,), offset=5), 'scalar': tensor('1', (), (), 0, 'Long', 1),
               'half': tensor('2', (2,), (1,), 0, 'BFloat16', 2), 'nothing': tensor('3', (0, 4), (4, 1), 0, 'Half', 0)}
    body = b'ccollections\nOrderedDict\n)R(' + b''.join(crafted.text(name) + code for name, code in entries.items())
    body += b'u}' + crafted.text('_metadata') + b'K\x01sb'
    storages = {'0': (12, data.tobytes()), '1': (1, np.int64(7).tobytes()), '2': (2, b'\x80\x3f\x20\xc0'),
                '3': (0, b'')}
    path = tmp_path / 'x.pth'
    path.write_bytes(crafted_streams.stream(body, storages) if form == 'stream' else crafted.torch_zip(
        b'\x80\x02' + body + b'.', **{key: content for key, (_, content) in storages.items()}))
    plain = data.reshape(3, 4)
    same(read_state(path), {'plain': plain, 'transposed': plain.T.copy(), 'offset': data[[5, 8]], 'scalar': np.array(7),
                            'half': np.array([1.0, -2.5], 'float32'), 'nothing': np.zeros([0, 4], 'float16')})


@pytest.mark.parametrize('protocol', [2, 3, 4])
def test_a_stream_of_any_protocol_with_an_optimizer(tmp_path, protocol):
    """What a training saved: plain values, and momenta under the addresses that parameters had in the process."""
    address, path = 140_234_567_890_128, tmp_path / 'x.pth'
    momentum = b'}' + crafted.text('momentum_buffer') + crafted.tensor(view=b'N') + b's'
    body = b'}(' + crafted.text('epoch') + b'K\xae' + crafted.text('state') + b'}' + crafted.plain(address) + momentum
    body += b'su'
    path.write_bytes(crafted_streams.stream(body, {'0': (4, ARRAYS['d'].astype('f4').tobytes())}, protocol=protocol))
    found = read_state(path)
    assert found.keys() == {'epoch', 'state'} and found['epoch'] == 174 and list(found['state']) == [address]
    same(found['state'][address], {'momentum_buffer': ARRAYS['d'].astype('f4')})


REASONS = {  # where Python's own library would stop at something else, or a smaller file would do no harm
    'torch: millions of members': 'found a list of members of ',
    'torch: members that share their bytes': 'by using some of it many times',
    'bytes used by many arrays': 'by using some of it many times',
    'text encoded many times': 'by using some of it many times',
    'torch: one storage turned many times': 'by using some of it many times',
    'stream: one storage turned many times': 'by using some of it many times',
    'stream: gigabytes of storage': f'({4 << 60} bytes announced where 16 are left)',
    'stream: a storage of two types': "storage '0' of two types or sizes",
    'stream: a storage listed twice': 'a list of storages other than those that are used',
    'stream: a storage that nothing uses': 'a list of storages other than those that are used',
    **{f'stream: {what}': 'a persistent id that is no storage' for what in (
        'a part of another storage', 'less than nothing announced', 'a number of values that is text',
        'a number of values with a fraction', 'a key of megabytes')},
    'stream: a storage larger than announced': 'a storage of 5 values where 4 are announced',
    'stream: bytes at the end': '1 bytes after the last storage',
    'torch: tar': 'the tar form of the first versions of torch',
    'name with a line break': r"the name 'os.system\nerror: fine'"}


def all_crafted(marker):
    return {**crafted.files(marker), **crafted_archives.files(), **crafted_streams.files(f'touch {marker}')}


@pytest.fixture(scope='session')
def crafted_files(tmp_path_factory):
    """(the file that would be made, {what: path}), written once: some are megabytes."""
    folder = tmp_path_factory.mktemp('crafted')
    marker, paths = folder / 'marker', {}
    for i, (name, data) in enumerate(all_crafted(marker).items()):
        paths[name] = folder / f'{i}.pdparams'
        paths[name].write_bytes(data)
    return marker, paths


@pytest.fixture
def patience():
    """Ends a test that hangs."""
    def stop(*_):
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(PATIENCE)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize('name', list(all_crafted(Path('/nowhere'))))
def test_a_crafted_file_is_refused_in_one_line_and_nothing_runs(crafted_files, patience, name):
    marker, paths = crafted_files
    path = paths[name]
    tracemalloc.start()
    try:
        with pytest.raises(UserError) as error:
            read_state(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    text = str(error.value)
    assert text.startswith(f'{path}: expected ') and text.isprintable()
    assert len(text.removeprefix(str(path.parent))) < 350
    assert REASONS.get(name, '') in text and not marker.exists()
    assert peak < (200 << 20) + 6 * path.stat().st_size  # text of other alphabets takes up to four times its bytes


def test_a_huge_memo_takes_no_memory(tmp_path):
    path = tmp_path / 'w.pdparams'
    path.write_bytes(b'\x80\x02]r\xff\xff\xff\x7fX\x01\0\0\0aa.')
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert read_state(path) == ['a']
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 << 10, 'KiB'


def test_what_a_file_may_use_twice(tmp_path):
    """Two names of one array are common (tied weights), and cost nothing: both are views of the file's bytes."""
    path = tmp_path / 'w.pdparams'
    path.write_bytes(crafted.many(crafted.plain(bytes(1 << 20)), crafted.array(
        crafted.dtype('f4'), crafted.plain((1 << 18,)), b'j\0\0\0\0'), 1000))
    found = read_state(path)
    assert len(found) == 1000 and all(np.shares_memory(found[0], array) for array in found)


def test_the_marker_would_be_made_by_pickle(tmp_path):
    """The table is dangerous: what is refused above does run with the ordinary loader."""
    import pickle
    marker = tmp_path / 'marker'
    ran = 0
    for name in ('os.system', 'os.system in a state dict', 'subprocess', 'open', 'object array', 'inst', 'protocol 0'):
        pickle.loads(crafted.files(marker)[name])
        ran += marker.exists()
        marker.unlink(missing_ok=True)
    assert ran == 7


def test_truncated_anywhere(tmp_path):
    path = tmp_path / 'w.pdparams'
    paddle.save({'a': paddle.ones([3]), 'b': paddle.zeros([2, 2])}, str(path))
    data = path.read_bytes()
    for cut in range(1, len(data), 7):
        path.write_bytes(data[:cut])
        with pytest.raises(UserError, match=r'w\.pdparams: expected weights'):
            read_state(path)


# {where: command}; a new script that reads weights is one line, and gets --config of a tiny network.
ENTRIES = {
    'val': ['val.py', '--model_path', '{file}'],
    'predict': ['predict.py', '--image_path', '{toy}/leftImg8bit/val', '--save_dir', '{tmp}/out', '--model_path',
                '{file}'],
    'train': ['train.py', '--save_dir', '{tmp}/run', '--opts', 'model.pretrained={file}'],
    'resume weights': ['train.py', '--save_dir', '{tmp}/run', '--resume_model', '{tmp}/iter_1/model.pdparams'],
    'resume optimizer': ['train.py', '--save_dir', '{tmp}/run', '--resume_model', '{tmp}/iter_1/model.pdopt'],
    'resume averages': ['train.py', '--save_dir', '{tmp}/run', '--resume_model', '{tmp}/iter_1/ema_model.pdparams',
                        '--opts', 'options.ema=0.9'],
    'export': ['export.py', '--save_dir', '{tmp}/out', '--model_path', '{file}'],
    'convert': ['tools/convert_weights.py', '{file}', '{tmp}/out.pdparams'],
    'model of PaddleSeg': ['train.py', '--config', '{tmp}/model.yml', '--save_dir', '{tmp}/run'],
    'backbone of PaddleSeg': ['train.py', '--config', '{tmp}/backbone.yml', '--save_dir', '{tmp}/run'],
    'transformer of PaddleSeg': ['train.py', '--config', '{tmp}/transformer.yml', '--save_dir', '{tmp}/run'],
    'autolabel': ['tools/autolabel.py', '--image_dir', '{toy}/leftImg8bit/val', '--save_dir', '{tmp}/out',
                  '--model_path', '{file}'],
}


@pytest.mark.parametrize('entry', ENTRIES)
def test_every_entry_reads_safely(entry, tiny_config, toy, tmp_path, capfd):
    """A file that would run code, at each place where a command line reads one: status 1, one line, nothing runs."""
    marker, file = tmp_path / 'marker', tmp_path / 'w.pdparams'
    evil = crafted.files(marker)['os.system in a state dict']
    file.write_bytes(evil)
    command = [word.format(file=file, toy=toy, tmp=tmp_path) for word in ENTRIES[entry]]
    if entry.startswith('resume'):
        position = command.index('--resume_model') + 1
        target = Path(command[position])
        checkpoint(target.parent, tiny_config, ema='ema' in target.name)
        target.write_bytes(evil)
        command[position] = str(target.parent)
    for name, model in PADDLESEG.items():
        (tmp_path / f'{name}.yml').write_text(
            f'_base_: {tiny_config}\nmodel: {{_inherited_: False, {model.format(file=file)}}}\n')
    if '--config' not in command and not command[0].endswith('convert_weights.py'):
        command += ['--config', str(tiny_config)]
    script, *arguments = command
    main = importlib.import_module(script.removesuffix('.py').replace('/', '.')).main
    capfd.readouterr()
    status, printed = run_script(main, *arguments), capfd.readouterr().err
    lines = printed.strip().splitlines()
    assert status == 1 and not marker.exists(), printed
    assert lines[-1].startswith('error: ') and 'the name posix.system' in lines[-1] and 'Traceback' not in printed


PADDLESEG = {
    'model': 'type: ENet, pretrained: {file}, num_classes: 19',
    'backbone': 'type: FCN, backbone: {{type: HRNet_W18, pretrained: {file}}}, num_classes: 19',
    'transformer': 'type: SegmentationTransformer, backbone: {{type: ViT_small_patch16_224, pretrained: {file}}}, '
                   'num_classes: 19'}


def checkpoint(folder, config, ema):
    """A PaddleSeg checkpoint (no state.json), of which one file is then replaced."""
    from common.builder import Builder
    from common.config import Config

    builder = Builder(Config(config))
    folder.mkdir()
    paddle.save(builder.model.state_dict(), str(folder / 'model.pdparams'))
    paddle.save(builder.optimizer.state_dict(), str(folder / 'model.pdopt'))
    if ema:
        paddle.save(builder.model.state_dict(), str(folder / 'ema_model.pdparams'))


def test_the_helpers_write_valid_archives(tmp_path):
    path = tmp_path / 'x.zip'
    path.write_bytes(crafted.torch_zip(b'x', **{'0': b'12'}))
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == ['archive/data.pkl', 'archive/data/0']
    assert json.loads(crafted.safetensors({'a': 1})[8:]) == {'a': 1}
