"""Images and labels are paired by city and name; whatever has no partner is named."""
import os

import cv2
import numpy as np
import pytest

from datasets.cityscapes_autolabeling import CityscapesAutolabeling

FINE_TOOL = 'python tools/convert_cityscapes.py --cityscapes_path '
COARSE_TOOL = 'python tools/convert_cityscapes_autolabeling.py --dataset_root '


def error(root, **arguments):
    with pytest.raises(ValueError) as caught:
        CityscapesAutolabeling([], root, **arguments)
    return str(caught.value)


def fine_label(toy, name, split='train'):
    return toy.path(f'gtFine/{split}/{name}_gtFine_labelTrainIds.png')


def test_pairs_have_one_name(cityscapes):
    dataset = CityscapesAutolabeling([], cityscapes.root)
    assert dataset.file_list == [
        (cityscapes.path(f'leftImg8bit/train/{city}/{city}_00000{i}_000019_leftImg8bit.png'),
         fine_label(cityscapes, f'{city}/{city}_00000{i}_000019')) for city in ('aachen', 'ulm') for i in range(2)]
    assert [(os.path.relpath(image, cityscapes.path('leftImg8bit_trainextra/leftImg8bit/train_extra')),
             os.path.relpath(label, cityscapes.path('convert_autolabelled'))) for image, label in dataset.coarse_list] \
        == [(name, name) for name in [f'bamberg/bamberg_000000_{i:06d}_leftImg8bit.png' for i in range(4)]
            + [f'mainz/mainz_000000_{i:06d}_leftImg8bit.png' for i in range(3)]]


def test_missing_label(cityscapes):
    os.remove(fine_label(cityscapes, 'ulm/ulm_000000_000019'))
    summary, *names = error(cityscapes.root).split('\n')
    assert '1 of 4 images without label' in summary and 'without image' not in summary
    assert FINE_TOOL + cityscapes.root in summary
    assert names == ['  ulm/ulm_000000_000019: no label']


def test_label_without_image(cityscapes):
    cityscapes.label('gtFine/val/munster/munster_000009_000019_gtFine_labelTrainIds.png')
    summary, *names = error(cityscapes.root, mode='val').split('\n')
    assert '1 labels without image' in summary and 'without label' not in summary
    assert names == ['  munster/munster_000009_000019: no image']


def test_same_number_of_wrong_partners(cityscapes):
    # As many labels as images, so lists paired by position would train on the wrong labels.
    os.rename(fine_label(cityscapes, 'aachen/aachen_000000_000019'),
              fine_label(cityscapes, 'aachen/aachen_000007_000019'))
    summary, *names = error(cityscapes.root).split('\n')
    assert '1 of 4 images without label and 1 labels without image' in summary
    assert names == ['  aachen/aachen_000000_000019: no label', '  aachen/aachen_000007_000019: no image']


def test_label_in_another_city_is_no_partner(cityscapes):
    os.rename(fine_label(cityscapes, 'aachen/aachen_000000_000019'),
              fine_label(cityscapes, 'ulm/aachen_000000_000019'))
    assert error(cityscapes.root).split('\n')[1:] == ['  aachen/aachen_000000_000019: no label',
                                                      '  ulm/aachen_000000_000019: no image']


def test_same_stem_in_two_cities(toy):
    toy.fine('val', 'aachen/frame_1', 'ulm/frame_1')
    dataset = CityscapesAutolabeling([], toy.root, mode='val')
    assert [[os.path.basename(os.path.dirname(path)) for path in pair] for pair in dataset.file_list] \
        == [['aachen', 'aachen'], ['ulm', 'ulm']]


def test_first_ten_of_many(toy):
    names = [f'ulm/ulm_{i:06d}_000019' for i in range(12)]
    toy.fine('train', *names)
    for name in names[:11]:
        os.remove(fine_label(toy, name))
    summary, *listed = error(toy.root, coarse_multiple=0).split('\n')
    assert '11 of 12 images' in summary
    assert listed == [f'  {name}: no label' for name in names[:10]]


def test_missing_coarse_label(cityscapes):
    os.remove(cityscapes.path('convert_autolabelled/mainz/mainz_000000_000001_leftImg8bit.png'))
    summary, *names = error(cityscapes.root).split('\n')
    assert COARSE_TOOL + cityscapes.root in summary and 'coarse_multiple: 0' in summary
    assert names == ['  mainz/mainz_000000_000001: no label']


