"""From the four archives to the published tree: against the tree that the toy generator draws, and the formula."""
import re
import shutil
import sys
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from common.errors import FileError
from datasets.pairing import COARSE, find_pairs
from tests.tools.label_images import by_formula, read
from tests.tools.prepared import AUTO, EXTRA, FINE, IMAGES, check_tree, errors, files, rewrite, run
from tools import prepare_cityscapes
from tools.prepare_cityscapes import CORRUPT, main

pytestmark = pytest.mark.usefixtures('verified')


@pytest.mark.parametrize('workers', [0, 1, 2])
def test_the_published_tree(root, zips, drawn, capsys, verified, workers):
    assert run(root, zips, workers) == 0
    check_tree(root, drawn)
    assert find_pairs(root, COARSE, 'train') and verified == [(str(root), workers)]
    output = capsys.readouterr()
    lines = output.out.splitlines()
    assert f'{IMAGES}: 0 files are there, 9 to unpack' in output.out  # with dataset.yml
    assert f'{AUTO}: 0 files are there, 5 to convert' in output.out
    assert sum('in a folder tmp, which is no city, left out' in line for line in lines) == 1
    assert output.err == '' and 'troisdorf' not in output.out


def test_again_writes_nothing(root, zips, capsys):
    run(root, zips)
    before = {name: path.stat().st_mtime_ns for name, path in files(root).items()}
    capsys.readouterr()
    assert run(root, zips) == 0
    assert {name: path.stat().st_mtime_ns for name, path in files(root).items()} == before
    assert f'{FINE}: 10 files are there, 0 to unpack' in capsys.readouterr().out


def test_one_archive_at_a_time(root, zips, drawn, tmp_path):
    shutil.rmtree(zips / 'toy_cityscapes.json', ignore_errors=True)
    for name in (AUTO, FINE, EXTRA, IMAGES):
        part = tmp_path / name.removesuffix('.zip')
        part.mkdir()
        shutil.move(zips / name, part)
        assert run(root, part) == 0
    check_tree(root, drawn)


def test_what_is_unpacked_already_is_used(root, drawn, zips, verified):
    shutil.copytree(drawn, root)
    assert main(['--dataset_root', str(root)]) == 0
    for source in root.glob('refinement_final/train_extra/*/*.png'):
        target = root / 'convert_autolabelled' / source.parent.name / source.name
        np.testing.assert_array_equal(read(target), by_formula(read(source)))
    assert len(list(root.glob('gtFine/*/*/*labelTrainIds.png'))) == 8 and len(verified) == 1
    for path in zips.iterdir():
        path.unlink()
    assert run(root, zips) == 0  # none of the archives, but a tree


def test_verify_alone(root, zips, drawn, verified, monkeypatch):
    shutil.copytree(drawn, root)
    monkeypatch.setattr(prepare_cityscapes, 'prepare', lambda *_: pytest.fail('must not'))
    assert main(['--dataset_root', str(root), '--verify', '--num_workers', '3']) == 0
    assert verified == [(str(root), 3)]
    monkeypatch.setattr(sys.modules['tools.verify_dataset'], 'verify', lambda root, num_workers: 1)
    assert main(['--dataset_root', str(root), '--verify']) == 1


def test_nothing_to_work_with(root, zips, tmp_path):
    (tmp_path / 'empty').mkdir()
    with pytest.raises(ValueError, match='found an empty folder, and no data in') as info:
        run(root, tmp_path / 'empty')
    assert all(name in str(info.value) for name in (IMAGES, FINE, EXTRA, AUTO))
    assert 'https://www.cityscapes-dataset.com/downloads/' in str(info.value) and 'drive.google' in str(info.value)
    assert '\n' not in str(info.value) and not root.exists()
    with pytest.raises(FileError, match='--zips .*nowhere: expected a folder'):
        run(root, tmp_path / 'nowhere')
    with pytest.raises(ValueError, match='--num_workers: expected 0 or more, found -1'):
        run(root, zips, -1)


