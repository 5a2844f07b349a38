"""Folders that tools/prepare_folder.py does not take as they are: what is refused, and what is told and left out."""
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from common import atomic_io
from datasets.description import describe
from datasets.labels import CITYSCAPES
from datasets.pairing import FINE, find_images
from tests.tools.folders import (
    COLORS,
    NAMES,
    RGB,
    SIZE,
    TRAIN_ID,
    VALUES,
    draw,
    label,
    refusal,
    run,
    save,
    table,
    values,
)
from tools import prepare_folder
from tools.own_data.mapping import read_mapping
from tools.own_data.pairs import split_by_shares

# ---------------------------------------------------------------- splits

def test_random_splits_leave_old_images_where_they_are():
    few, many = ([f'drive/{i}' for i in range(n)] for n in (500, 2000))
    first, second = (split_by_shares(names, ['train=0.7', 'val=0.2', 'test=0.1'], 3) for names in (few, many))
    assert all(second[name] == split for name, split in first.items())
    counts = [list(second.values()).count(split) for split in ('train', 'val', 'test')]
    # Five standard deviations of a binomial distribution.
    assert all(abs(n - 2000 * p) < 5 * (2000 * p * (1 - p)) ** 0.5 for n, p in zip(counts, (0.7, 0.2, 0.1)))
    assert split_by_shares(many, ['train=0.7', 'val=0.2', 'test=0.1'], 4) != second


@pytest.mark.parametrize('shares, text', [
    (['train=0.8', 'val=0.3'], '--split train=0.8 val=0.3: expected shares that add up to 1, found 1.1'),
    (['train=0.8', 'valid=0.2'], '--split valid=0.2: expected train, val, test'),
    (['train=0.5', 'train=0.5'], '--split train=0.5: expected train, val, test, each at most once'),
    (['train'], '--split train: expected'), (['train=much'], 'a share above 0, found train=much'),
    (['train=0.9999999', 'val=0.0000001'], 'at least one image in val, found none of 8; choose another --seed')])
def test_bad_shares(folders, shares, text):
    assert text in refusal(folders, split=shares)


def test_lists(folders, capsys):
    (folders / 'train.txt').write_text('\ufeffone.jpg\r\n\n./drive/two\n four \n', encoding='utf-8')
    (folders / 'val.txt').write_text('città/東京 [1].jpg\n')
    (folders / 'test.txt').write_text('seven\ndrive/three.JPEG\n')
    os.remove(folders / 'masks/seven.png')  # test needs none; the others of no list are left alone
    os.remove(folders / 'masks/six.png')
    lists = [folders / f'{split}.txt' for split in ('train', 'val', 'test')]
    assert run(folders, '--lists', *lists, split=None) == 0
    assert '2 of 8 images are in no list and were left out' in capsys.readouterr().out
    found = {split: {Path(path).parent.name + '/' + Path(path).stem.removesuffix('_leftImg8bit')
                     for path in find_images(str(folders / 'out'), FINE, split)} for split in ('train', 'val', 'test')}
    assert found == {'train': {'images/one', 'drive/two', 'drive_deep/four'}, 'val': {'città/東京 [1]'},
                     'test': {'images/seven', 'drive/three'}}
    assert describe(str(folders / 'out')).images == {'train': 3, 'val': 1, 'test': 2}
    assert [path.name for path in folders.glob('out/gtFine/test/*/*')] == ['three_gtFine_labelTrainIds.png']


@pytest.mark.parametrize('content, text', [
    ({'train': 'one\nnine.jpg\n'}, "train.txt: line 2: expected an image below {images}, found 'nine.jpg', which is "
                                   'none; write its path below that folder'),
    ({'train': 'x\n'}, "train.txt: line 1: expected an image below {images}, found 'x', which is 2 of them"),
    ({'train': 'one\n', 'val': 'two\none.jpg\n'}, "val.txt: line 2: expected every image in one list, found 'one.jpg' "
                                                 'in {train} as well; delete one'),
    ({'train': 'one\n', 'val': '\n'}, 'val.txt: expected images, found no line'),
    ({'training': 'one\n'}, 'training.txt: expected files named train.txt, val.txt, test.txt, each once, found train'),
    ({'train': None}, 'train.txt: expected a text file, found "No such file or directory"')])
