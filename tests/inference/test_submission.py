"""The archive for the test server: complete, under the official names, checked, and continued after an interruption."""
import fnmatch
import io
import shutil
import types
import zipfile

import cv2
import numpy as np
import pytest
from cityscapesscripts.helpers import csHelpers
from PIL import Image

import predict
from common.errors import FileError, UserError
from datasets.labels import CITYSCAPES, LabelSet
from inference import submission
from inference.submission import Submission
from tests.conftest import run_script as run
from tests.training.test_distributed import launch

NAMES = [f'{city}_{sequence:06}_000019' for city in ('berlin', 'bonn') for sequence in (0, 1)]


@pytest.fixture
def data(toy, tmp_path):
    """The toy dataset with a test split of four images, one of another size."""
    root = tmp_path / 'data'
    (root / 'leftImg8bit').mkdir(parents=True)
    for name in ('gtFine', 'leftImg8bit/train', 'leftImg8bit/val'):
        (root / name).symlink_to(toy / name)
    source = cv2.imread(str(sorted((toy / 'leftImg8bit/val').rglob('*.png'))[0]))
    for i, name in enumerate(NAMES):
        path = root / 'leftImg8bit/test' / name.partition('_')[0] / f'{name}_leftImg8bit.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), source[:, :100] if i == 3 else np.roll(source, 9 * i, axis=1))
    return root


def predict_it(tiny, data, out, *more):
    config, weights = tiny
    return run(predict.main, '--config', config, '--model_path', weights, '--submission', out, *more, '--opts',
               f'val_dataset.dataset_root={data}')


def labels_of(path):
    with zipfile.ZipFile(path) as archive:
        return {name: np.asarray(Image.open(io.BytesIO(archive.read(name)))) for name in archive.namelist()}


def test_an_archive_as_the_server_reads_it(tiny, data, tmp_path, capsys):
    out = tmp_path / 'out.zip'
    assert predict_it(tiny, data, out, '--backend', 'paddle') is None
    assert f'{out}: 4 images, checked; its server would refuse it, for the test split of Cityscapes has 1525' \
        in capsys.readouterr().out
    found = labels_of(out)
    assert len(found) == 4
    for name in NAMES:  # as getPrediction of the official evaluation looks for it
        info = csHelpers.getCsFileInfo(f'{name}_gtFine_labelIds.png')
        matching = fnmatch.filter(found, f'{info.city}_{info.sequenceNb}_{info.frameNb}*.png')
        assert len(matching) == 1
        image = cv2.imread(str(next((data / 'leftImg8bit/test').rglob(f'{name}_*'))))
        assert found[matching[0]].shape == image.shape[:2] and found[matching[0]].dtype == np.uint8
    # The same as the pictures of the same images, in label ids.
    config, weights = tiny
    assert run(predict.main, '--config', config, '--model_path', weights, '--image_path', data / 'leftImg8bit/test',
               '--save_dir', tmp_path / 'pictures', '--backend', 'paddle') is None
    kinds = set()
    for name in NAMES:
        path, = (tmp_path / 'pictures/pseudo_color_prediction').rglob(f'{name}_*')
        ids = np.take(CITYSCAPES.label_ids, np.asarray(Image.open(path)))
        np.testing.assert_array_equal(found[f'{name}_gtFine_labelIds.png'], ids)
        kinds |= set(np.unique(ids))
    assert len(kinds) > 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ['data', 'out.zip', 'pictures']


def test_it_continues_and_gives_the_same_archive(tiny, data, tmp_path, capsys, monkeypatch):
    assert predict_it(tiny, data, tmp_path / 'whole.zip') is None
    bad = data / 'leftImg8bit/test/bonn/bonn_000001_000019_leftImg8bit.png'
    content = bad.read_bytes()
    bad.write_bytes(b'no image')
    out = tmp_path / 'out.zip'
    assert predict_it(tiny, data, out) == 1
    lines = capsys.readouterr()
    assert f'{bad}: expected an image' in lines.err and 'is not written: run this again' in lines.out
    assert not out.exists()
    bad.write_bytes(content)
    seen = []
    whole = Submission._write
    monkeypatch.setattr(Submission, '_write', lambda self, name, *rest: seen.append(name) or whole(self, name, *rest))
    assert predict_it(tiny, data, out) is None
    assert seen == ['bonn_000001_000019_gtFine_labelIds.png']
    assert '3 of 4 images have their predictions already' in capsys.readouterr().out
    assert out.read_bytes() == (tmp_path / 'whole.zip').read_bytes()
    assert not (tmp_path / 'out.zip.parts').exists()


def test_predictions_of_other_settings_are_not_mixed(tiny, data, tmp_path, capsys):
    bad = data / 'leftImg8bit/test/bonn/bonn_000001_000019_leftImg8bit.png'
    bad.write_bytes(b'no image')
    assert predict_it(tiny, data, tmp_path / 'out.zip') == 1
    kept = sorted((tmp_path / 'out.zip.parts').iterdir())
    capsys.readouterr()
    assert predict_it(tiny, data, tmp_path / 'out.zip', '--aug_pred', '--flip_horizontal') == 1
    line, = capsys.readouterr().err.strip().splitlines()
    assert 'expected to continue it with the settings that it was begun with, found test_time.' in line
    assert f'delete {tmp_path / "out.zip.parts"} to begin anew' in line
    assert sorted((tmp_path / 'out.zip.parts').iterdir()) == kept


