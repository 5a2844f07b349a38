"""benchmarks/gpu_inference.py: what it writes is measured on a CPU by a copy that finds no Paddle and no repository."""
import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import onnx
import pytest

from benchmarks import gpu_inference
from benchmarks.gpu import memory, rows, torch_row, weights
from inference.row_strips import bilinear_rows
from tests.conftest import PATIENCE, ROOT

ort = pytest.importorskip('onnxruntime')
SIZE = (64, 96)
DRAWN = [0.27392327785491943, -0.4604266881942749, -0.9180530309677124, -0.9669448137283325]


@pytest.fixture(scope='module')
def written(tmp_path_factory):
    """Not to be changed by a test, but for the weights that measuring draws."""
    folder = tmp_path_factory.mktemp('gpu') / 'written'
    command = ['-m', 'benchmarks.gpu_inference', '--write', str(folder), '--backbone', 'HRNet_W18_NV_Small_V1',
               '--size', *map(str, SIZE), '--scales', '0.5', '1', '--flip']
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    shutil.copytree(folder, folder.with_name('as written'))
    manifest = json.loads((folder / 'manifest.json').read_text())
    assert weights.ensure(folder, manifest) == ''
    return folder


@pytest.fixture
def copy(written, tmp_path):
    return shutil.copytree(written, tmp_path / 'copy')


@pytest.fixture(scope='module')
def elsewhere(tmp_path_factory):
    """A folder with the benchmark alone, where importing Paddle, or a room of this repository, fails and leaves a note.
    """
    folder = tmp_path_factory.mktemp('elsewhere')
    (folder / 'benchmarks').mkdir()
    shutil.copy(ROOT / 'benchmarks/gpu_inference.py', folder / 'benchmarks')
    shutil.copytree(ROOT / 'benchmarks/gpu', folder / 'benchmarks/gpu', ignore=shutil.ignore_patterns('__pycache__'))
    (folder / 'guard').mkdir()
    for name in ('paddle', 'paddleseg', 'common', 'inference', 'models', 'tools'):
        (folder / 'guard' / f'{name}.py').write_text(
            f'open({str(folder / "imported")!r}, "a").write(__name__)\nraise ImportError(__name__)\n')
    return folder


def measure(elsewhere, *arguments):
    environment = {**os.environ, 'PYTHONPATH': str(elsewhere / 'guard')}
    done = subprocess.run([sys.executable, 'benchmarks/gpu_inference.py', '--rounds', '2', '--warm_up', '0',
                           '--threads', '1', *map(str, arguments)], cwd=elsewhere, env=environment,
                          capture_output=True, text=True)
    assert not (elsewhere / 'imported').exists(), (elsewhere / 'imported').read_text()
    return done


# ---------------------------------------------------------------- what travels

def test_the_folder_has_no_weights(written):
    folder = written.with_name('as written')
    whole = sum((written / weights.file_of(precision)).stat().st_size for precision in weights.DTYPES)
    assert sum(path.stat().st_size for path in folder.iterdir()) < whole / 30
    image = np.load(folder / 'image.npy')
    assert (image.shape, image.dtype) == ((*SIZE, 3), np.uint8) and len(np.unique(image)) > 50


def test_no_class_has_all_pixels(written):
    session = ort.InferenceSession(str(written / 'plain_fp32_classes.onnx'))
    (classes,) = session.run(None, {'image': np.load(written / 'image.npy')})
    assert np.bincount(classes.ravel()).max() < 0.5 * classes.size and len(np.unique(classes)) > 5


def test_weights_are_the_same_everywhere():
    """Numbers of a run elsewhere: another stream would be found by the SHA-256 only after the folder has travelled."""
    assert weights.drawn(0, 0, [4]).tolist() == DRAWN
    found = weights.drawn(7, 3, [100, 100])
    assert found.min() >= -1 and found.max() < 1 and abs(found.mean()) < 0.02 and abs(found.std() - 3**-0.5) < 0.01
    assert not np.array_equal(found, weights.drawn(7, 4, [100, 100]))


def test_fp16_weights_are_those_of_fp32(written):
    for form in ('plain', 'ours'):
        both = [onnx.load(str(written / f'{form}_{precision}_classes.onnx')).graph.initializer
                for precision in weights.DTYPES]
        arrays = [{array.name: onnx.numpy_helper.to_array(array) for array in graph} for graph in both]
        assert arrays[0].keys() == arrays[1].keys()
        for name, array in arrays[0].items():
            array = array.astype(np.float16) if array.dtype == np.float32 and arrays[1][name].dtype == np.float16 \
                else array
            np.testing.assert_array_equal(arrays[1][name], array)


