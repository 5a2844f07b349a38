"""train.py, val.py and predict.py as a user runs them: a tiny network on tiny toy data, and what can go wrong."""
import json
import os
import subprocess
import sys

import cv2
import numpy as np
import paddle
import pytest
from PIL import Image

import predict
import train
import val
from datasets.labels import CITYSCAPES
from tests.conftest import ROOT, write_tiny_config
from tests.conftest import run_script as run


@pytest.fixture(scope='module')
def trained(toy, tmp_path_factory):
    """(config, run folder) of three iterations through the real command line, curves included."""
    folder = tmp_path_factory.mktemp('trained')
    config = write_tiny_config(folder / 'tiny.yml', toy, optimizer=None)
    command = [sys.executable, 'train.py', '--config', str(config), '--save_dir', str(folder / 'run'), '--do_eval',
               '--use_vdl', '--log_iters', '1', '--save_interval', '2', '--num_workers', '2']
    environment = {key: value for key, value in os.environ.items() if key != 'OMP_NUM_THREADS'}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    (folder / 'log.txt').write_text(done.stdout)
    return config, folder / 'run'


def test_train_leaves_what_paddleseg_leaves(trained):
    _, folder = trained
    for name in ('iter_2/model.pdparams', 'iter_2/model.pdopt', 'iter_3/model.pdparams', 'best_model/model.pdparams',
                 'config.yml'):
        assert (folder / name).stat().st_size > 100
    assert list(folder.glob('vdlrecords*'))
    assert [p.name for p in folder.glob('.*')] == ['.lock']


def test_train_logs_as_paddleseg_does_and_uses_all_cores(trained):
    log = (trained[1].parent / 'log.txt').read_text()
    assert '[TRAIN] epoch: 1, iter: 1/3, loss: ' in log and 'reader_cost: ' in log and '| ETA ' in log
    assert '[EVAL] The model with the best validation mIoU (' in log
    assert f'{len(os.sched_getaffinity(0))} thread(s)' in log


def test_val_prints_the_table_and_writes_json(trained, capsys):
    config, folder = trained
    weights = folder / 'iter_3' / 'model.pdparams'
    assert run(val.main, '--config', config, '--model_path', weights, '--aug_eval', '--flip_horizontal') is None
    printed = capsys.readouterr().out
    assert all(name in printed for name in CITYSCAPES.names)
    data = json.loads((folder / 'iter_3' / 'evaluation_tiny_flip.json').read_text())
    assert f'mIoU: {100 * data["miou"]:.2f}%' in printed and len(data['images']) == 3
    assert set(data['classes']) == set(CITYSCAPES.names)
    occurring = [c['iou'] for c in data['classes'].values() if c['iou'] is not None]
    assert data['miou'] == pytest.approx(np.mean(occurring)) and len(occurring) < 19


def test_evaluation_in_training_and_val_agree(trained, capsys):
    config, folder = trained
    state = json.loads((folder / 'iter_3' / 'state.json').read_text())
    assert run(val.main, '--config', config, '--model_path', folder / 'best_model' / 'model.pdparams',
               '--backend', 'paddle') is None
    data = json.loads((folder / 'best_model' / 'evaluation_tiny.json').read_text())
    # The same engine in both: not one of the 24576 pixels may differ, which would move the mean by at least 2e-6.
    assert data['miou'] == pytest.approx(state['best_miou'], abs=1e-6)


def test_predict_keeps_folders_and_reports_what_is_no_image(trained, toy, tmp_path, capsys):
    config, folder = trained
    images = tmp_path / 'images'
    (images / 'a b' / 'città').mkdir(parents=True)
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, [37, 51, 3], np.uint8)
    cv2.imwrite(str(images / 'one.png'), picture)
    cv2.imwrite(str(images / 'a b' / 'città' / 'one.jpg'), picture)
    cv2.imwrite(str(images / 'a b' / 'one.bmp'), picture)
    cv2.imwrite(str(images / 'a b' / 'one.png'), picture)
    (images / 'broken.png').write_bytes(b'no image')
    out = images / 'out'  # inside the folder that is searched: a second run must not find it
    for _ in range(2):
        status = run(predict.main, '--config', config, '--model_path', folder / 'iter_3' / 'model.pdparams',
                     '--image_path', images, '--save_dir', out)
        assert status == 1
        error = capsys.readouterr().err
        assert f'error: {images / "broken.png"}: expected an image; found 8 bytes' in error
    names = {'one.png', 'a b/città/one.png', 'a b/one.bmp.png', 'a b/one.png.png'}
    for kind in ('pseudo_color_prediction', 'added_prediction'):
        assert {p.relative_to(out / kind).as_posix() for p in (out / kind).rglob('*.png')} == names
    with Image.open(out / 'pseudo_color_prediction' / 'one.png') as predicted:
        assert predicted.mode == 'P' and predicted.size == (51, 37)
        assert predicted.getpalette()[:6] == [128, 64, 128, 244, 35, 232]
        ids, colors = np.asarray(predicted), np.asarray(predicted.convert('RGB'))
    expected = np.round(0.6 * picture[..., ::-1] + 0.4 * np.array(CITYSCAPES.palette)[ids])
    added = cv2.imread(str(out / 'added_prediction' / 'one.png'))[..., ::-1]
    assert np.abs(added - expected).max() <= 1
    np.testing.assert_array_equal(colors, np.array(CITYSCAPES.palette)[ids])


