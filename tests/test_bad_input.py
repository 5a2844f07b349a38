"""Whatever is wrong with a config, an option, weights, data or flags: one line that names it, nothing written."""
import shutil
import signal

import numpy as np
import paddle
import pytest
from PIL import Image

import predict
import train
import val
from common import cli
from tests.bad_configs import FILES, OPTIONS, VALUES

SECONDS = 20  # a hang is a failure, too


@pytest.fixture(autouse=True)
def alarm():
    def late(*_):
        pytest.fail(f'still running after {SECONDS} s')

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def refusal(capfd, tmp_path, main, *argv):
    """The one line of a command that is refused; tmp_path/out must not appear."""
    capfd.readouterr()
    with pytest.raises(SystemExit) as stop:
        cli.run(main, [str(word) for word in argv])
    captured = capfd.readouterr()
    lines = captured.err.strip().splitlines()
    assert stop.value.code in (1, 2), captured.err
    assert len(lines) == 1 and lines[0].startswith('error: '), captured.err
    assert not [path for path in (tmp_path / 'out').rglob('*') if path.name != '.lock']
    return lines[0]


@pytest.mark.parametrize('name', FILES)
def test_files(name, tiny_config, tmp_path, capfd):
    text, words = FILES[name]
    config = tmp_path / 'bad.yml'
    config.write_text(text.replace('{base}', f'_base_: {tiny_config}\n').replace('{{', '{').replace('}}', '}')
                      if '{base}' in text else text)
    line = refusal(capfd, tmp_path, train.main, '--config', config, '--save_dir', tmp_path / 'out')
    assert words in line and str(config) in line and len(line) < 500


def test_bases_in_a_circle(tiny_config, tmp_path, capfd):
    for name, other in (('bad', 'b'), ('b', 'c'), ('c', 'bad')):
        (tmp_path / f'{name}.yml').write_text(f'_base_: {other}.yml\n')
    line = refusal(capfd, tmp_path, train.main, '--config', tmp_path / 'bad.yml', '--save_dir', tmp_path / 'out')
    assert '_base_' in line and 'bad.yml' in line


@pytest.mark.parametrize('name', VALUES)
def test_values(name, tiny_config, tmp_path, capfd):
    text, words = VALUES[name]
    config = tmp_path / 'bad.yml'
    config.write_text(f'_base_: {tiny_config}\n{text}\n')
    flags = ['--do_eval'] if text.startswith(('val_dataset', 'test_config')) else []
    line = refusal(capfd, tmp_path, train.main, '--config', config, '--save_dir', tmp_path / 'out', *flags)
    assert words in line and len(line) < 700
    if 'root missing' not in name:
        assert str(config) in line or str(tiny_config) in line


@pytest.mark.parametrize('name', OPTIONS)
def test_options(name, tiny_config, tmp_path, capfd):
    option, words = OPTIONS[name]
    line = refusal(capfd, tmp_path, train.main, '--config', tiny_config, '--save_dir', tmp_path / 'out', '--opts',
                   option)
    assert words in line and '--opts' in line and len(line) < 700


def test_evaluation_without_validation_data(tiny_config, tmp_path, capfd):
    import yaml

    from common.config import Config
    dic = {**Config(tiny_config).dic}
    del dic['val_dataset']
    (tmp_path / 'bad.yml').write_text(yaml.safe_dump(dic))
    for main, flags in ((train.main, ['--do_eval', '--save_dir', tmp_path / 'out']),
                        (val.main, ['--model_path', tmp_path / 'x.pdparams'])):
        line = refusal(capfd, tmp_path, main, '--config', tmp_path / 'bad.yml', *flags)
        assert 'val_dataset' in line


# ---------------------------------------------------------------- weights

@pytest.fixture(scope='module')
def state(toy, tmp_path_factory):
    """State dict of the tiny network."""
    from common.builder import Builder
    from common.config import Config
    from tests.conftest import write_tiny_config
    path = tmp_path_factory.mktemp('config') / 'tiny.yml'
    write_tiny_config(path, toy)
    return {name: value.numpy() for name, value in Builder(Config(path)).model.state_dict().items()}


def spoiled(state, kind):
    """(bytes or state, words of the error; None where it is to be accepted)."""
    name = next(iter(state))
    if kind == 'NaN':
        return {**state, name: np.full_like(state[name], np.nan)}, 'found NaN or infinity in'
    if kind == 'infinity':
        return {**state, name: np.full_like(state[name], np.inf)}, 'found NaN or infinity in'
    if kind == 'missing':
        return {key: value for key, value in state.items() if key != name}, 'do not fit'
    if kind == 'shape':
        return {**state, name: np.zeros([1], 'float32')}, 'do not fit'
    if kind == 'text':
        return {**state, name: 'x'}, 'do not fit'
    return {'PNG': b'\x89PNG\r\n\x1a\n' + bytes(99), 'empty': b'', 'truncated': None, 'page': b'<!DOCTYPE html><html>',
            'zip': b'PK\x03\x04' + bytes(50)}[kind], 'does not load'


@pytest.mark.parametrize('kind', ['NaN', 'infinity', 'missing', 'shape', 'text', 'PNG', 'empty', 'truncated', 'page',
                                  'zip'])