def test_missing_label_of_added_val(cityscapes):
    os.remove(fine_label(cityscapes, 'munster/munster_000000_000019', 'val'))
    assert error(cityscapes.root, add_val=True).split('\n')[1:] == ['  munster/munster_000000_000019: no label']
    CityscapesAutolabeling([], cityscapes.root)


@pytest.mark.parametrize('folder, mode, fix', [
    ('leftImg8bit/train', 'train', 'leftImg8bit_trainvaltest.zip'), ('gtFine', 'val', FINE_TOOL),
    ('leftImg8bit_trainextra', 'train', 'leftImg8bit_trainextra.zip'), ('convert_autolabelled', 'train', COARSE_TOOL)])
def test_missing_folder(cityscapes, folder, mode, fix):
    os.rename(cityscapes.path(folder), cityscapes.path('moved'))
    text = error(cityscapes.root, mode=mode)
    assert text.startswith(cityscapes.path(folder)) and '\n' not in text
    assert f'found only {os.path.dirname(cityscapes.path(folder))} with ' in text  # ... and what is in it:
    assert ('moved' in text) == ('/' not in folder)
    assert fix in text


def test_missing_root(tmp_path):
    text = error(str(tmp_path / 'nowhere' / 'cityscapes'))
    assert f'found only {tmp_path} with nothing in it' in text and 'dataset_root' in text and '\n' not in text


def test_empty_split(cityscapes):
    os.makedirs(cityscapes.path('leftImg8bit/empty'))
    os.rename(cityscapes.path('leftImg8bit/test'), cityscapes.path('leftImg8bit/gone'))
    os.rename(cityscapes.path('leftImg8bit/empty'), cityscapes.path('leftImg8bit/test'))
    text = error(cityscapes.root, mode='test')
    assert text.startswith(cityscapes.path('leftImg8bit/test')) and 'found none' in text and '\n' not in text


@pytest.mark.parametrize('root', ['città di Köln', 'set [1] {fine} *'])
def test_unusual_names(toy, root):
    toy.root = toy.path(root)
    toy.fine('val', 'città/città_000000_000019', '東京/東京_000000_000019')
    dataset = CityscapesAutolabeling([], toy.root, mode='val')
    assert [os.path.basename(image) for image, _ in dataset.file_list] \
        == ['città_000000_000019_leftImg8bit.png', '東京_000000_000019_leftImg8bit.png']
    assert [dataset[i]['label'].shape for i in range(2)] == [(32, 64)] * 2
    os.remove(dataset.file_list[0][1])
    assert f'{FINE_TOOL}{toy.root}`' in error(toy.root, mode='val')


@pytest.mark.parametrize('suffix', ['.jpg', '.jpeg'])
def test_jpeg_images(cityscapes, suffix):
    path = cityscapes.path('leftImg8bit/val/munster/munster_000001_000019_leftImg8bit.png')
    pixels = cv2.imread(path)
    os.remove(path)
    cityscapes.write(os.path.relpath(path, cityscapes.root)[:-4] + suffix, pixels)
    dataset = CityscapesAutolabeling([], cityscapes.root, mode='val')
    assert [os.path.basename(image) for image, _ in dataset.file_list] == [
        'munster_000000_000019_leftImg8bit.png', f'munster_000001_000019_leftImg8bit{suffix}']
    assert [os.path.basename(label) for _, label in dataset.file_list] == [
        f'munster_00000{i}_000019_gtFine_labelTrainIds.png' for i in range(2)]
    np.testing.assert_array_equal(dataset[1]['img'], cv2.imread(path[:-4] + suffix)[..., ::-1].transpose(2, 0, 1))


def test_an_image_in_png_and_jpeg(cityscapes):
    path = cityscapes.path('leftImg8bit/val/munster/munster_000001_000019_leftImg8bit.png')
    cityscapes.write(os.path.relpath(path, cityscapes.root)[:-4] + '.jpg', cv2.imread(path))
    assert error(cityscapes.root, mode='val') == (
        f'{cityscapes.path("leftImg8bit/val")}: expected one file for munster/munster_000001_000019; found '
        'munster_000001_000019_leftImg8bit.png and munster_000001_000019_leftImg8bit.jpg; delete all but one')
