"""Folders of images and masks become a data set: what is written against the pixels drawn here, and what is refused."""
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

from common.config import Config
from datasets.description import describe
from datasets.labels import CITYSCAPES
from datasets.pairing import FINE, find_pairs
from tests.conftest import ROOT
from tests.tools.folders import (
    COLORS,
    FILES,
    NAMES,
    RGB,
    SIZE,
    TRAIN_ID,
    VALUES,
    check_labels,
    draw,
    label,
    refusal,
    run,
    save,
    table,
    values,
    written,
)
from tools import prepare_folder
from tools.own_data.pairs import pair_files, split_by_lists

# ---------------------------------------------------------------- what is written

def test_the_tree_the_labels_and_the_description(folders, verified, capsys):
    assert run(folders, '--base_config', ROOT / 'configs/toy.yml') == 0
    check_labels(folders)
    assert verified == [(str(folders / 'out'), 1)]
    out = capsys.readouterr().out
    assert '8 prepared, 0 already up to date, 0 failed' in out
    assert out.endswith(f'next: python train.py --config {folders}/out/train.yml --do_eval --save_dir output/out\n')
    found = describe(str(folders / 'out'))
    assert found.name == 'out' and found.labels.names == ('road', 'lane marking') and found.labels.ignore_index == 255
    assert found.labels.palette[0] == CITYSCAPES.palette[0] and found.labels.palette[1] not in CITYSCAPES.palette
    pairs = {split: find_pairs(str(folders / 'out'), FINE, split) for split in ('train', 'val')}
    assert found.images == {split: len(pairs[split]) for split in pairs} and sum(found.images.values()) == 8
    for split in pairs:
        for image, _ in pairs[split]:
            source = folders / 'images' / next(
                f'{name}{suffix}' for name, suffix in FILES.items()
                if name.replace('/', '_').endswith(Path(image).name.split('_leftImg8bit')[0]))
            if source.suffix == '.bmp':  # no layout has it, so it becomes PNG
                np.testing.assert_array_equal(cv2.imread(image), cv2.imread(str(source)))
                assert image.endswith('.png')
            else:
                assert Path(image).read_bytes() == source.read_bytes()
                assert image.endswith('_leftImg8bit.png' if source.suffix == '.png' else '_leftImg8bit.jpg')
    assert {path.name for path in folders.glob('out/leftImg8bit/*/*')} == {'images', 'drive', 'drive_deep', 'città'}


@pytest.mark.parametrize('mode', ['RGB', 'RGBA', 'P'])
def test_masks_of_colours(folders, mode):
    for i, name in enumerate(NAMES):
        pixels = values(i)
        if mode == 'P':
            save(folders / f'masks/{name}.png', pixels, table(RGB).tobytes())
        else:
            colors = table(RGB)[pixels]
            alpha = np.full((*SIZE, 1), 255, np.uint8)
            save(folders / f'masks/{name}.png', np.concatenate([colors, alpha], 2) if mode == 'RGBA' else colors)
    (folders / 'classes.yml').write_text(COLORS)
    assert run(folders) == 0
    check_labels(folders)
    assert describe(str(folders / 'out')).labels.palette == ((128, 64, 128), (255, 204, 0))


def test_palette_masks_are_indices_where_the_mapping_has_values(folders):
    for i, name in enumerate(NAMES):
        save(folders / f'masks/{name}.png', values(i), table(RGB).tobytes())
    assert run(folders) == 0
    check_labels(folders)


def test_one_bit_masks(folders):
    for i, name in enumerate(NAMES):
        save(folders / f'masks/{name}.png', values(i) == 3)
    (folders / 'classes.yml').write_text('0: background\n1: road\n')
    assert run(folders) == 0
    np.testing.assert_array_equal(label(folders, 'images/one'), (values(0) == 3).astype(np.uint8))


def test_masks_beside_the_images(folders):
    for name in NAMES:
        os.rename(folders / f'masks/{name}.png', folders / f'images/{name}_mask.png')
    assert 'the same folder' in refusal(folders, '--masks', folders / 'images')
    assert run(folders, '--masks', folders / 'images', '--mask_suffix', '_mask') == 0
    check_labels(folders)


def test_masks_in_a_folder_within_that_of_the_images(folders):
    os.rename(folders / 'masks', folders / 'images/masks')
    assert run(folders, '--masks', folders / 'images/masks') == 0
    check_labels(folders)
    assert not list(folders.glob('out/leftImg8bit/*/masks*'))