@pytest.mark.parametrize('entry', ['pretrained', 'val', 'predict'])
def test_weights(kind, entry, state, tiny_config, toy, tmp_path, capfd):
    content, words = spoiled(state, kind)
    path = tmp_path / 'w.pdparams'
    if isinstance(content, dict):
        paddle.save({key: paddle.to_tensor(value) if isinstance(value, np.ndarray) else value
                     for key, value in content.items()}, str(path))
    elif content is None:
        paddle.save({key: paddle.to_tensor(value) for key, value in state.items()}, str(path))
        path.write_bytes(path.read_bytes()[:-100])
    else:
        path.write_bytes(content)
    out = tmp_path / 'out'
    main, argv = {'pretrained': (train.main, ['--save_dir', out, '--opts', f'model.pretrained={path}']),
                  'val': (val.main, ['--model_path', path]),
                  'predict': (predict.main, ['--model_path', path, '--save_dir', out,
                                             '--image_path', toy / 'leftImg8bit/val'])}[entry]
    capfd.readouterr()
    with pytest.raises(SystemExit) as stop:
        cli.run(main, [str(word) for word in ('--config', tiny_config, *argv)])
    captured = capfd.readouterr()
    assert stop.value.code == 1 and captured.err.startswith(f'error: {path}: ') and words in captured.err
    assert kind in ('missing', 'shape', 'text') or len(captured.err.strip().splitlines()) == 1  # these list names
    assert not [file for file in out.rglob('*') if file.name != '.lock']


@pytest.mark.parametrize('dtype', ['float16', 'float64'])
def test_weights_of_another_type_are_converted_with_a_line(dtype, state, tiny_config, tmp_path, capfd):
    path = tmp_path / 'w.pdparams'
    paddle.save({key: paddle.to_tensor(value.astype(dtype)) for key, value in state.items()}, str(path))
    with pytest.raises(SystemExit) as stop:
        cli.run(val.main, ['--config', str(tiny_config), '--model_path', str(path)])
    assert stop.value.code is None
    assert f'{len(state)} entries are {dtype} instead of float32; converted' in capfd.readouterr().out


# ---------------------------------------------------------------- data

def _label(root):
    return sorted((root / 'gtFine/val').rglob('*_labelTrainIds.png'))[0]


def _spoil_data(root, kind):
    label = _label(root)
    image = sorted((root / 'leftImg8bit/val').rglob('*.png'))[0]
    if kind == 'label missing':
        label.unlink()
        return 'gtFine/val: expected one label'
    if kind == 'label ids':
        Image.fromarray(np.full([64, 128], 33, np.uint8)).save(label)
    elif kind == 'label size':
        Image.fromarray(np.zeros([32, 32], np.uint8)).save(label)
    elif kind == 'label colours':
        Image.fromarray(np.zeros([64, 128, 3], np.uint8)).save(label)
    elif kind == 'label broken':
        label.write_bytes(label.read_bytes()[:60])
    elif kind == 'image broken':
        image.write_bytes(b'no image')
        return image.name
    elif kind == 'no images':
        shutil.rmtree(root / 'leftImg8bit/val')
        return 'val'
    elif kind == 'dataset.yml':
        (root / 'dataset.yml').write_text('classes: 3\n')
        return 'dataset.yml'
    return label.name


@pytest.mark.parametrize('kind', ['label missing', 'label ids', 'label size', 'label colours', 'label broken',
                                  'image broken', 'no images', 'dataset.yml'])
def test_data(kind, state, toy, tiny_config, tmp_path, capfd):
    root = tmp_path / 'data'
    shutil.copytree(toy, root)
    name = _spoil_data(root, kind)
    weights = tmp_path / 'w.pdparams'
    paddle.save({key: paddle.to_tensor(value) for key, value in state.items()}, str(weights))
    capfd.readouterr()
    with pytest.raises(SystemExit) as stop:
        cli.run(val.main, ['--config', str(tiny_config), '--model_path', str(weights), '--opts',
                           f'val_dataset.dataset_root={root}'])
    error = capfd.readouterr().err
    lines = [line for line in error.splitlines() if line.startswith(('error', 'internal'))]
    assert stop.value.code == 1 and len(lines) == 1 and name in lines[0] and 'Traceback' not in error
    assert not list(tmp_path.glob('evaluation*'))


# ---------------------------------------------------------------- flags

TRAIN = {'--iters': ['x', '0', '-1'], '--batch_size': ['0', 'two'], '--learning_rate': ['nan', '-1', 'fast'],
         '--save_interval': ['0', '-5'], '--log_iters': ['0'], '--num_workers': ['-1', 'x'],
         '--accum_steps': ['0', '1.5'],
         '--keep_checkpoint_max': ['-1'], '--precision': ['fp8'], '--on_nan': ['ignore'], '--seed': ['-1', 'x'],
         '--resume': ['yes'], '--resume_model': ['/none'], '--no_such_flag': ['1']}
VAL = {'--scales': ['0', 'nan', 'x'], '--memory_limit': ['0', '-1', 'nan', 'x'], '--num_workers': ['-1'],
       '--backend': ['tensorrt'], '--precision': ['fp8'], '--crop_size': ['64']}


@pytest.mark.parametrize('main, flag, value', [
    (main, flag, value) for main, table in ((train.main, TRAIN), (val.main, VAL))
    for flag, values in table.items() for value in values],
    ids=lambda value: value.__module__ if callable(value) else value)  # not an address: other processes have others
def test_flags(main, flag, value, tiny_config, tmp_path, capfd):
    argv = ['--save_dir', tmp_path / 'out'] if main is train.main else ['--aug_eval', '--model_path', tmp_path / 'none']
    line = refusal(capfd, tmp_path, main, '--config', tiny_config, *argv, flag, value)
    assert flag.lstrip('-') in line.replace("'", '')


def test_there_are_enough_cases():
    flags = sum(len(values) for table in (TRAIN, VAL) for values in table.values())
    assert len(FILES) + len(VALUES) + len(OPTIONS) + 30 + 8 + flags >= 150