def test_predict_equals_the_model_run_by_hand(trained, toy, tmp_path):
    from common.builder import Builder
    from common.config import Config

    config, folder = trained
    weights = folder / 'iter_3' / 'model.pdparams'
    source = sorted((toy / 'leftImg8bit' / 'val').rglob('*.png'))[0]
    (tmp_path / 'list.txt').write_text(f'{source}\n')
    colors = [str(i) for i in range(57)]
    assert run(predict.main, '--config', config, '--model_path', weights, '--image_path', tmp_path / 'list.txt',
               '--save_dir', tmp_path / 'out', '--custom_color', *colors) is None
    model = Builder(Config(config)).model
    model.set_state_dict(paddle.load(str(weights)))
    model.eval()
    rgb = cv2.imread(str(source))[..., ::-1] / 255
    normal = ((rgb - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]).transpose(2, 0, 1)[None].astype('float32')
    with paddle.no_grad():
        expected = model(paddle.to_tensor(normal))[0].numpy()[0].argmax(0)
    with Image.open(tmp_path / 'out' / 'pseudo_color_prediction' / f'{source.stem}.png') as predicted:
        assert (np.asarray(predicted) == expected).mean() > 0.999  # another engine may decide a tie otherwise
        assert predicted.getpalette()[:57] == list(range(57))


def test_predict_continues_an_interrupted_folder(trained, tmp_path, capsys):
    config, folder = trained
    (tmp_path / 'images').mkdir()
    for name in 'abc':
        cv2.imwrite(str(tmp_path / 'images' / f'{name}.png'), np.full([40, 60, 3], ord(name), np.uint8))
    arguments = ('--config', config, '--model_path', folder / 'iter_3' / 'model.pdparams', '--image_path',
                 tmp_path / 'images', '--save_dir', tmp_path / 'out', '--skip_existing')
    assert run(predict.main, *arguments) is None
    files = sorted((tmp_path / 'out').rglob('*.png'))
    assert len(files) == 6
    first = {path: path.read_bytes() for path in files}
    (tmp_path / 'out' / 'added_prediction' / 'b.png').unlink()
    kept = [path for path in files if path.stem != 'b']
    for path in kept:
        path.write_bytes(b'not to be touched')
    capsys.readouterr()
    assert run(predict.main, *arguments) is None
    assert '2 of 3 images have their predictions already' in capsys.readouterr().out
    assert all(path.read_bytes() == b'not to be touched' for path in kept)
    assert all(path.read_bytes() == first[path] for path in files if path.stem == 'b')


def test_resume_continues_as_if_nothing_had_happened(trained, tmp_path, capsys):
    """Stopped after iteration 2 of 3; data order, augmentation, dropout, momentum go on: the same weights."""
    config, _ = trained
    common = '--config', config, '--log_iters', 1
    assert run(train.main, *common, '--save_dir', tmp_path / 'straight', '--save_interval', 2) is None
    assert run(train.main, *common, '--save_dir', tmp_path / 'resumed', '--num_workers', 1, '--resume_model',
               tmp_path / 'straight' / 'iter_2') is None
    straight, resumed = (paddle.load(str(tmp_path / name / 'iter_3' / 'model.pdparams'))
                         for name in ('straight', 'resumed'))
    assert straight.keys() == resumed.keys()
    different = [name for name in straight if not np.array_equal(straight[name].numpy(), resumed[name].numpy())]
    assert not different
    starts = [json.loads((tmp_path / name / 'run.json').read_text())['starts'] for name in ('straight', 'resumed')]
    assert starts[1][0] == starts[0][0] and [len(s) for s in starts] == [1, 2]
    assert [(s['iteration'], s['arguments']['seed'], s['config']) for s in starts[1]] == [(0, 0, 'config.yml'),
                                                                                        (2, 0, 'config.yml')]
    assert 'continued on another machine' not in capsys.readouterr().out


def test_a_resume_with_other_threads_is_told_in_one_line(trained, tmp_path):
    config, _ = trained
    command = [sys.executable, 'train.py', '--config', str(config), '--save_dir', str(tmp_path), '--save_interval', '1',
               '--resume', 'auto', '--iters']
    for threads, iters in ((1, 1), (2, 2)):
        done = subprocess.run([*command, str(iters)], cwd=ROOT, capture_output=True, text=True,
                              env={**os.environ, 'OMP_NUM_THREADS': str(threads)})
        assert done.returncode == 0, done.stderr
        lines = [line for line in done.stdout.splitlines() if 'continued on another machine' in line]
        assert len(lines) == threads - 1
    assert '(threads 1 -> 2)' in lines[0]
    assert sorted(path.name for path in tmp_path.glob('config*')) == ['config.yml', 'config_from_1.yml']