def test_a_damaged_file_of_weights_is_drawn_again(copy):
    path = copy / weights.file_of('fp32')
    wanted = weights.sha256_of(path)
    path.write_bytes(path.read_bytes()[:-1])
    assert weights.ensure(copy, json.loads((copy / 'manifest.json').read_text())) == ''
    assert weights.sha256_of(path) == wanted


# ---------------------------------------------------------------- measuring

def test_a_cpu_measures_what_it_can(written, elsewhere, tmp_path):
    done = measure(elsewhere, '--measure', written, '--provider', 'cpu', '--json', tmp_path / 'found.json', '--only',
                   'ours fp32', 'ours tf32', 'plain fp16', 'ours fp16', 'ours fp16 nhwc', 'plain fp32 cuda graph')
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found == json.loads((tmp_path / 'found.json').read_text())
    table = found['rows']
    assert set(table) == {'plain fp32', 'ours fp32', 'plain fp16', 'ours fp16'}
    assert (table['plain fp32']['off'], table['plain fp32']['equal']) == (0, 1)
    assert 0 < table['ours fp32']['off'] < 1e-3 and table['ours fp32']['equal'] > 0.999
    for name in ('plain fp16', 'ours fp16'):  # random weights amplify rounding
        assert 1e-4 < table[name]['off'] < 0.02 and table[name]['equal'] > 0.97
    for row in table.values():
        assert row['seconds'] > 0 and len(row['rounds']) == 2 and 0.01 < row['peak_gb'] < 8
    ours, plain = table['ours fp16'], table['plain fp16']
    assert ours['faster_than_plain'] == plain['seconds'] / ours['seconds']
    assert ours['memory_of_plain'] == ours['peak_gb'] / plain['peak_gb'] and ours['faster_than_eager'] is None
    assert {name: reason.split(' (')[0] for name, reason in found['not_measured'].items()} == {
        'ours tf32': 'tf32 needs --provider cuda', 'ours fp16 nhwc': 'nhwc needs --provider cuda',
        'plain fp32 cuda graph': 'cuda graph needs --provider cuda'}
    assert found['network']['size'] == list(SIZE) and found['provider'] == 'cpu'
    lines = done.stdout.splitlines()
    assert [line for line in lines if line.startswith('ours tf32 ')][0].endswith(
        'not measured: tf32 needs --provider cuda (status 1)')
    assert any(line.startswith('reached      logits of ours fp32 within 0.001') for line in lines)
    assert any(line.startswith('not measured ours fp16 at least 2 times as fast as torch eager fp16') for line in lines)


def test_a_wrong_weight_is_a_difference(copy, elsewhere):
    """One weight in the place of another. And a row that crashes leaves the others alone."""
    for output in ('classes', 'logits'):
        path = copy / f'ours_fp32_{output}.onnx'
        graph = onnx.load(str(path), load_external_data=False)
        moved = [array for array in graph.graph.initializer if array.external_data]
        first, second = next(pair for pair in itertools.pairwise(moved) if pair[0].dims == pair[1].dims)
        first.external_data[1].value = second.external_data[1].value  # its offset
        path.write_bytes(graph.SerializeToString())
    (copy / 'plain_fp16_logits.onnx').unlink()
    done = measure(elsewhere, '--measure', copy, '--provider', 'cpu', '--only', 'plain fp16', 'ours fp32')
    found = json.loads(done.stdout.splitlines()[-1])
    assert found['rows']['ours fp32']['off'] > 0.01 and found['rows']['ours fp32']['equal'] < 0.99
    assert 'plain_fp16_logits.onnx' in found['not_measured']['plain fp16']
    assert [goal['result'] for goal in found['goals'] if goal['goal'].startswith('logits')] == ['missed']


def test_what_is_missing_is_one_line(written, copy, elsewhere, tmp_path):
    def line(*arguments):
        done = measure(elsewhere, *arguments)
        assert done.returncode == 1 and done.stdout == '' and done.stderr.count('\n') == 1, done
        return done.stderr

    assert 'expected a folder of --write with manifest.json, found FileNotFoundError' in line('--measure', tmp_path)
    if not memory.gpu():
        assert line('--measure', written).startswith('error: --provider cuda: expected ')
    factors = np.load(copy / weights.FACTORS)
    np.save(copy / weights.FACTORS, factors * np.float32(1.5))
    (copy / weights.file_of('fp16')).unlink()
    assert 'expected weights with SHA-256' in line('--measure', copy, '--provider', 'cpu')


