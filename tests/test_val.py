"""val.py's scores, files, errors and interruptions, as a user meets them."""
import csv
import json
import logging
import re
import shutil

import paddle
import pytest

import val
from inference.predictor import Predictor
from tests.conftest import run_script


@pytest.fixture(scope='module')
def weights(toy, tmp_path_factory):
    """A folder with tiny.yml and model.pdparams."""
    from common.builder import Builder
    from common.config import Config
    from tests.conftest import write_tiny_config

    folder = tmp_path_factory.mktemp('weights')
    config = write_tiny_config(folder / 'tiny.yml', toy)
    paddle.seed(1)
    paddle.save(Builder(Config(config)).model.state_dict(), str(folder / 'model.pdparams'))
    return folder


@pytest.fixture
def argv(weights, tmp_path):
    """Arguments for weights in tmp_path."""
    for name in ('tiny.yml', 'model.pdparams'):
        shutil.copy(weights / name, tmp_path)
    return ['--config', tmp_path / 'tiny.yml', '--model_path', tmp_path / 'model.pdparams', '--backend', 'paddle']


ALL = ['--official', '--boundary', 2, 4, '--calibration']


def test_every_score_is_printed_and_written(argv, tmp_path, capsys):
    assert run_script(val.main, *argv, *ALL, '--per_image', tmp_path / 'images.csv') is None
    printed = capsys.readouterr().out
    data = json.loads((tmp_path / 'evaluation_tiny.json').read_text())
    assert data['official']['mean']['iou'] == data['miou']
    assert f'images: 3  mIoU: {100 * data["miou"]:.2f}%  accuracy: {100 * data["accuracy"]:.2f}%' in printed
    assert f'calibration error (ECE, 15 bins): {100 * data["calibration"]["ece"]:.2f}%' in printed
    tables = [line for line in printed.splitlines() if line.startswith(('class', 'official', 'boundary'))]
    assert [line.split()[0] for line in tables] == ['class', 'official', 'official', 'boundary']
    assert tables[-1].split() == ['boundary', *['F', '2px', 'F', '4px', 'trimap', '2px', 'trimap', '4px']]
    assert data['boundary']['pixels'] == [2, 4] and len(data['boundary']['mean']['f']) == 2
    with open(tmp_path / 'evaluation_tiny.csv', newline='') as file:
        rows = list(csv.DictReader(file))
    assert rows[0]['kind'] == 'class' and rows[0]['name'] == 'road'
    for key, value in (('iou', data['classes']['road']['iou']), ('official iiou', None),
                       ('boundary f 2', data['boundary']['classes']['road']['f'][0]),
                       ('boundary trimap_iou 4', data['boundary']['classes']['road']['trimap_iou'][1]),
                       ('calibration ece', data['calibration']['classes']['road']['ece'])):
        assert rows[0][key] == ('' if value is None else str(value))
    assert [row['name'] for row in rows if row['kind'] == 'category'] == list(data['categories']['iou'])
    assert len((tmp_path / 'images.csv').read_text().splitlines()) == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        'evaluation_tiny.csv', 'evaluation_tiny.json', 'images.csv', 'model.pdparams', 'tiny.yml']


def interrupt_after(monkeypatch, images):
    """Ctrl-C during the prediction of an image."""
    whole, done = Predictor.original_logits, []

    def predict(self, sample):
        if len(done) == images:
            raise KeyboardInterrupt
        done.append(1)
        return whole(self, sample)

    monkeypatch.setattr(Predictor, 'original_logits', predict)


@pytest.mark.parametrize('flags', [(), ('--report',)])
def test_an_interrupted_evaluation_is_continued(flags, argv, tmp_path, monkeypatch, caplog, capsys):
    flags = [*ALL, *flags, *([tmp_path / 'page'] if flags else ())]
    report = tmp_path / 'evaluation_tiny.json'
    with monkeypatch.context() as patched:
        interrupt_after(patched, 2)
        assert run_script(val.main, *argv, *flags) == 130
    assert not report.exists() and len((tmp_path / 'evaluation_tiny.0.jsonl').read_text().splitlines()) == 3
    assert run_script(val.main, *argv, *flags[1:], '--resume') == 1  # without --official
    assert re.search(r'found scores\.0: .*; use those, or leave --resume out to begin anew', capsys.readouterr().err)
    assert not report.exists()
    with monkeypatch.context() as patched, caplog.at_level(logging.INFO):
        interrupt_after(patched, 1)  # one image is enough now
        assert run_script(val.main, *argv, *flags, '--resume') is None
    assert '2 of 3 images are there from an interrupted evaluation' in capsys.readouterr().out + caplog.text
    continued = report.read_bytes()
    assert not (tmp_path / 'evaluation_tiny.0.jsonl').exists()
    if '--report' in flags:
        assert len(list(tmp_path.glob('page/pictures/*/record.json'))) == 3
        shutil.rmtree(tmp_path / 'page')
    assert run_script(val.main, *argv, *flags) is None
    assert report.read_bytes() == continued


