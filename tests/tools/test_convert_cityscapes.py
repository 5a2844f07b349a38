"""The conversion to train ids against the images that cityscapesscripts draws in train ids."""
import os
import re
import shutil
import struct

import numpy as np
import pytest
from cityscapesscripts.helpers.labels import labels as reference_labels
from cityscapesscripts.preparation.json2labelImg import json2labelImg
from PIL import Image

from common.errors import FileError
from datasets.labels import CITYSCAPES
from tools.cityscapes import label_conversion
from tools.convert_cityscapes import main
from tools.make_toy_cityscapes import make_toy


@pytest.fixture(scope='module')
def fresh(tmp_path_factory):
    root = tmp_path_factory.mktemp('fresh') / 'toy'
    make_toy(root, (64, 128), train=4, val=2, extra=0, seed=3)
    return root


@pytest.fixture
def toy(fresh, tmp_path):
    return shutil.copytree(fresh, tmp_path / 'toy')


def run(root, workers=1):
    return main(['--cityscapes_path', str(root), '--num_workers', str(workers)])


def converted(root):
    return {path: path.read_bytes() for path in root.rglob('*labelTrainIds*')}


def sources(root):
    return sorted(root.glob('gtFine/*/*/*_labelIds.png'))


def target(source):
    return source.with_name(source.name.replace('labelIds', 'labelTrainIds'))


def check_against_cityscapesscripts(root, tmp_path, count):
    paths = sorted(root.glob('gtFine/*/*/*_labelTrainIds.png'))
    assert len(paths) == count
    for path in paths:
        json2labelImg(str(path).replace('labelTrainIds.png', 'polygons.json'), str(tmp_path / 'drawn.png'), 'trainIds')
        with Image.open(path) as image, Image.open(tmp_path / 'drawn.png') as drawn:
            assert image.mode == 'L'
            np.testing.assert_array_equal(np.array(image), np.array(drawn))


def test_label_set_is_that_of_cityscapesscripts():
    evaluated = sorted((label for label in reference_labels if not label.ignoreInEval), key=lambda label: label.trainId)
    assert CITYSCAPES.names == tuple(label.name for label in evaluated)
    assert CITYSCAPES.label_ids == tuple(label.id for label in evaluated)
    assert CITYSCAPES.palette == tuple(label.color for label in evaluated)
    assert CITYSCAPES.ignore_index == next(label.trainId for label in reference_labels if label.name == 'unlabeled')


@pytest.mark.parametrize('workers', [0, 1, 2])
def test_equals_what_cityscapesscripts_draws_in_train_ids(toy, tmp_path, capsys, workers):
    assert run(toy, workers) == 0
    check_against_cityscapesscripts(toy, tmp_path, 6)
    assert capsys.readouterr().out.splitlines()[-1] == '6 converted, 0 already up to date, 0 failed'


def test_missing_label_image_is_drawn_from_its_polygons(toy, tmp_path):
    source = sources(toy)[0]
    pixels = np.array(Image.open(source))
    source.unlink()
    assert run(toy) == 0
    check_against_cityscapesscripts(toy, tmp_path, 6)
    np.testing.assert_array_equal(np.array(Image.open(source)), pixels)


def test_group_labels_are_drawn(toy, tmp_path):
    polygons = next(toy.glob('gtFine/*/*/*polygons.json'))
    polygons.write_text(polygons.read_text().replace('"car"', '"cargroup"'))
    assert 'cargroup' in polygons.read_text()
    polygons.with_name(polygons.name.replace('polygons.json', 'labelIds.png')).unlink()
    assert run(toy) == 0
    check_against_cityscapesscripts(toy, tmp_path, 6)


def test_dummy_labels_of_the_test_split(toy):
    """In the real data they are all `unlabeled`, `ego vehicle` or `out of roi`."""
    folder = toy / 'gtFine/test/berlinchen'
    folder.mkdir(parents=True)
    source = folder / 'berlinchen_000000_000019_gtFine_labelIds.png'
    Image.fromarray(np.tile(np.arange(4, dtype=np.uint8), (8, 4))).save(source)
    assert run(toy) == 0
    assert (np.array(Image.open(target(source))) == 255).all()