def test_bad_lists(folders, content, text):
    for folder in ('a', 'b'):
        draw(folders / f'images/{folder}/x.jpg')
        save(folders / f'masks/{folder}/x.png', values())
    for name, lines in content.items():
        if lines is not None:
            (folders / f'{name}.txt').write_text(lines)
    message = refusal(folders, '--lists', *[folders / f'{name}.txt' for name in content], split=None)
    assert text.format(images=folders / 'images', train=folders / 'train.txt') in message


# ---------------------------------------------------------------- the mapping

def test_train_ids_follow_the_first_appearance_and_colours_are_cityscapes(tmp_path):
    (tmp_path / 'm.yml').write_text('10: Traffic_Light\n2: void\n1: car\n5: no\n4: traffic light\n')
    mapping = read_mapping(tmp_path / 'm.yml')
    assert mapping.codes == {10: 0, 2: 255, 1: 1, 5: 2, 4: 3} and not mapping.by_color
    assert mapping.labels.names == ('Traffic_Light', 'car', 'no', 'traffic light')
    assert mapping.labels.palette[:2] == ((250, 170, 30), (0, 0, 142))
    assert len({*mapping.labels.palette, *CITYSCAPES.palette}) == 19 + 2


@pytest.mark.parametrize('count', [1, 255])
def test_from_1_to_255_classes(tmp_path, count):
    (tmp_path / 'm.yml').write_text(''.join(f'{i}: class {i}\n' for i in range(count)) + '255: void\n')
    mapping = read_mapping(tmp_path / 'm.yml')
    assert len(set(mapping.labels.palette)) == count and (0, 0, 0) not in mapping.labels.palette
    save(tmp_path / 'mask.png', np.array([[*range(count), 255]], np.uint8))
    assert mapping.read(tmp_path / 'mask.png').tolist() == [[*range(count), 255]]


@pytest.mark.parametrize('text, expected', [
    ('0: road\nroad: 1\n', "line 2: key 'road': expected a value of 0-255, three of them (R G B), or '#rrggbb', found"),
    ('256: road\n', "line 1: key '256': expected a value of 0-255"),
    ('1 2: road\n', "line 1: key '1 2': expected a value of 0-255"),
    ('1 2 300: road\n', "line 1: key '1 2 300': expected a value of 0-255"),
    ("'#12345': road\n", "line 1: key '#12345': expected a value of 0-255"),
    ('0: road\n0: car\n', "line 2: key '0': expected every value once, found it a second time; delete one"),
    ("0 0 255: a\n'#0000FF': b\n", "line 2: key '#0000FF': expected every colour once, found it a second time"),
    ('0: road\n1 2 3: car\n', "line 2: key '1 2 3': expected values or colours alone, found a colour after the other"),
    ('0:\n', "line 1: key '0': expected the name of a class or void, found ''; write it as 0: road"),
    ('0: void\n', 'expected 1 to 255 classes besides void, found 0'),
    (''.join(f'{i}: c{i}\n' for i in range(256)), 'expected 1 to 255 classes besides void, found 256'),
    ('- road\n', 'expected lines like "0: road", found others'), ('', 'expected lines like "0: road", found none'),
    ('#804080: road\n', 'expected lines like "0: road", found none'),  # a comment for YAML
    ('0: [road\n', 'expected YAML like "0: road", found'), ('0: {a: b}', "key '0': expected the name of a class"),
    ('0: [road, car]', "key '0': expected the name of a class"), ('{a: b}: road', "key '{}': expected a value")])
def test_bad_mappings(folders, text, expected):
    (folders / 'classes.yml').write_text(text)
    message = refusal(folders)
    assert message.startswith(f'{folders / "classes.yml"}: ') and expected in message


def test_no_mapping(folders):
    os.remove(folders / 'classes.yml')
    assert refusal(folders) == (f'--mapping {folders / "classes.yml"}: expected a YAML file, found "No such file or '
                                'directory"; check the path')


# ---------------------------------------------------------------- bad masks and images: told, and the rest is done

def failures(folders, capsys, *more):
    assert run(folders, *more) == 1
    out, err = capsys.readouterr()
    assert 'not complete; correct what is named above and run the same command again' in out
    lines = [line for line in err.splitlines() if line.startswith('error: ')]
    assert f'{8 - len(lines)} prepared, 0 already up to date, {len(lines)} failed' in out
    labels = len(list(folders.glob('out/gtFine/*/*/*')))
    assert labels == len(list(folders.glob('out/leftImg8bit/*/*/*'))) == 8 - len(lines), 'half of a pair was written'
    return '\n'.join(lines)