def test_a_picture_that_is_missing_is_made_although_the_image_was_counted(argv, tmp_path, monkeypatch):
    flags = ['--report', tmp_path / 'page']
    with monkeypatch.context() as patched:
        interrupt_after(patched, 2)
        assert run_script(val.main, *argv, *flags) == 130
    (first, *_) = sorted(tmp_path.glob('page/pictures/*/record.json'))
    first.unlink()
    assert run_script(val.main, *argv, *flags, '--resume') is None
    assert len(list(tmp_path.glob('page/pictures/*/record.json'))) == 3
    assert len(json.loads((tmp_path / 'evaluation_tiny.json').read_text())['images']) == 3


def refused(capsys, words, *argv):
    capsys.readouterr()
    assert run_script(val.main, *argv) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith('error: ') and words in line


def test_without_instance_ids(argv, toy, tmp_path, capsys):
    root = shutil.copytree(toy, tmp_path / 'data')
    (path,) = root.glob('gtFine/val/*/*000001*_instanceIds.png')
    path.unlink()
    refused(capsys, f'{path}: expected the instance ids of --official, found none for 1 of 3 images; unpack', *argv,
            '--official', '--opts', f'val_dataset.dataset_root={root}')
    assert not list(tmp_path.glob('evaluation*'))


def test_flags_out_of_range(argv, tmp_path, capsys):
    refused(capsys, '--boundary: expected rising distances of 1 to 50 pixels, found 5 3', *argv, '--boundary', 5, 3)
    refused(capsys, 'ends in .json or .csv', *argv, '--per_image', tmp_path / 'x.txt')
    assert not list(tmp_path.glob('evaluation*'))


def test_weights_whose_logits_overflow_name_the_image(argv, tmp_path, capsys):
    state = paddle.load(str(tmp_path / 'model.pdparams'))
    paddle.save({name: value * 1e38 if name == 'ocrnet.head.cls_head.weight' else value
                 for name, value in state.items()}, str(tmp_path / 'model.pdparams'))
    refused(capsys, '_leftImg8bit.png: expected finite logits, found NaN or infinity; check --model_path', *argv)
    refused(capsys, '_leftImg8bit.png: expected finite logits, found NaN or infinity; check --model_path', *argv,
            '--calibration')


def test_the_test_config_counts_as_its_flags(argv, tmp_path):
    """PaddleSeg's val.py takes from test_config what no flag says, its predict.py the sliding window of it."""
    opts = ['--opts', 'test_config.is_slide=True', 'test_config.crop_size=[64,32]', 'test_config.stride=[32,16]']
    augmented = ['test_config.aug_eval=True', 'test_config.scales=0.5', 'test_config.flip_horizontal=True']
    flags_ = ['--is_slide', '--crop_size', 64, 32, '--stride', 32, 16]
    for name, given, same in (
            ('slide64x32by32x16', opts, flags_),
            ('0.5_flip', ['--opts', *augmented], ['--aug_eval', '--scales', 0.5, '--flip_horizontal']),
            ('slide64x32by64x32', [*flags_[:4], '--stride', 64, 32, *opts], [*flags_[:4], '--stride', 64, 32])):
        results = []
        for arguments in (given, same):
            assert run_script(val.main, *argv, *arguments) is None
            path = tmp_path / f'evaluation_tiny_{name}.json'
            results.append(json.loads(path.read_text()))
            path.unlink()
        assert results[0]['classes'] == results[1]['classes'] and results[0]['test_time'] == results[1]['test_time']
    assert results[0]['test_time']['stride_hw'] == [32, 64]


def test_prediction_slides_as_the_test_config_says(argv, toy, tmp_path):
    from inference.segmenter import Segmenter

    opts = ['test_config.is_slide=True', 'test_config.crop_size=[64,32]', 'test_config.stride=[32,16]',
            'test_config.aug_eval=True', 'test_config.flip_horizontal=True']
    segment = Segmenter(argv[1], argv[3], backend='paddle', opts=opts)
    assert segment.predictor.crop_size == (32, 64) and segment.predictor.stride == (16, 32)
    assert segment.predictor.flips == [()] and segment.predictor.scales == [1.0]
    image = next((toy / 'leftImg8bit/val').rglob('*.png'))
    same = Segmenter(argv[1], argv[3], backend='paddle', is_slide=True, crop_size=(64, 32), stride=(32, 16))
    assert (segment(image).classes == same(image).classes).all()