@pytest.mark.parametrize('workers', [1, 2])
def test_a_damaged_member_is_named_and_the_rest_is_done(root, zips, drawn, capsys, workers):
    bad = {}
    for name in (IMAGES, AUTO):
        with zipfile.ZipFile(zips / name) as file:
            info = file.infolist()[-1]
        content = bytearray((zips / name).read_bytes())
        content[info.header_offset + 30 + len(info.filename) + info.compress_size // 2] ^= 255
        (zips / name).write_bytes(content)
        bad[name] = info.filename
    assert run(root, zips, workers) == 1
    lines = errors(capsys)
    for name, member in bad.items():
        assert sum(f"{zips / name}: member '{member}': expected" in line and 'download it again' in line
                   for line in lines) == 1
    assert len(lines) == 2
    check_tree(root, drawn, [bad[IMAGES], bad[AUTO].replace('refinement_final/train_extra', 'convert_autolabelled')])


def test_refused_before_anything_is_written(root, zips):
    rewrite(zips / AUTO, lambda name, data: [(name, data), ('../x', b'')][:1 + name.endswith('tmp/' + Path(name).name)])
    with pytest.raises(ValueError, match=r"'../x' whose path leaves it"):
        run(root, zips)
    assert not root.exists()


def test_labels_that_are_drawn_from_polygons(root, zips, drawn):
    """Where the label image is missing: from the archive, or from the archive but not from the tree."""
    names = sorted(name for name in files(drawn) if re.match('gtFine/train/.*labelIds.png', name))
    rewrite(zips / FINE, lambda name, data: [] if name in names[:2] else [(name, data)])
    (root / names[1]).parent.mkdir(parents=True)
    shutil.copy(drawn / names[1], root / names[1])
    assert run(root, zips) == 0
    polygons = root / names[0].replace('labelIds.png', 'polygons.json')
    assert polygons.is_file()
    np.testing.assert_array_equal(read(root / names[0]), read(drawn / names[0]))
    polygons.unlink()
    shutil.copy(drawn / names[0], root / names[0])  # the same pixels, packed otherwise
    check_tree(root, drawn)


def test_cities_of_other_scripts_and_of_one_name(root, zips, drawn):
    """Two images of the same name in two cities stay two, and each finds its label."""
    stem = 'drachenau_000000_000019'

    def elsewhere(name, data):
        copies = [name.replace('/drachenau/', f'/{city}/') for city in ('東京', 'Ålesund')] * (stem in name)
        return [(name, data), *((copy, data) for copy in copies if copy != name)]

    for name in (EXTRA, AUTO):
        rewrite(zips / name, elsewhere)
    assert run(root, zips) == 0
    pairs = find_pairs(root, COARSE, 'train')
    assert len(pairs) == 7 and sum(stem in image for image, _ in pairs) == 3
    for city in ('東京', 'Ålesund'):
        source = drawn / f'refinement_final/train_extra/drachenau/{stem}_leftImg8bit.png'
        target = root / 'convert_autolabelled' / city / source.name
        np.testing.assert_array_equal(read(target), by_formula(read(source)))


def test_the_dataset_yml_of_the_user_stays(root, zips):
    root.mkdir(parents=True)
    (root / 'dataset.yml').write_text('name: mine\n')
    assert run(root, zips) == 0
    assert (root / 'dataset.yml').read_text() == 'name: mine\n'
    (root / 'dataset.yml').write_text('nome: mine\n')
    with pytest.raises(ValueError, match="dataset.yml: expected name.*found 'nome'"):
        run(root, zips)


CORRUPT_IMAGES = {'cut off': lambda data: data[:len(data) // 2], 'black': lambda _: cv2.imencode(
    '.png', np.zeros((64, 128, 3), np.uint8))[1].tobytes(), 'empty': lambda _: b''}
DONOR = 'drachenau/drachenau_000000_000019_leftImg8bit.png'  # whose image and label the known one gets in these tests


def with_label_of_the_corrupt(zips):
    rewrite(zips / AUTO, lambda name, data: [(name, data)] + [
        (name.replace(DONOR, CORRUPT), data)] * name.endswith(DONOR))


@pytest.mark.parametrize('kind', CORRUPT_IMAGES)
def test_the_known_image_corrupt_in_the_archive(root, zips, drawn, capsys, kind):
    with_label_of_the_corrupt(zips)
    rewrite(zips / EXTRA, lambda name, data: [(name, data)] + [
        (name.replace(DONOR, CORRUPT), CORRUPT_IMAGES[kind](data))] * name.endswith(DONOR))
    for _ in range(2):
        assert run(root, zips) == 0
        assert capsys.readouterr().out.count('troisdorf_000000_000073_leftImg8bit.png: corrupt') == 1
        check_tree(root, drawn)
        assert len(find_pairs(root, COARSE, 'train')) == 5


@pytest.mark.parametrize('kind', CORRUPT_IMAGES)
def test_the_known_image_corrupt_in_the_tree(root, zips, drawn, capsys, kind):
    """It stays, under a name that training does not read, and so does the label that was made of it before."""
    with_label_of_the_corrupt(zips)
    image, label = root / COARSE.images / CORRUPT, root / COARSE.labels / CORRUPT
    content = CORRUPT_IMAGES[kind]((drawn / COARSE.images / DONOR).read_bytes())
    for path in (image, label):
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
    assert run(root, zips) == 0
    assert Path(f'{image}.unused').read_bytes() == content == Path(f'{label}.unused').read_bytes()
    assert f'{image}: renamed to {image.name}.unused' in capsys.readouterr().out
    assert len(find_pairs(root, COARSE, 'train')) == 5 and not image.exists() and not label.exists()
    image.write_bytes(b'once more')
    assert run(root, zips) == 0
    assert Path(f'{image}.unused2').read_bytes() == b'once more' and Path(f'{image}.unused').read_bytes() == content


@pytest.mark.parametrize('unpacked', [False, True])
def test_the_known_image_missing(root, zips, drawn, capsys, unpacked):
    with_label_of_the_corrupt(zips)
    if unpacked:
        with zipfile.ZipFile(zips / AUTO) as file:
            file.extractall(root)
        (zips / AUTO).unlink()
    assert run(root, zips) == 0
    assert 'troisdorf_000000_000073_leftImg8bit.png: there is no such image' in capsys.readouterr().out
    assert len(find_pairs(root, COARSE, 'train')) == 5
    if not unpacked:
        check_tree(root, drawn)


def test_the_known_image_in_order(root, zips, capsys):
    """Nothing is left out of a release where it has been repaired."""
    with_label_of_the_corrupt(zips)
    rewrite(zips / EXTRA, lambda name, data: [(name, data)] + [
        (name.replace(DONOR, CORRUPT), data)] * name.endswith(DONOR))
    assert run(root, zips) == 0
    assert len(find_pairs(root, COARSE, 'train')) == 6 and 'troisdorf' not in capsys.readouterr().out
