"""val.py --report and predict.py --report: the same scores as without, folders that are not theirs, interruptions."""
import json
import shutil

import cv2
import numpy as np
import paddle
import pytest

import predict
import val
from common.atomic_io import FolderLock
from inference import forms
from tests.browser import json_of
from tests.conftest import run_script as run
from tests.conftest import write_tiny_config
from tests.training.test_distributed import launch
from training.run_log import RunLog


@pytest.fixture(scope='module')
def trained(toy, tmp_path_factory):
    """(config, weights) of a run with a log, whose network is not trained."""
    from common.builder import Builder
    from common.config import Config

    folder = tmp_path_factory.mktemp('trained')
    config = write_tiny_config(folder / 'tiny.yml', toy, optimizer=None, n_scales='[0.5, 1.0]')
    (folder / 'run/best_model').mkdir(parents=True)
    paddle.seed(3)
    weights = folder / 'run/best_model/model.pdparams'
    paddle.save(Builder(Config(config)).model.state_dict(), str(weights))
    with RunLog(folder / 'run') as log:
        log.train(2, 1, 0.1, {'loss': 1.5, 'parts': {}, 'ips': 1, 'batch_cost': 1, 'reader_cost': 0})
        log.evaluation(2, {'miou': 0.25, 'accuracy': 0.5})
    return config, weights


def copied(trained, tmp_path):
    """(config, weights) in a folder of one's own, since val.py writes beside the weights."""
    return trained[0], shutil.copytree(trained[1].parent.parent, tmp_path / 'run') / 'best_model/model.pdparams'


def data_of(folder, name='images-data'):
    return json_of((folder / 'index.html').read_text(), name)


def test_scores_are_those_of_an_evaluation_without_a_report(trained, tmp_path, monkeypatch):
    # All scales as one graph, which rounds otherwise, have no weights of the scales for the page.
    monkeypatch.setattr(forms, 'choose', lambda *_: forms.STRIPS)
    config, weights = copied(trained, tmp_path)
    command = ('--config', config, '--model_path', weights)
    assert run(val.main, *command, '--calibration') is None
    scores = json.loads(weights.with_name('evaluation_tiny.json').read_text())
    assert run(val.main, *command, '--report', tmp_path / 'report') is None
    assert json.loads(weights.with_name('evaluation_tiny.json').read_text()) == scores
    assert '<dt>Computed by</dt><dd>openvino, fp32</dd>' in (tmp_path / 'report/index.html').read_text()
    assert sorted(path.name for path in (tmp_path / 'report').iterdir()) == [
        'index.html', 'pictures', 'plotly.min.js', 'report.txt']
    data = data_of(tmp_path / 'report')
    assert len(data['images']) == 3 and data['scales'] == [0.5, 1.0]
    for image in data['images']:
        assert len(list((tmp_path / 'report' / image['d']).iterdir())) == 12  # a record, 3 thumbs, 6 pictures, 2 scales
        assert sum(image['m'][1::2]) > 1000
    total = np.zeros(19 * 19, int)
    for image in data['images']:
        np.add.at(total, image['m'][::2], image['m'][1::2])
    assert np.trace(total.reshape(19, 19)) / total.sum() == pytest.approx(scores['accuracy'])
    assert f'{100 * scores["miou"]:.2f} %' in (tmp_path / 'report/index.html').read_text()
    figures = data_of(tmp_path / 'report', 'figures')
    assert figures['loss']['data'][0]['y'] == [1.5] and figures['scores']['data'][0]['y'] == [0.25]


def test_two_processes_write_one_report(trained, tmp_path):
    config, weights = copied(trained, tmp_path)
    launch(2, tmp_path / 'logs', 'val.py', '--config', config, '--model_path', weights, '--report', tmp_path / 'two')
    assert run(val.main, '--config', config, '--model_path', weights, '--report', tmp_path / 'one') is None
    one, two = (data_of(tmp_path / name) for name in ('one', 'two'))
    assert one == two
    for image in one['images']:
        for path in (tmp_path / 'one' / image['d']).iterdir():
            assert path.read_bytes() == (tmp_path / 'two' / image['d'] / path.name).read_bytes()


def test_a_foreign_folder_is_refused_before_the_work(trained, tmp_path, capsys, monkeypatch):
    from inference import backends

    monkeypatch.setattr(backends, 'create', lambda *_, **__: pytest.fail('too late'))
    config, weights = copied(trained, tmp_path)
    (tmp_path / 'photos').mkdir()
    (tmp_path / 'photos/holiday.jpg').write_bytes(b'mine')
    (tmp_path / 'file').write_text('mine')
    for script, more in ((val, ()), (predict, ('--image_path', config.parent, '--save_dir', tmp_path / 'out'))):
        for name, found in (('photos', 'found holiday.jpg'), ('file', 'found "Not a directory"')):
            if script is predict:
                cv2.imwrite(str(config.parent / 'a.png'), np.zeros((64, 64, 3), np.uint8))
            command = ('--config', config, '--model_path', weights, *more, '--report', tmp_path / name)
            assert run(script.main, *command) == 1
            error = capsys.readouterr().err.strip().splitlines()[-1]
            assert error.startswith(f'error: --report {tmp_path / name}: expected ') and found in error
    assert [path.name for path in (tmp_path / 'photos').iterdir()] == ['holiday.jpg']
    assert not list(weights.parent.glob('*.json'))


