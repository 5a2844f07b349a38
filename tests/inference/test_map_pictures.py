"""Maps as pictures: the values come back from the files, the colours are ordered, and predict.py writes them."""
import os

import cv2
import numpy as np
import pytest
from PIL import Image

import predict
from common.builder import Builder
from common.config import Config
from inference import backends, map_pictures
from inference.maps import Maps
from inference.predictor import Predictor
from tests.conftest import run_script as run

SIZE = (5, 8)


def made():
    ramp = np.linspace(0, 1, 40, dtype=np.float32).reshape(SIZE)
    low = np.zeros(SIZE, np.float32)
    low[:2], low[2] = 0.9, 0.2
    middle = np.where(low == 0.2, np.float32(0.5), (1 - low) / 2).astype(np.float32)
    return Maps(np.zeros(SIZE, np.uint8), ramp, 1 - ramp, {0.5: low, 1.0: middle, 1.5: 1 - low - middle})


def indices(png, tmp_path):
    (tmp_path / 'x.png').write_bytes(png)
    with Image.open(tmp_path / 'x.png') as picture:
        assert picture.mode == 'P'
        return np.asarray(picture), np.asarray(picture.convert('RGB'))


def test_values_come_back_and_brightness_rises_with_them(tmp_path):
    maps = made()
    found = map_pictures.pictures(maps, map_pictures.KINDS)
    assert sorted(found) == sorted(map_pictures.folders(map_pictures.KINDS, [0.5, 1.0, 1.5])) == sorted(
        ['confidence', 'entropy', 'attention_0.5', 'attention_1', 'attention_1.5', 'deciding_scale'])
    for folder, value in (('confidence', maps.confidence), ('entropy', maps.entropy),
                          ('attention_0.5', maps.attention[0.5]), ('attention_1', maps.attention[1.0])):
        ids, colors = indices(found[folder], tmp_path)
        np.testing.assert_array_equal(ids, np.rint(255 * value))
        brightness = cv2.cvtColor(colors, cv2.COLOR_RGB2LAB)[..., 0].astype(int)
        order = np.argsort(value.ravel())
        assert (np.diff(brightness.ravel()[order]) >= -1).all(), 'a larger value must not look darker'
    ids, colors = indices(found['deciding_scale'], tmp_path)
    assert ids[0].tolist() == [0] * 8 and ids[2].tolist() == [1] * 8 and ids[4].tolist() == [1] * 8
    assert len(np.unique(colors.reshape(-1, 3), axis=0)) == 2


def test_only_what_is_asked_for():
    assert list(map_pictures.pictures(made(), ['entropy'])) == ['entropy'] == map_pictures.folders(['entropy'], [1.0])


def test_rounding_beyond_the_range_does_not_wrap(tmp_path):
    maps = made()._replace(entropy=np.full(SIZE, 1.0000001, np.float32), confidence=np.full(SIZE, -1e-9, np.float32))
    found = map_pictures.pictures(maps, ('confidence', 'entropy'))
    assert indices(found['entropy'], tmp_path)[0].min() == 255 and indices(found['confidence'], tmp_path)[0].max() == 0


def test_predict_writes_the_maps_beside_the_predictions(tiny, toy, tmp_path):
    config, weights = tiny
    image = sorted((toy / 'leftImg8bit/val').rglob('*.png'))[0]
    arguments = ['--config', config, '--model_path', weights, '--image_path', image, '--save_dir', tmp_path / 'out']
    assert run(predict.main, *arguments, '--backend', 'paddle', '--save_attention', '--save_confidence',
               '--save_entropy', '--skip_existing') is None
    builder = Builder(Config(str(config), [], with_pretrained=False))
    maps = Predictor(backends.create(builder, weights, 'paddle')).maps(builder.val_dataset[0])
    files = {path.relative_to(tmp_path / 'out').parts[0]: path for path in (tmp_path / 'out').rglob('*.png')}
    assert len(files) == 8
    expected = {'pseudo_color_prediction': maps.classes, 'confidence': np.rint(255 * maps.confidence),
                'entropy': np.rint(255 * maps.entropy), 'deciding_scale': map_pictures.deciding_scale(maps),
                **{f'attention_{scale:g}': np.rint(255 * weight) for scale, weight in maps.attention.items()}}
    for folder, values in expected.items():
        with Image.open(files[folder]) as picture:
            np.testing.assert_array_equal(np.asarray(picture), values, err_msg=folder)

    before = {path: path.stat().st_mtime_ns for path in files.values()}
    assert run(predict.main, *arguments, '--save_entropy', '--skip_existing') is None
    assert before == {path: path.stat().st_mtime_ns for path in files.values()}
    files['deciding_scale'].unlink()
    assert run(predict.main, *arguments, '--save_attention', '--skip_existing') is None
    assert files['deciding_scale'].is_file(), 'a missing map must be made again'


def test_a_network_without_scales_has_no_attention(tiny, toy, tmp_path, monkeypatch, capsys):
    class Plain:
        def __call__(self, x):
            raise AssertionError('must not run')

    monkeypatch.setattr(backends, 'create', lambda *_: Plain())
    config, weights = tiny
    assert run(predict.main, '--config', config, '--model_path', weights, '--image_path', toy / 'leftImg8bit/val',
               '--save_dir', tmp_path / 'out', '--save_attention') == 1
    assert '--save_attention: expected a network that fuses scales' in capsys.readouterr().err


@pytest.mark.parametrize('flags,text', [
    (['--submission', '{out}.zip', '--save_entropy'], '--save_entropy: expected images in --image_path'),
    (['--image_path', '{out}', '--every', '2'], '--every, --temporal_smoothing: expected a video'),
    (['--submission', '{out}.zip', '--temporal_smoothing', '0.5'], '--every, --temporal_smoothing: expected a video')])
def test_flags_that_do_not_fit_together(tiny, tmp_path, capsys, flags, text):
    config, weights = tiny
    flags = [flag.format(out=tmp_path / 'x') for flag in flags]
    assert run(predict.main, '--config', config, '--model_path', weights, *flags) == 1
    assert text in capsys.readouterr().err


@pytest.mark.parametrize('flags', [['--image_path', '{toy}/leftImg8bit/val', '--save_dir', '{out}/new'],
                                   ['--image_path', '{out}/drive.mp4', '--save_dir', '{out}'],
                                   ['--submission', '{out}/x.zip']], ids=['images', 'video', 'submission'])
def test_a_read_only_folder_is_told_before_the_work(tiny, toy, tmp_path, monkeypatch, capsys, flags):
    config, weights = tiny
    (tmp_path / 'drive.mp4').write_bytes(b'')
    allowed = os.access  # the tests may run as root, who may write everywhere
    monkeypatch.setattr(os, 'access', lambda path, mode: os.fspath(path) != str(tmp_path) and allowed(path, mode))
    monkeypatch.setattr(backends, 'create', None)
    flags = [flag.format(toy=toy, out=tmp_path) for flag in flags]
    assert run(predict.main, '--config', config, '--model_path', weights, *flags) == 1
    line, = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(f'error: {tmp_path}') and 'expected a folder to write results into, found one with' in line
    assert [path.name for path in tmp_path.iterdir()] == ['drive.mp4']