def test_help_explains_an_empty_list_of_gpus_to_the_launcher(capsys):
    with pytest.raises(SystemExit):
        train.main(['--help'])
    text = ' '.join(capsys.readouterr().out.split())
    assert 'env -u CUDA_VISIBLE_DEVICES' in text and 'IndexError: list index out of range' in text


def messages(capsys, main, *argv):
    status = run(main, *argv)
    error = capsys.readouterr().err.strip()
    assert status == 1 and 'Traceback' not in error
    return error.splitlines()


def test_a_run_does_not_overwrite_checkpoints(trained, capsys):
    config, folder = trained
    before = {p: p.stat().st_mtime_ns for p in folder.rglob('*') if p.name != '.lock'}
    (line,) = messages(capsys, train.main, '--config', config, '--save_dir', folder)
    assert f'error: --save_dir {folder}: expected a folder without checkpoints, found 2 up to iter_3' in line
    assert before == {p: p.stat().st_mtime_ns for p in folder.rglob('*') if p.name != '.lock'}


@pytest.mark.parametrize('main, argv, expected', [
    (train.main, ['--config', 'nothing.yml'], 'nothing.yml: expected a config file (.yml), found nothing'),
    (train.main, ['--config', '{config}', '--resume_model', '/none'], 'expected a checkpoint with model.pdparams'),
    (train.main, ['--config', '{config}', '--resume_model', '{run}/iter_3', '--iters', '2'], 'raise --iters'),
    (train.main, ['--config', '{config}', '--resume_model', '{run}/iter_2', '--save_dir', '{run}'],
     'found iter_3; continue from it with --resume auto'),
    (train.main, ['--config', '{config}', '--opts', 'model.pretrained=/none.pdparams'], '/none.pdparams: expected'),
    (train.main, ['--config', '{config}', '--opts', 'train_dataset.dataset_root=/none'], '/none'),
    (val.main, ['--config', '{config}', '--model_path', '/none.pdparams'], '/none.pdparams: expected a weights file'),
    (val.main, ['--config', '{config}', '--model_path', '{run}/iter_3/model.pdopt'], 'is it an optimizer state'),
    (val.main, ['--config', '{config}', '--model_path', '{run}/iter_3/model.pdparams', '--opts',
                'model.ocr_mid_channels=32'], 'use the config that these weights were trained with'),
    (predict.main, ['--config', '{config}', '--model_path', '{run}/iter_3/model.pdparams', '--image_path', '/none'],
     '--image_path /none: expected an image, a folder or a list file'),
    (predict.main, ['--config', '{config}', '--model_path', '{run}/iter_3/model.pdparams', '--image_path', '{run}'],
     'expected at least one image'),
    (predict.main, ['--config', '{config}', '--model_path', '{run}/iter_3/model.pdparams', '--image_path', '{toy}',
                    '--custom_color', '1', '2', '3'], '--custom_color: expected 57 values'),
])
def test_bad_input_is_one_line(trained, toy, tmp_path, capsys, monkeypatch, main, argv, expected):
    config, folder = trained
    monkeypatch.chdir(tmp_path)
    argv = [a.format(config=config, run=folder, toy=toy) for a in argv]
    lines = messages(capsys, main, *argv)
    assert lines[0].startswith('error: ') and expected in lines[0]
    assert not list(tmp_path.rglob('*.pdparams')) and not list(tmp_path.rglob('*.png'))


def test_val_never_scores_random_weights(trained, capsys):
    with pytest.raises(SystemExit) as stop:
        val.main(['--config', str(trained[0])])
    assert stop.value.code == 2 and '--model_path' in capsys.readouterr().err


def test_an_error_in_a_data_worker_names_the_file(trained, toy, tmp_path, capfd):
    import shutil
    config, _ = trained
    shutil.copytree(toy, tmp_path / 'data')
    label = sorted((tmp_path / 'data' / 'gtFine' / 'train').rglob('*_labelTrainIds.png'))[0]
    values = np.array(Image.open(label))
    values[0, 0] = 26
    Image.fromarray(values).save(label)
    done = subprocess.run([sys.executable, 'train.py', '--config', str(config), '--num_workers', '2', '--iters', '12',
                           '--save_dir', str(tmp_path / 'run'), '--opts', 'train_dataset.coarse_multiple=0',
                           f'train_dataset.dataset_root={tmp_path / "data"}'], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    last = [line for line in done.stderr.splitlines() if line.startswith('error: ')]
    assert len(last) == 1 and str(label) in last[0] and '26' in last[0]


def test_debug_shows_the_traceback(tmp_path, capsys):
    assert run(train.main, '--config', tmp_path / 'no.yml', '--debug') == 1
    error = capsys.readouterr().err
    assert 'Traceback' in error and error.strip().splitlines()[-1].startswith('error: ')