def test_two_runs_at_once_do_not_share_a_folder(trained, tmp_path, capsys):
    config, weights = copied(trained, tmp_path)
    command = ('--config', config, '--model_path', weights, '--report', tmp_path / 'other')
    with FolderLock(tmp_path / 'other', '--report'):
        (tmp_path / 'other/report.txt').write_text('')
        assert run(val.main, *command) == 1
    assert f'--report {tmp_path / "other"}: expected no other run to write there' in capsys.readouterr().err


def test_an_interrupted_report_continues(trained, tmp_path, monkeypatch, capsys):
    from inference.predictor import Predictor

    config, weights = copied(trained, tmp_path)
    report = tmp_path / 'report'
    command = ('--config', config, '--model_path', weights, '--report', report, '--num_workers', '0')
    assert run(val.main, *command) is None
    whole, scores = data_of(report), weights.with_name('evaluation_tiny.json').read_bytes()
    predicted = []
    original = Predictor.maps

    def maps(self, sample):
        predicted.append(1)
        if len(predicted) == 3:
            raise KeyboardInterrupt
        return original(self, sample)

    monkeypatch.setattr(Predictor, 'maps', maps)
    assert run(val.main, *command) == 130
    assert not (report / 'index.html').exists(), 'no page of half an evaluation'
    lost = next(report.glob('pictures/00000*'))
    (lost / 'record.json').unlink(missing_ok=True)  # as if the kill had come while this image was written
    (report / 'pictures/00009_other').mkdir()
    shutil.copy(lost / 'thumb_input.jpg', report / 'pictures/00009_other')
    (report / 'pictures/00009_other/record.json').write_text(json.dumps({'index': 9, 'name': 'x', 'folder':
                                                                         'pictures/00009_other'}))
    del predicted[:]
    monkeypatch.setattr(Predictor, 'maps', lambda self, sample: predicted.append(1) or original(self, sample))
    capsys.readouterr()
    assert run(val.main, *command, '--report', tmp_path / 'other', '--resume') == 1
    assert f'test_time.report: {str(report)!r:.60}, now' in capsys.readouterr().err, 'its pictures may be of others'
    assert run(val.main, *command, '--resume') is None
    assert len(predicted) == 2, 'the third image, and the one whose pictures were not complete'
    assert data_of(report) == whole and weights.with_name('evaluation_tiny.json').read_bytes() == scores
    assert not (report / 'pictures/00009_other').exists(), 'left by a report of other images'


@pytest.fixture
def photos(tmp_path):
    """A folder of images of several sizes, one of them broken."""
    for i, size in enumerate([(64, 96), (40, 200), (90, 64)]):
        path = tmp_path / 'photos' / ('deep/' if i else '') / f'photo {i} #1.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.random.default_rng(i).integers(0, 255, (*size, 3), np.uint8))
    (tmp_path / 'photos/broken.jpg').write_bytes(b'\xff\xd8nothing')
    return tmp_path / 'photos'


def test_predictions_without_ground_truth(trained, photos, tmp_path):
    config, weights = trained
    colors = [value for i in range(19) for value in (i, 2 * i, 255 - i)]
    command = ('--config', config, '--model_path', weights, '--image_path', photos, '--save_dir', photos / 'out',
               '--report', photos / 'report', '--custom_color', *colors)
    for _ in range(2):  # the second time, the first report lies among the images and is none of them
        assert run(predict.main, *command) == 1, 'one image is broken'
        data = data_of(photos / 'report')
        assert [image['n'] for image in data['images']] == ['deep/photo 1 #1', 'deep/photo 2 #1', 'photo 0 #1']
        assert [image['h'] for image in data['images']] == [[40, 200], [90, 64], [64, 96]]
        assert not data['truth'] and data['colors'][3] == '3,6,252'
        for image in data['images']:
            ours = photos / 'report' / image['d'] / 'prediction.png'
            theirs = photos / 'out/pseudo_color_prediction' / f'{image["n"]}.png'
            assert (cv2.imread(str(ours)) == cv2.imread(str(theirs))).all()


def test_a_report_of_new_images_alone_is_refused(trained, photos, capsys):
    config, weights = trained
    assert run(predict.main, '--config', config, '--model_path', weights, '--image_path', photos, '--save_dir',
               photos / 'out', '--report', photos / 'report', '--skip_existing') == 1
    assert capsys.readouterr().err.strip().splitlines()[-1] == (
        'error: --report: expected every image to be predicted, found --skip_existing; leave one of them out')