def test_a_provider_without_a_driver(written, monkeypatch):
    monkeypatch.setattr(ort, 'get_available_providers', lambda: ['CUDAExecutionProvider'])
    monkeypatch.setattr(memory, 'missing_driver', lambda: 'no GPU')
    with pytest.raises(SystemExit, match='error: --provider cuda: expected a GPU and its driver, found no GPU; instal'):
        gpu_inference.checked(SimpleNamespace(measure=written, provider='cuda'))


def test_a_row_that_takes_too_long(written):
    args = SimpleNamespace(measure=written, provider='cpu', rounds=1, warm_up=0, threads=1, timeout=0.01)
    assert gpu_inference.run_row('plain fp32', written, args) == 'more than 0.01 seconds (--timeout)'


def test_a_folder_with_files_is_left_alone(tmp_path):
    (tmp_path / 'mine').touch()
    done = subprocess.run([sys.executable, '-m', 'benchmarks.gpu_inference', '--write', str(tmp_path)], cwd=ROOT,
                          capture_output=True, text=True)
    assert done.returncode == 1 and 'expected a new or an empty folder, found mine' in done.stderr.splitlines()[-1]


# ---------------------------------------------------------------- memory

class Nvml:
    """The functions of NVIDIA's library that memory.Gpu calls."""

    def __init__(self):
        self.index, self.used, self.looks = None, 1 << 30, 0

    def nvmlInit_v2(self):
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index, handle):
        self.index = index.value
        return 0

    def nvmlDeviceGetHandleByUUID(self, text, handle):
        return 6  # not found

    def nvmlDeviceGetName(self, handle, text, length):
        text.value = b'A card'
        return 0

    def nvmlDeviceGetMemoryInfo(self, handle, memory):
        memory._obj.used = self.used
        self.looks += 1
        return 0


def test_peak_of_a_gpu_is_what_is_beyond_the_first_look(monkeypatch):
    library = Nvml()
    monkeypatch.setattr(memory.ctypes, 'CDLL', lambda name: library)
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '3,1')
    assert memory.Gpu().name() == 'A card' and library.index == 3
    peak = memory.Peak(cuda=True)
    library.used, before, deadline = 3 << 30, library.looks, time.monotonic() + PATIENCE
    while library.looks < before + 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    library.used = 2 << 30
    assert peak.stop() == 2.0
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', 'GPU-none')
    assert memory.gpu() is None and memory.Peak(cuda=True).stop() is None


def test_peak_of_a_cpu():
    assert 0.05 < memory.Peak(cuda=False).stop() < 64


# ---------------------------------------------------------------- goals

def row(seconds, peak=1.0, off=0.0):
    return {'seconds': seconds, 'peak_gb': peak, 'off': off, 'equal': 1.0}


def results(found):
    return {goal['goal']: (goal['result'], goal['found']) for goal in rows.goals(found)}


def test_goals():
    found = results({'plain fp32': row(3.0, 4.0), 'ours fp32': row(2.0, 2.0, 9e-4), 'plain fp16': row(2.0),
                     'plain fp16 nhwc': row(1.2), 'ours fp16': row(1.0, None), 'torch eager fp16': row(2.0)})
    assert found == {
        'ours fp32 at least 1.5 times as fast as plain fp32': ('reached', 1.5),
        'ours fp32 with at most 0.5 of the memory of plain fp32': ('reached', 0.5),
        'ours tf32 at least 1.5 times as fast as plain tf32': ('not measured', None),
        'ours tf32 with at most 0.5 of the memory of plain tf32': ('not measured', None),
        'ours fp16 at least 1.5 times as fast as plain fp16 nhwc': ('missed', 1.2),
        'ours fp16 with at most 0.5 of the memory of plain fp16 nhwc': ('not measured', None),
        'ours fp16 at least 2 times as fast as torch eager fp16': ('reached', 2.0),
        'ours fp16 with at most 0.5 of the memory of torch eager fp16': ('not measured', None),
        'logits of ours fp32 within 0.001 of the range of plain fp32': ('reached', 9e-4)}


@pytest.mark.parametrize('off, base, result', [(2e-3, True, 'missed'), (None, True, 'missed'),
                                               (None, False, 'not measured')])