def test_two_processes_share_the_images(tiny, data, tmp_path):
    config, weights = tiny
    assert predict_it(tiny, data, tmp_path / 'one.zip') is None
    launch(2, tmp_path / 'logs', 'predict.py', '--config', config, '--model_path', weights, '--submission',
           tmp_path / 'two.zip', '--opts', f'val_dataset.dataset_root={data}')
    assert (tmp_path / 'two.zip').read_bytes() == (tmp_path / 'one.zip').read_bytes()


# ---------------------------------------------------------------- what is refused

def made(data, out, labels=CITYSCAPES):
    found = Submission(out, data, labels, {})
    for name, image in found.images.items():
        size = cv2.imread(str(image)).shape[:2]
        found.parts.mkdir(exist_ok=True)
        Image.fromarray(np.full(size, 7, np.uint8)).save(found.parts / name)
    return found


def test_what_is_missing_is_named(data, tmp_path):
    found = made(data, tmp_path / 'out.zip')
    (found.parts / 'bonn_000000_000019_gtFine_labelIds.png').unlink()
    with pytest.raises(UserError, match='expected 4 predictions, found 3; missing: bonn_000000_000019_gtFine'):
        found.finish()
    assert not (tmp_path / 'out.zip').exists() and not list(tmp_path.glob('.out*'))


@pytest.mark.parametrize('picture,text', [
    (Image.fromarray(np.full([64, 128, 3], 7, np.uint8)), 'single-channel 8-bit PNG, found PNG of mode RGB'),
    (Image.fromarray(np.full([64, 128], 7, np.uint16)), 'single-channel 8-bit PNG, found PNG of mode I;16'),
    (Image.fromarray(np.full([32, 64], 7, np.uint8)), 'size of its image, 128x64, found 64x32'),
    (Image.fromarray(np.full([64, 128], 5, np.uint8)), r'label ids of classes, found \[5\]'),
    (None, 'expected a PNG, found what cannot be decoded')])
def test_a_prediction_that_is_wrong(data, tmp_path, picture, text):
    found = made(data, tmp_path / 'out.zip')
    path = found.parts / 'berlin_000001_000019_gtFine_labelIds.png'
    if picture is None:
        path.write_bytes(b'half a PNG')
    else:
        picture.save(path)
    with pytest.raises(UserError, match=rf'berlin_000001_000019_gtFine_labelIds.png: .*{text}'):
        found.finish()
    assert not (tmp_path / 'out.zip').exists() and not list(tmp_path.glob('.out*')) and path.is_file()


def test_an_archive_with_too_much_or_too_little(data, tmp_path):
    found = made(data, tmp_path / 'out.zip')
    with zipfile.ZipFile(tmp_path / 'other.zip', 'w') as archive:
        for path in sorted(found.parts.glob('*.png'))[1:]:
            archive.write(path, path.name)
    with pytest.raises(UserError, match=r'one member for each of 4 images, found 3; .*: berlin_000000_000019'):
        submission.check(tmp_path / 'other.zip', found.images, CITYSCAPES)


def test_a_dataset_without_a_test_split(tiny, data, tmp_path, capsys):
    shutil.rmtree(data / 'leftImg8bit/test')
    assert predict_it(tiny, data, tmp_path / 'out.zip') == 1
    line, = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(f'error: {data}/leftImg8bit/test: expected a folder of <city>/<stem>_leftImg8bit.png')
    (data / 'leftImg8bit/test').mkdir()
    assert predict_it(tiny, data, tmp_path / 'out.zip') == 1
    assert 'leftImg8bit/test: expected images' in capsys.readouterr().err
    assert not list(tmp_path.glob('out*'))


def test_names_the_server_would_not_know(data, tmp_path):
    path = data / 'leftImg8bit/test/bonn/bonn_000001_000019_leftImg8bit.png'
    path.rename(path.with_name('photo_leftImg8bit.png'))
    with pytest.raises(UserError, match='photo_leftImg8bit.png: expected <city>_<sequence>_<frame>'):
        Submission(tmp_path / 'out.zip', data, CITYSCAPES, {})


def test_the_same_image_in_two_folders(data, tmp_path):
    path = data / 'leftImg8bit/test/bonn/bonn_000001_000019_leftImg8bit.png'
    (data / 'leftImg8bit/test/elsewhere').mkdir()
    shutil.copy(path, data / 'leftImg8bit/test/elsewhere')
    with pytest.raises(UserError, match='expected a name of its own, found that of'):
        Submission(tmp_path / 'out.zip', data, CITYSCAPES, {})


def test_an_existing_file_is_not_overwritten(data, tmp_path):
    (tmp_path / 'out.zip').write_text('precious')
    with pytest.raises(FileError, match='expected a new file, found one; delete it'):
        Submission(tmp_path / 'out.zip', data, CITYSCAPES, {})
    assert (tmp_path / 'out.zip').read_text() == 'precious'


def test_classes_of_one_s_own(data, tmp_path):
    labels = LabelSet(names=('a', 'b'), palette=((1, 2, 3), (4, 5, 6)))
    with pytest.raises(UserError, match='expected a dataset with the label ids of Cityscapes'):
        Submission(tmp_path / 'out.zip', data, labels, {})


def test_the_official_number_is_said_to_be_right(data, tmp_path, monkeypatch):
    monkeypatch.setattr(submission, 'OFFICIAL', 4)
    found = made(data, tmp_path / 'out.zip')
    nobody = types.SimpleNamespace(predictor=None, load=None)
    assert found.run(nobody, 0) == ([], f'{tmp_path / "out.zip"}: 4 images, checked')