def test_values_that_the_mapping_does_not_have(folders, capsys, verified):
    pixels = values(0)
    pixels[:2] = 12
    pixels[2, :3] = 200
    save(folders / 'masks/one.png', pixels)
    assert failures(folders, capsys) == (
        f'error: {folders / "masks/one.png"}: expected values that {folders / "classes.yml"} lists, found 12 (80 '
        'pixels), 200 (3 pixels); add "12: <class>" or "12: void" to it')
    assert not verified
    (folders / 'classes.yml').write_text(VALUES + '12: void\n200: road\n')
    assert run(folders) == 0  # the same command, corrected
    expected = np.vectorize({**TRAIN_ID, 12: 255, 200: 0}.get)(pixels)
    np.testing.assert_array_equal(label(folders, 'images/one'), expected)


def test_colours_that_the_mapping_does_not_have(folders, capsys):
    for i, name in enumerate(NAMES):
        save(folders / f'masks/{name}.png', table(RGB)[values(i)])
    pixels = table(RGB)[values(0)]
    pixels[0, :5] = 9, 8, 7
    save(folders / 'masks/one.png', pixels)
    smooth = cv2.blur(table(RGB)[values(1)], (3, 3))
    save(folders / 'masks/drive/two.png', smooth)
    (folders / 'classes.yml').write_text(COLORS)
    first, second = sorted(failures(folders, capsys).split('\n'), reverse=True)
    assert first.endswith('lists, found 9 8 7 (5 pixels); add "9 8 7: <class>" or "9 8 7: void" to it')
    count = len({tuple(c) for c in smooth.reshape(-1, 3).tolist()} - set(RGB.values()))
    assert f'and {count - 4} more; masks must be saved without smoothing, and never as JPEG' in second


@pytest.mark.parametrize('make, text', [
    (lambda path: save(path, values().astype(np.uint16) * 100),
     'expected an 8 bit mask, found 16 bit with values 0 to 900; save it as 8 bit grey'),
    (lambda path: save(path, np.dstack([values()] * 2)), 'expected an 8 bit mask, found mode LA'),
    (lambda path: save(path, table(RGB)[values()]),
     'expected a mask of values, as {mapping} has them, found a mask of colours (RGB); use masks of values or list '
     'colours in the mapping'),
    (lambda path: save(path, values()[:, :-1]),
     "expected a mask of its image's size (24, 40), found (24, 39) (height, width); make the mask again"),
    (lambda path: path.write_bytes(b'\x89PNG'), 'expected a mask, found one that cannot be read'),
    (lambda path: path.write_bytes(path.read_bytes()[:-40]), 'expected a mask, found one that cannot be read'),
    (lambda path: os.remove(path) or path.symlink_to('/nowhere.png'), 'expected a mask, found one that cannot be')])
def test_bad_masks(folders, capsys, make, text):
    path = folders / 'masks/one.png'
    make(path)
    line = failures(folders, capsys)
    assert line.startswith(f'error: {path}: ') and text.format(mapping=folders / 'classes.yml') in line
    assert '\n' not in line


def test_grey_masks_where_the_mapping_has_colours(folders, capsys):
    for i, name in enumerate(NAMES[1:], 1):
        save(folders / f'masks/{name}.png', table(RGB)[values(i)])
    (folders / 'classes.yml').write_text(COLORS)
    assert ('expected a mask of colours, as ' in (line := failures(folders, capsys))
            and 'found a grey mask with values 0 to 9; use masks of colours or list values in the mapping' in line)


@pytest.mark.parametrize('name, make, text', [
    ('one.jpg', lambda path: path.write_bytes(path.read_bytes()[:-60]), 'found one that cannot be read (image file is '
                                                                       'truncated'),
    ('drive/two.png', lambda path: path.write_bytes(path.read_bytes()[:-60]), 'bytes that are none'),
    ('one.jpg', lambda path: path.write_bytes(b'no image'), 'found 8 bytes that are none; copy it again or leave it'),
    ('one.jpg', lambda path: os.remove(path) or path.symlink_to('/nowhere.jpg'), 'found a link to nothing')])