def test_second_run_skips_what_is_up_to_date(toy, capsys):
    run(toy)
    before = {path: path.stat().st_mtime_ns for path in converted(toy)}
    assert run(toy) == 0
    assert capsys.readouterr().out.splitlines()[-1] == '0 converted, 6 already up to date, 0 failed'
    assert {path: path.stat().st_mtime_ns for path in converted(toy)} == before


def test_changed_label_image_is_converted_again(toy, capsys):
    run(toy)
    source = sources(toy)[2]
    Image.fromarray(np.full((64, 128), 26, np.uint8)).save(source)
    later = target(source).stat().st_mtime + 10
    os.utime(source, (later, later))
    assert run(toy) == 0
    assert capsys.readouterr().out.splitlines()[-1] == '1 converted, 5 already up to date, 0 failed'
    assert (np.array(Image.open(target(source))) == 13).all()


def test_interrupted_run_continues(toy, tmp_path, monkeypatch, capsys):
    written = []

    def interrupted(path, data, flush):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(path)
        write(path, data, flush)

    write = label_conversion.write_atomically
    with monkeypatch.context() as patch:
        patch.setattr(label_conversion, 'write_atomically', interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(toy)
    assert set(converted(toy)) == set(written) and len(written) == 2
    assert run(toy) == 0
    assert '4 converted, 2 already up to date' in capsys.readouterr().out
    check_against_cityscapesscripts(toy, tmp_path, 6)


def test_half_written_file_is_never_seen(toy, monkeypatch):
    def no_space(source, destination):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(os, 'replace', no_space)
    assert run(toy) == 1
    assert converted(toy) == {}


def rgb(path):
    Image.open(path).convert('RGB').save(path)


def sixteen_bit(path):
    Image.fromarray(np.array(Image.open(path)).astype(np.uint16)).save(path)


def truncated(path):
    path.write_bytes(path.read_bytes()[:200])


def no_image(path):
    path.write_text('<html>log in first</html>')


def impossible(path):
    image = np.array(Image.open(path))
    image[5, 7] = 77
    Image.fromarray(image).save(path)


@pytest.mark.parametrize('workers', [1, 2])
@pytest.mark.parametrize('spoil, found', [
    (rgb, 'found mode RGB'), (sixteen_bit, 'found mode I;16'), (truncated, 'cannot be read'),
    (no_image, 'cannot be read'), (impossible, r'\(0\.\.33 or 255\), found the value 77')])
def test_bad_label_image_is_named_and_the_rest_is_done(toy, capsys, spoil, found, workers):
    good, bad = sources(toy)[1:], sources(toy)[0]
    spoil(bad)
    assert run(toy, workers) == 1
    output = capsys.readouterr()
    lines = [line for line in output.err.splitlines() if line.startswith('error')]
    assert len(lines) == 1
    assert re.fullmatch(f'error: {re.escape(str(bad))}: expected an 8-bit single channel image .*{found}.*extract.*',
                        lines[0])
    assert output.out.splitlines()[-1] == '5 converted, 0 already up to date, 1 failed'
    assert set(converted(toy)) == {target(path) for path in good}


@pytest.mark.parametrize('old, new, found', [
    ('"road"', '"raod"', 'unknown label "raod"'), ('"objects"', '"things"', "KeyError: 'objects'"),
    ('{', '', 'JSONDecodeError')])
def test_bad_polygons_are_named_and_the_rest_is_done(toy, capsys, old, new, found):
    bad = sources(toy)[0]
    polygons = bad.with_name(bad.name.replace('labelIds.png', 'polygons.json'))
    polygons.write_text(polygons.read_text().replace(old, new))
    bad.unlink()
    assert run(toy) == 1
    output = capsys.readouterr()
    lines = [line for line in output.err.splitlines() if line.startswith('error')]
    assert len(lines) == 1 and str(polygons) in lines[0] and found in lines[0]
    assert len(converted(toy)) == 5 and not bad.exists()


def test_palette_images_are_read_as_indices(toy, tmp_path):
    source = sources(toy)[0]
    image = Image.open(source)
    image.putpalette([255 - i // 3 for i in range(768)])  # the colour of an index is another valid-looking value
    image.save(source)
    assert Image.open(source).mode == 'P' and run(toy) == 0
    check_against_cityscapesscripts(toy, tmp_path, 6)


def flip_a_bit(path):
    """In the compressed pixels."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 16
    path.write_bytes(data)


def without_end(path):
    path.write_bytes(path.read_bytes()[:-12])


def enormous(path):
    data = path.read_bytes()
    path.write_bytes(data[:16] + struct.pack('>II', 1 << 14, 1 << 14) + data[24:])


@pytest.mark.parametrize('spoil, found', [
    (flip_a_bit, 'cannot be read'), (without_end, 'cannot be read'), (enormous, '16384 x 16384 pixels')])
def test_damaged_pixels_are_noticed(toy, capfd, spoil, found):
    spoil(sources(toy)[0])
    assert run(toy) == 1
    line, = [line for line in capfd.readouterr().err.splitlines() if line.startswith('error')]
    assert str(sources(toy)[0]) in line and found in line and len(converted(toy)) == 5


def test_train_ids_where_label_ids_belong(toy, capsys):
    run(toy)
    for source in sources(toy):
        shutil.copy(target(source), source)
        target(source).unlink()
    assert run(toy) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith('error')]
    assert len(lines) == 6 and converted(toy) == {}
    assert all('found what seems to be train ids (nothing of 19..33' in line for line in lines)


@pytest.mark.parametrize('ids', [
    [0, 1, 2, 3],  # the dummies of the test split
    [0, 1, 3, 7], [7, 8], [0], [255, 7, 0],  # not much to see
    [1, 2, 3, 4, 5, 6] + [7] * 6 + [8] * 3 + [11] * 4,  # everything that is void, around a tunnel
    [0, 1, 2, 4, 5, 6, 9, 10, 21]])  # one leaf is enough
def test_few_label_ids_are_no_train_ids(toy, ids):
    source = sources(toy)[0]
    Image.fromarray(np.resize(np.array(ids, np.uint8), (8, 2 * len(ids)))).save(source)
    assert run(toy) == 0


def test_half_a_result_is_made_again(toy, tmp_path):
    """A power cut can leave an empty file behind, newer than its source."""
    run(toy)
    for path, data in zip(converted(toy), (b'', b'\x89PNG')):
        path.write_bytes(data)
    assert run(toy) == 0
    check_against_cityscapesscripts(toy, tmp_path, 6)


def test_classes_are_those_of_dataset_yml(toy):
    (toy / 'dataset.yml').write_text('name: two\nclasses:\n  - {name: car, color: [0, 0, 1], label_id: 26}\n'
                                     '  - {name: bicycle, color: [0, 1, 0], label_id: 33}\n')
    assert run(toy) == 0
    for source in sources(toy):
        ids = np.array(Image.open(source))
        expected = np.where(ids == 26, 0, np.where(ids == 33, 1, 255))
        np.testing.assert_array_equal(np.array(Image.open(target(source))), expected)


def test_missing_folder(tmp_path):
    (tmp_path / 'leftImg8bit').mkdir()
    with pytest.raises(FileError, match=r'gtFine: expected label.*found none.*leftImg8bit.*extract') as info:
        run(tmp_path)
    assert '\n' not in str(info.value)
    with pytest.raises(FileError, match='nowhere: nothing'):
        run(tmp_path / 'nowhere')


def test_number_of_workers_is_checked(toy):
    with pytest.raises(ValueError, match='num_workers: expected 0 or more, found -1'):
        run(toy, -1)
