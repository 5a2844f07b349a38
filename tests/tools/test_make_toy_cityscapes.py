"""The toy data set against cityscapesscripts, which draws the same polygons on its own, and against the real layout."""
import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from cityscapesscripts.helpers.annotation import Annotation
from cityscapesscripts.helpers.labels import id2label, name2label
from cityscapesscripts.preparation.json2instanceImg import createInstanceImage
from cityscapesscripts.preparation.json2labelImg import json2labelImg
from PIL import Image

from common.errors import FileError
from datasets.description import describe
from datasets.labels import CITYSCAPES
from tests.tools.label_images import read
from tools import make_toy_cityscapes
from tools.make_toy_cityscapes import main, make_toy

SIZE = (64, 128)
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope='module')
def toy(tmp_path_factory):
    root = tmp_path_factory.mktemp('made') / 'toy'
    assert make_toy(root, SIZE, train=4, val=3, extra=3, seed=5)
    return root


@pytest.fixture(scope='module')
def large(tmp_path_factory):
    """At the default size, for what the pictures should show."""
    root = tmp_path_factory.mktemp('made') / 'large'
    make_toy(root, (128, 256), train=12, val=0, extra=0, seed=1)
    return root


def contents(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob('*') if path.is_file()}


def test_layout_is_that_of_cityscapes(toy):
    stem = r'(\w+?)_\d{6}_\d{6}'
    patterns = [
        rf'leftImg8bit/(train|val)/(?P<city>\w+)/{stem}_leftImg8bit\.png',
        rf'gtFine/(train|val)/(?P<city>\w+)/{stem}_gtFine_(polygons\.json|(labelIds|instanceIds|color)\.png)',
        rf'leftImg8bit_trainextra/leftImg8bit/train_extra/(?P<city>\w+)/{stem}_leftImg8bit\.png',
        rf'refinement_final/train_extra/(?P<city>\w+)/{stem}_leftImg8bit\.png']
    names = set(contents(toy)) - {'toy_cityscapes.json', 'dataset.yml'}
    for name in names:
        match = next(filter(None, (re.fullmatch(pattern, name) for pattern in patterns)), None)
        assert match, name
        assert Path(name).name.startswith(match['city'] + '_')
    assert len(names) == 4 * 5 + 3 * 5 + 3 * 2
    for image in (name for name in names if name.startswith('leftImg8bit/')):
        for ending in ('polygons.json', 'labelIds.png', 'instanceIds.png', 'color.png'):
            assert image.replace('leftImg8bit.png', f'gtFine_{ending}').replace('leftImg8bit/', 'gtFine/') in names
    for image in (name for name in names if name.startswith('leftImg8bit_trainextra')):
        assert image.replace('leftImg8bit_trainextra/leftImg8bit', 'refinement_final') in names


def test_the_description_counts_the_images(toy):
    found = describe(toy)
    assert found.name == 'toy Cityscapes' and found.labels == CITYSCAPES
    assert found.images == {'train': 4, 'val': 3, 'test': 0, 'train_extra': 3}


def test_test_images_have_dummy_labels_and_change_no_other(toy, tmp_path):
    make_toy(tmp_path / 'toy', SIZE, train=4, val=3, extra=3, seed=5, test=3)
    before, after = contents(toy), contents(tmp_path / 'toy')
    new = {name for name in after if '/test/' in name}
    assert len(new) == 3 * 5 and len(list((tmp_path / 'toy/gtFine/test').iterdir())) == 2
    assert {name: data for name, data in after.items() if name not in new and '/' in name} == {
        name: data for name, data in before.items() if '/' in name}
    for path in (tmp_path / 'toy').glob('gtFine/test/*/*labelIds.png'):
        assert not read(path).any()
    assert describe(tmp_path / 'toy').images['test'] == 3