def test_goal_of_logits(off, base, result):
    """None beside the base: they are not finite."""
    found = {**({'plain fp32': row(1.0)} if base else {}), 'ours fp32': row(1.0), 'ours fp32 cuda graph': row(
        1.0, off=off)}
    assert list(results(found).values())[-1][0] == result


# ---------------------------------------------------------------- the plain graph as torch functions

class Tensor(np.ndarray):
    """The methods of torch.Tensor that the rows call."""

    def to(self, dtype):
        return self.astype(dtype)

    def contiguous(self, memory_format):
        assert memory_format == 'channels last'
        return self


def tensor(array):
    return np.asarray(array).view(Tensor)


def product(x, y):
    """float16 in float32, as a GPU sums."""
    return tensor(np.matmul(x.astype(np.float32), y.astype(np.float32)).astype(x.dtype))


def conv2d(x, weight, bias, stride, padding, groups):
    assert groups == 1
    out, _, *kernel = weight.shape
    padded = np.pad(np.asarray(x), [(0, 0), (0, 0), *((side, side) for side in padding)])
    windows = np.lib.stride_tricks.sliding_window_view(padded[0], kernel, (1, 2))[:, ::stride[0], ::stride[1]]
    size = windows.shape[1:3]
    columns = windows.transpose(0, 3, 4, 1, 2).reshape(-1, size[0] * size[1])
    y = product(weight.reshape(out, -1), tensor(columns)).reshape(1, out, *size)
    return y if bias is None else y + bias.reshape(1, out, 1, 1)


def interpolate(x, size, mode, align_corners):
    assert (mode, align_corners) == ('bilinear', False)
    rows_of, columns_of = (bilinear_rows(own, new) for own, new in zip(x.shape[2:], size))
    return tensor((rows_of @ x.astype(np.float32) @ columns_of.T).astype(x.dtype))


def softmax(x, axis):
    powers = np.exp(x - x.max(axis, keepdims=True))
    return powers / powers.sum(axis, keepdims=True)


TORCH = SimpleNamespace(
    nn=SimpleNamespace(functional=SimpleNamespace(conv2d=conv2d, interpolate=interpolate)),
    channels_last='channels last', float32=np.float32, float16=np.float16, uint8=np.uint8,
    relu=lambda x: np.maximum(x, 0), sigmoid=lambda x: 1 / (1 + np.exp(-x)), softmax=softmax, matmul=product,
    flip=np.flip, reshape=np.reshape, unsqueeze=np.expand_dims, squeeze=np.squeeze, permute=np.transpose,
    argmax=np.argmax, cat=lambda xs, axis: tensor(np.concatenate(xs, axis)))


@pytest.mark.parametrize('precision, limit', [('fp32', 1e-4), ('fp16', 0.05)])
def test_torch_rows_run_the_graph(written, precision, limit):
    """With NumPy in the place of PyTorch, which is not installed here: names, order and attributes, not PyTorch."""
    image, found = np.load(written / 'image.npy'), {}
    for output in ('logits', 'classes'):
        path = str(written / rows.ROWS[f'torch eager {precision}'].graph(output))
        program = torch_row.Program(onnx.load(path).graph, TORCH, tensor, channels_last=precision == 'fp16')
        found[output] = np.asarray(program(tensor(image)))
        wanted = ort.InferenceSession(path, providers=['CPUExecutionProvider']).run(None, {'image': image})[0]
        assert (found[output].shape, found[output].dtype) == (wanted.shape, wanted.dtype)
        if output == 'logits':
            assert np.abs(found[output] - wanted).max() < limit * np.ptp(wanted)
    np.testing.assert_array_equal(found['classes'], found['logits'].argmax(1)[0])


def test_torch_refuses_what_it_does_not_know():
    table = torch_row.operators(TORCH, False)
    with pytest.raises(ValueError, match='expected linear and half_pixel'):
        table['Resize']({'mode': 'cubic', 'coordinate_transformation_mode': 'half_pixel'}, 0, 0, 0, [1])
    with pytest.raises(ValueError, match='expected a whole axis backwards'):
        table['Slice']({}, 0, [0], [2], [1], [1])
    graph = onnx.helper.make_graph([onnx.helper.make_node('Cos', ['x'], ['y'])], 'g', [], [])
    with pytest.raises(ValueError, match='expected nodes of Add.*, found Cos'):
        torch_row.Program(graph, TORCH, tensor, False)