def test_symbolic_links(folders):
    os.rename(folders / 'images/drive', folders / 'elsewhere')
    (folders / 'images/drive').symlink_to(folders / 'elsewhere')
    (folders / 'elsewhere/circle').symlink_to(folders / 'images')
    os.rename(folders / 'images/one.jpg', folders / 'first')
    (folders / 'images/one.jpg').symlink_to(folders / 'first')
    assert run(folders) == 0
    check_labels(folders)
    assert not [path for path in folders.glob('out/**/*') if path.is_symlink()]


def test_names_in_two_normal_forms_are_one(folders):
    """macOS stores à as a and an accent."""
    os.rename(folders / 'masks/città', folders / 'masks/citta\u0300')
    assert run(folders) == 0
    check_labels(folders)


def test_hidden_files_are_not_looked_at(folders):
    (folders / 'images/._one.jpg').write_bytes(b'AppleDouble')
    (folders / 'masks/.DS_Store').write_bytes(b'')
    assert run(folders) == 0
    assert describe(str(folders / 'out')).images == {'train': len(list(folders.glob('out/gtFine/train/*/*'))),
                                                     'val': len(list(folders.glob('out/gtFine/val/*/*')))}


# ---------------------------------------------------------------- once more

def times(folder):
    return {name: path.stat().st_mtime_ns for name, path in written(folder).items()}


def test_second_run_writes_nothing(folders, capsys):
    run(folders)
    before = times(folders)
    assert run(folders) == 0
    assert times(folders) == before
    assert '0 prepared, 8 already up to date, 0 failed' in capsys.readouterr().out


def test_changed_and_added_files_are_done_and_nothing_else(folders, capsys):
    run(folders)
    before = times(folders)
    later = os.stat(folders / 'out/mapping.yml').st_mtime + 10
    save(folders / 'masks/one.png', values(50))
    os.utime(folders / 'masks/one.png', (later, later))
    draw(folders / 'images/drive/new.jpg')
    save(folders / 'masks/drive/new.png', values(51))
    assert run(folders) == 0
    assert '2 prepared, 7 already up to date, 0 failed' in capsys.readouterr().out
    changed = {name for name, time in times(folders).items() if before.get(name) != time}
    assert {name.rsplit('/', 1)[-1] for name in changed} == {
        'one_leftImg8bit.jpg', 'one_gtFine_labelTrainIds.png', 'new_leftImg8bit.jpg', 'new_gtFine_labelTrainIds.png',
        'dataset.yml'}
    np.testing.assert_array_equal(label(folders, 'images/one'), np.vectorize(TRAIN_ID.get)(values(50)))
    assert sum(describe(str(folders / 'out')).images.values()) == 9


def test_an_image_of_another_length_is_another_one_however_old(folders, capsys):
    run(folders)
    draw(folders / 'images/one.jpg', 99)
    os.utime(folders / 'images/one.jpg', (0, 0))
    assert run(folders) == 0
    assert '1 prepared, 7 already up to date' in capsys.readouterr().out


def test_a_damaged_label_is_made_again(folders, capsys):
    run(folders)
    path = sorted(folders.glob('out/gtFine/*/images/one_*'))[0]
    path.write_bytes(b'')
    assert run(folders) == 0
    assert '1 prepared, 7 already up to date' in capsys.readouterr().out
    check_labels(folders)


def test_another_mapping_of_the_same_names_makes_all_labels_again(folders, capsys):
    run(folders)
    (folders / 'classes.yml').write_text(VALUES.replace('7: road', '7: void'))
    os.utime(folders / 'classes.yml', (0, 0))  # older than the labels, as another file may be
    assert run(folders) == 0
    assert '8 prepared, 0 already up to date' in capsys.readouterr().out
    np.testing.assert_array_equal(label(folders, 'images/one'), np.vectorize({**TRAIN_ID, 7: 255}.get)(values(0)))