def test_archives_hold_the_tree_in_the_official_layout(toy, tmp_path):
    for name in ('zips', 'again'):
        assert make_toy(tmp_path / name, SIZE, train=4, val=3, extra=3, seed=5, as_zips=True)
    assert contents(tmp_path / 'zips') == contents(tmp_path / 'again')
    assert not make_toy(tmp_path / 'zips', SIZE, train=4, val=3, extra=3, seed=5, as_zips=True)
    found = {}
    for path in (tmp_path / 'zips').glob('*.zip'):
        with zipfile.ZipFile(path) as archive:
            assert archive.testzip() is None
            found[path.name] = {info.filename: archive.read(info) for info in archive.infolist() if not info.is_dir()}
    tree = contents(toy)
    expected = {
        'leftImg8bit_trainvaltest.zip': [name for name in tree if name.startswith('leftImg8bit/')] + ['dataset.yml'],
        'gtFine_trainvaltest.zip': [name for name in tree if name.startswith('gtFine/')],
        'leftImg8bit_trainextra.zip': [name for name in tree if name.startswith('leftImg8bit_trainextra/')],
        'refinement_final_v0.zip': [name for name in tree if name.startswith('refinement_final/')]}
    assert set(found) == set(expected)
    for archive, names in expected.items():
        members = found[archive]
        more = set(members) - {name.removeprefix('leftImg8bit_trainextra/') for name in names}
        for name in names:
            assert members[name.removeprefix('leftImg8bit_trainextra/')] == tree[name]
        if archive.startswith('refinement'):
            twice, = more
            assert '/tmp/' in twice
            assert sum(Path(name).name == Path(twice).name and data == members[twice]
                       for name, data in members.items()) == 2
        else:
            assert more == {'README', 'license.txt'}


def test_every_split_has_cities_of_its_own(toy):
    cities = [{path.name for path in (toy / folder).iterdir()}
              for folder in ('leftImg8bit/train', 'leftImg8bit/val', 'refinement_final/train_extra')]
    assert all(len(names) >= 2 for names in cities)
    assert len(set.union(*cities)) == sum(map(len, cities))


def test_images_have_the_types_of_cityscapes(toy):
    for pattern, mode in (('leftImg8bit/*/*/*.png', 'RGB'), ('gtFine/*/*/*color.png', 'RGBA'),
                          ('gtFine/*/*/*labelIds.png', 'L'), ('gtFine/*/*/*instanceIds.png', 'I;16'),
                          ('refinement_final/*/*/*.png', 'L')):
        with Image.open(next(toy.glob(pattern))) as image:
            assert (image.mode, image.size) == (mode, SIZE[::-1]), pattern


def test_label_images_are_what_cityscapesscripts_draws(toy, tmp_path):
    polygons = sorted(toy.glob('gtFine/*/*/*polygons.json'))
    assert len(polygons) == 7
    for path in polygons:
        stem = str(path).removesuffix('polygons.json')
        for encoding, name in (('ids', 'labelIds'), ('color', 'color')):
            json2labelImg(str(path), str(tmp_path / 'drawn.png'), encoding)
            np.testing.assert_array_equal(read(stem + name + '.png'), read(tmp_path / 'drawn.png'))
        annotation = Annotation()
        annotation.fromJsonFile(str(path))
        np.testing.assert_array_equal(read(stem + 'instanceIds.png'), np.array(createInstanceImage(annotation, 'ids')))


def test_polygons_have_known_labels_and_whole_pixels(toy):
    for path in toy.glob('gtFine/*/*/*polygons.json'):
        annotation = json.loads(path.read_text())
        assert (annotation['imgHeight'], annotation['imgWidth']) == SIZE
        for item in annotation['objects']:
            assert item['label'] in name2label
            assert all(type(value) is int for point in item['polygon'] for value in point)


def test_extra_labels_are_label_ids(toy):
    for path in toy.glob('refinement_final/*/*/*.png'):
        found = {id2label[value].name for value in np.unique(read(path))}
        assert {'road', 'sky', 'building', 'ego vehicle'} <= found


def test_edges_of_the_picture_lie_on_edges_of_the_labels(large):
    """Brightness steps are larger between two classes than between the same two pixels of another street's labels."""
    pictures = [read(path).astype(float).mean(2) for path in sorted(large.glob('leftImg8bit/*/*/*.png'))]
    labels = [read(path) for path in sorted(large.glob('gtFine/*/*/*labelIds.png'))]
    for i, picture in enumerate(pictures):
        step = np.abs(np.diff(picture, axis=1))
        own, shifted = np.diff(labels[i], axis=1) != 0, np.roll(np.diff(labels[i], axis=1) != 0, 3, axis=1)
        other = np.diff(labels[i - 1], axis=1) != 0
        assert step[own].mean() > 1.5 * max(step[shifted].mean(), step[other].mean())


def test_classes_occur_often_enough_to_be_learned(large):
    """15 of the 19 classes in at least half of the images, with enough pixels to see them."""
    paths = sorted(large.glob('gtFine/*/*/*labelIds.png'))
    counts = np.stack([np.bincount(read(path).ravel(), minlength=34) for path in paths])
    evaluated = [label.id for label in name2label.values() if not label.ignoreInEval]
    often = ((counts >= 30).mean(0) >= 0.5)[evaluated]
    assert often.sum() >= 15
    void = [label.id for label in name2label.values() if label.ignoreInEval and label.id >= 0]
    assert 0 < counts[:, void].sum() / counts.sum() < 0.15