def test_bad_images(folders, capfd, name, make, text):
    make(folders / 'images' / name)
    line = failures(folders, capfd)
    assert line.startswith(f'error: {folders / "images" / name}: expected an image, ') and text in line


def test_a_jpeg_that_is_turned_by_exif(folders, capsys):
    """OpenCV turns it, in training as well, so the mask must be the turned one."""
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in ('one', 'seven'):
        with Image.open(folders / f'images/{name}.jpg') as image:
            image.load()
        image.save(folders / f'images/{name}.jpg', exif=exif)
    save(folders / 'masks/one.png', values(0, SIZE[::-1]))
    line = failures(folders, capsys)
    assert line == (f"error: {folders / 'masks/seven.png'}: expected a mask of its image's size (40, 24), found "
                    '(24, 40) (height, width) (the image is turned by its EXIF orientation, the mask is not); make the '
                    'mask again')
    assert label(folders, 'images/one').shape == SIZE[::-1]


# ---------------------------------------------------------------- refused before anything is written

def test_images_without_mask(folders):
    os.remove(folders / 'masks/one.png')
    os.remove(folders / 'masks/drive/two.png')
    message = refusal(folders)
    assert message.startswith(f'--masks {folders / "masks"}: expected drive/two.png for the image '
                              f'{folders / "images/drive/two.png"}, found none (and 1 more); add the masks')


def test_masks_without_image(folders):
    os.remove(folders / 'images/one.jpg')
    assert refusal(folders) == (f'--masks {folders / "masks"}: expected an image below {folders / "images"} for every '
                                f'mask, found none for {folders / "masks/one.png"}; add the images or move these masks '
                                'away')


def test_two_images_of_one_name(folders):
    draw(folders / 'images/one.png')
    assert refusal(folders) == (f'--images {folders / "images"}: expected one image of a name, found '
                                f'{folders / "images/one.jpg"} and one.png; delete or rename one')


def test_two_folders_that_become_one(folders):
    draw(folders / 'images/drive_deep/four.jpg')
    save(folders / 'masks/drive_deep/four.png', values())
    message = refusal(folders, split=['train=1'])
    assert f'found drive_deep/four for {folders / "images/drive/deep/four.jpg"} as well' in message


@pytest.mark.parametrize('flag, what, text', [
    ('--images', 'nothing', 'expected a folder, found nothing'),
    ('--masks', 'classes.yml', 'expected a folder, found a file'),
    ('--images', 'empty', 'expected files .png .jpg'),
    ('--masks', 'empty', 'expected files *.png, found an empty folder; check the path, and masks are PNG'),
    ('--images', 'masks/città', 'for every mask, found none for'),
    ('--base_config', 'none.yml', 'expected a file, found nothing'),
    ('--out', 'classes.yml', 'expected a folder, found a file'),
    ('--out', 'images/out', 'apart from --images, found one within the other'),
    ('--out', 'masks', 'apart from --masks, found one within the other'),
    ('--out', '.', 'apart from --images, found one within the other'),
    ('--out', 'other', 'expected a new or empty folder or one made by this script, found my.txt'),
    ('--num_workers', '-1', 'expected 0 or more, found -1')])
def test_bad_folders(folders, flag, what, text):
    (folders / 'empty').mkdir()
    (folders / 'other').mkdir()
    (folders / 'other/my.txt').touch()
    value = what if flag == '--num_workers' else folders / what
    message = refusal(folders, flag, value)
    assert text in message
    if what not in ('masks/città', '-1'):  # one is about the masks, the other has no path
        assert message.startswith(f'{flag} {value}: ')


def test_no_write_permission(folders, monkeypatch):
    def refuse(path, data):
        raise PermissionError(13, 'Permission denied', str(path))

    monkeypatch.setattr(prepare_folder, 'write_atomically', refuse)  # tests may run as root, who may write everywhere
    assert refusal(folders) == (f'--out {folders / "out"}: expected a folder to write into, found "Permission denied"; '
                                'choose another or change its permission')


def test_full_disk_stops_everything(folders, monkeypatch):
    def full(path, data):
        if 'leftImg8bit' in path.name:
            raise OSError(28, 'No space left on device')
        atomic_io.write_atomically(path, data)

    monkeypatch.setattr(prepare_folder, 'write_atomically', full)
    with pytest.raises(OSError, match='expected room for it, found none'):
        run(folders)