def test_an_interrupted_run_continues(folders, monkeypatch, capsys):
    real, seen = prepare_folder.prepare, []

    def interrupted(job, *args, **kwargs):
        if len(seen) == 3:
            raise KeyboardInterrupt
        seen.append(job)
        return real(job, *args, **kwargs)

    monkeypatch.setattr(prepare_folder, 'prepare', interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(folders)
    assert describe(str(folders / 'out')).labels.num_classes == 2  # never to be taken for Cityscapes
    monkeypatch.setattr(prepare_folder, 'prepare', real)
    assert run(folders) == 0
    assert '5 prepared, 3 already up to date, 0 failed' in capsys.readouterr().out
    check_labels(folders)


def test_another_data_set_is_not_mixed_in(folders):
    run(folders)
    (folders / 'classes.yml').write_text(VALUES.replace('road', 'street'))
    message = refusal(folders)
    assert message == (f'{folders / "out/dataset.yml"}: expected the classes of the mapping, street, lane marking (2), '
                       'found road, lane marking (2); choose another --out or delete that folder')


def test_another_split_is_not_mixed_in(folders):
    run(folders)
    assert 'expected nothing but what this command makes, found' in refusal(folders, '--seed', 5)
    os.remove(folders / 'images/one.jpg')
    os.remove(folders / 'masks/one.png')
    message = refusal(folders)
    assert 'found 2 other files like ' in message and 'images/one_' in message


def test_what_was_changed_by_hand_stays(folders, capsys):
    run(folders)
    for name, old, new in (('train.yml', 'coarse_multiple: 0', 'coarse_multiple: 0, class_uniform: 0.5'),
                           ('dataset.yml', 'name: out', 'name: my streets')):
        path = folders / 'out' / name
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))
    draw(folders / 'images/new.jpg')
    save(folders / 'masks/new.png', values())
    assert run(folders) == 0
    assert 'class_uniform: 0.5' in (folders / 'out/train.yml').read_text()
    assert f'{folders / "out/train.yml"}: kept, though it differs' in capsys.readouterr().out
    found = describe(str(folders / 'out'))
    assert found.name == 'my streets' and sum(found.images.values()) == 9


def test_several_processes(folders):
    assert run(folders, '--num_workers', 2) == 0
    check_labels(folders)


# ---------------------------------------------------------------- the config

def config(folder):
    return Config(folder / 'out/train.yml').dic


def test_config_of_the_recipe_for_small_images(folders, monkeypatch):
    """What differs from the recipe: data, no coarse set, the crop, min_K, a new classifier. Nothing else."""
    assert run(folders, split=['train=1']) == 0
    assert yaml.safe_load((folders / 'out/train.yml').read_text())['_base_'] == os.path.relpath(
        ROOT / 'configs/mscale_ocr_cityscapes_autolabel_mapillary.yml', folders / 'out')
    found, base = config(folders), Config(prepare_folder.BASE).dic
    base['model']['fresh_head'] = True
    for section in ('train_dataset', 'val_dataset'):
        base[section]['dataset_root'] = str(folders / 'out')
    base['train_dataset']['coarse_multiple'] = 0
    base['train_dataset']['transforms'][1]['crop_size'] = [32, 16]  # of images of 40 x 24, in steps of 16
    for loss in base['loss']['types'][4:]:
        loss['min_K'] = 26  # 5% of 32 x 16
    assert found == base


def test_the_crop_is_not_larger_than_the_smallest_training_image_nor_than_the_base(folders):
    draw(folders / 'images/one.jpg', 0, (150, 100))
    save(folders / 'masks/one.png', values(0, (150, 100)))
    (folders / 'train.txt').write_text('one\n')
    (folders / 'val.txt').write_text('two\n')
    lists = '--lists', folders / 'train.txt', folders / 'val.txt'
    assert run(folders, *lists, '--base_config', ROOT / 'configs/toy.yml', split=None) == 0
    dic = config(folders)
    assert dic['train_dataset']['transforms'][1]['crop_size'] == [96, 96]
    assert dic['loss']['types'][7]['min_K'] == 461 and 'fresh_head' not in dic['model']
    os.remove(folders / 'out/train.yml')
    assert run(folders, *lists, '--base_config', ROOT / 'configs/toy.yml', split=None) == 0  # all up to date now
    assert config(folders) == dic


def test_config_of_a_base_that_fits_and_states_the_classes(folders, capsys):
    base = folders / 'base.yml'
    base.write_text(f'_base_: {ROOT}/configs/toy.yml\nmodel: {{num_classes: 19}}\n'
                    'train_dataset: {transforms: [{type: RandomPaddingCrop, crop_size: [32, 16]}]}\n')
    assert run(folders, '--base_config', base) == 0
    found = yaml.safe_load((folders / 'out/train.yml').read_text())
    assert found == {'_base_': '../base.yml', 'model': {'num_classes': 2},
                     'train_dataset': {'dataset_root': str(folders / 'out'), 'coarse_multiple': 0},
                     'val_dataset': {'dataset_root': str(folders / 'out')}}


def test_a_link_as_out(folders):
    (folders / 'disk').mkdir()
    (folders / 'out').symlink_to(folders / 'disk')
    assert run(folders) == 0
    assert config(folders)['train_dataset']['dataset_root'] == str(folders / 'out')


def test_pairs_by_hand(folders):
    pairs = pair_files(folders / 'images', folders / 'masks')
    assert list(pairs) == sorted(NAMES)
    assert pairs['drive/deep/four'] == (folders / 'images/drive/deep/four.jpg', folders / 'masks/drive/deep/four.png')
    (folders / 'train.txt').write_text('one\n')
    assert split_by_lists(pairs, [folders / 'train.txt'], folders / 'images') == {'one': 'train'}