def test_same_seed_same_bytes(toy, tmp_path):
    make_toy(tmp_path / 'again', SIZE, train=4, val=3, extra=3, seed=5)
    assert contents(tmp_path / 'again') == contents(toy)


def test_an_image_depends_on_seed_split_and_index_only(toy, tmp_path):
    make_toy(tmp_path / 'fewer', SIZE, train=2, val=1, extra=1, seed=5)
    make_toy(tmp_path / 'other', SIZE, train=2, val=1, extra=1, seed=6)
    all_of_them, fewer, other = contents(toy), contents(tmp_path / 'fewer'), contents(tmp_path / 'other')
    for name in set(fewer) - {'toy_cityscapes.json', 'dataset.yml'}:
        assert fewer[name] == all_of_them[name]
        assert fewer[name] != other[name], name
    pictures = [data for name, data in all_of_them.items() if 'leftImg8bit.png' in name]
    assert len(set(pictures)) == len(pictures)


def test_a_larger_picture_shows_the_same_street(tmp_path):
    make_toy(tmp_path / 'small', (128, 256), train=1, val=0, extra=0, seed=2)
    make_toy(tmp_path / 'double', (256, 512), train=1, val=0, extra=0, seed=2)
    small, double = (read(next((tmp_path / name).glob('gtFine/*/*/*labelIds.png'))) for name in ('small', 'double'))
    assert (small == double[::2, ::2]).mean() > 0.93


def test_same_arguments_again_write_nothing(toy):
    before = {path: path.stat().st_mtime_ns for path in toy.rglob('*')}
    assert make_toy(toy, SIZE, train=4, val=3, extra=3, seed=5) is False
    assert {path: path.stat().st_mtime_ns for path in toy.rglob('*')} == before


def test_other_arguments_do_not_touch_a_toy_data_set(toy):
    before = contents(toy)
    with pytest.raises(FileError, match=r'another toy data set.*"seed": 5.*"seed": 6.*choose another --out'):
        make_toy(toy, SIZE, train=4, val=3, extra=3, seed=6)
    assert contents(toy) == before


def test_other_files_are_not_touched(tmp_path):
    (tmp_path / 'thesis.txt').write_text('chapter one')
    with pytest.raises(FileError, match=r'expected a new or empty folder.*thesis\.txt.*choose another --out'):
        make_toy(tmp_path, SIZE, 1, 0, 0, 0)
    assert contents(tmp_path) == {'thesis.txt': b'chapter one'}
    with pytest.raises(FileError, match='found a file'):
        make_toy(tmp_path / 'thesis.txt', SIZE, 1, 0, 0, 0)


def test_interrupted_leaves_nothing(tmp_path, monkeypatch):
    drawn = []

    def interrupted(size, rng):
        drawn.append(1)
        if len(drawn) == 3:
            raise KeyboardInterrupt
        return np.zeros((*size, 3), np.uint8), []

    monkeypatch.setattr(make_toy_cityscapes, 'compose', interrupted)
    with pytest.raises(KeyboardInterrupt):
        make_toy(tmp_path / 'toy', SIZE, 5, 0, 0, 0)
    assert len(drawn) == 3 and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('arguments, text', [
    (dict(train=-1), 'train -1'), (dict(seed=-2), 'seed -2'), (dict(size=(32, 256)), 'at least 64 64.*found 32 256')])
def test_bad_arguments(tmp_path, arguments, text):
    with pytest.raises(ValueError, match=text):
        make_toy(tmp_path / 'toy', **arguments)
    assert list(tmp_path.iterdir()) == []


def test_flags(tmp_path, capsys):
    flags = ['--out', str(tmp_path / 'a/b'), '--size', '64', '96', '--train', '1', '--val', '1', '--extra', '1',
             '--test', '1']
    main(flags)
    assert read(next((tmp_path / 'a/b').glob('leftImg8bit/val/*/*.png'))).shape == (64, 96, 3)
    main(flags)
    assert 'already there' in capsys.readouterr().out.splitlines()[-1]


@pytest.mark.parametrize('script', ['make_toy_cityscapes', 'convert_cityscapes', 'convert_cityscapes_autolabeling'])
def test_scripts_run_from_any_folder(script, tmp_path):
    flag = {'make_toy_cityscapes': '--out', 'convert_cityscapes': '--cityscapes_path'}.get(script, '--dataset_root')
    (tmp_path / 'file').touch()
    command = [sys.executable, str(REPOSITORY / f'tools/{script}.py'), flag, 'file']
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert re.fullmatch(r'error: .*file.*expected.*found.*\n', result.stderr)
