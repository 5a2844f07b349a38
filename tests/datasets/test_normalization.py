"""Normalize put off until the device has the image, against PaddleSeg's Normalize at its place: the same bits."""
import cv2
import numpy as np
import paddle
import paddleseg.datasets
import paddleseg.transforms as T
import pytest

from datasets.cityscapes_autolabeling import CityscapesAutolabeling
from datasets.normalization import Normalization, compact_label, put_off
from datasets.paddleseg_dataset import PaddleSegDataset, adapted

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
CROP, DISTORT = T.RandomPaddingCrop((48, 24)), T.RandomDistort(0.25, 1, 0.25, 1, 0.25, 1, 63, 1)
RECIPE = [T.ResizeStepScaling(0.5, 2.0, 0), CROP, T.RandomHorizontalFlip(), DISTORT]


class AtItsPlace(T.Normalize):
    """Not put off, as it is not PaddleSeg's class itself."""


def same(one, other):
    return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()


@pytest.mark.parametrize('mean, std', [(MEAN, STD), ([0.5], [0.5]), ([0.28689554, 0.32513303, 0.28389177],
                                                                    [0.18696375, 0.19017339, 0.18720214])])
def test_every_value_of_8_bits(mean, std):
    values = np.random.default_rng(0).permutation(np.repeat(np.arange(256), 3 * 6)).reshape(24, 64, 3)
    assert all(len(np.unique(values[..., i])) == 256 for i in range(3))
    image = values.astype(np.float32)
    expected = np.ascontiguousarray(T.Normalize(mean, std)({'img': image.copy()})['img'].transpose(2, 0, 1))
    normalization = Normalization(T.Normalize(mean, std))
    small = normalization.compact(image.transpose(2, 0, 1))
    assert small.dtype == np.uint8 and small.flags.c_contiguous
    assert same(normalization.on_host(small), expected)
    batch = paddle.to_tensor(np.stack([small, small[:, ::-1]]))
    found = normalization.on_device(batch).numpy()
    assert same(found[0], expected) and same(found[1], np.ascontiguousarray(expected[:, ::-1]))


@pytest.mark.parametrize('value', [0.5, -1, 256, np.nan, np.inf])
def test_one_other_value_and_the_image_is_normalised_at_once(value):
    image = np.full([8, 8, 3], 7, np.float32)
    image[3, 5, 1] = value
    expected = T.Normalize(MEAN, STD)({'img': image.copy()})['img'].transpose(2, 0, 1)
    normalization = Normalization(T.Normalize(MEAN, STD))
    found = normalization.compact(image.transpose(2, 0, 1))
    assert same(found, np.ascontiguousarray(expected)) and normalization.on_host(found) is found
    assert normalization.on_device(paddle.to_tensor(found)).numpy().tobytes() == found.tobytes()


def test_only_a_normalize_at_the_end_is_put_off():
    normalize = T.Normalize()
    assert put_off([]) == ([], None) and put_off([normalize, CROP]) == ([normalize, CROP], None)
    given = [CROP, normalize]
    left, normalization = put_off(given)
    assert left == [CROP] and isinstance(normalization, Normalization) and given == [CROP, normalize]
    other = AtItsPlace()
    assert put_off([other]) == ([other], None)


BEFORE = {  # transforms before Normalize, and which images they leave in 8 bits
    'nothing': ([], 'all'), 'the recipe': (RECIPE, 'all'),
    'no distortion': ([T.ResizeStepScaling(1.1, 2.0, 0), *RECIPE[1:3]], 'none'),
    'crop and flip': ([T.RandomPaddingCrop((32, 24)), T.RandomHorizontalFlip()], 'all'),
    'padding': ([T.RandomPaddingCrop((80, 40))], 'none'), 'integer padding': ([T.Padding((80, 40), 127)], 'all'),
    'rotation': ([T.RandomRotation()], 'none'), 'affine': ([T.RandomAffine((48, 24))], 'all'),
    'scale and pad': ([T.ScalePadding((48, 48))], 'all'), 'blur': ([T.RandomBlur(1.0)], 'all'),
    'noise': ([T.RandomNoise(0.5)], 'some'), 'aspect': ([T.RandomScaleAspect(), CROP], 'any'),
    'distortion, then resizing': ([DISTORT, T.Resize((48, 24))], 'none')}


@pytest.mark.parametrize('kind', ['ours', 'theirs'])
@pytest.mark.parametrize('name', BEFORE)
def test_samples_are_those_of_normalize_at_its_place(cityscapes, name, kind):
    before, expected = BEFORE[name]
    if (name, kind) == ('scale and pad', 'theirs'):
        pytest.skip('PaddleSeg interpolates labels there: they are no classes any more')
    cityscapes.fine('train', *(f'ulm/ulm_00000{i}_000019' for i in range(2, 6)))

    def dataset(normalize):
        transforms = [*before, normalize(MEAN, STD)]
        if kind == 'ours':
            return CityscapesAutolabeling(transforms, cityscapes.root, seed=5)
        whole = PaddleSegDataset(paddleseg.datasets.Cityscapes(transforms, cityscapes.root, 'train'), seed=5)
        assert PaddleSegDataset(paddleseg.datasets.Cityscapes(transforms, cityscapes.root, 'train')).normalization or (
            normalize is AtItsPlace)
        return whole

    put_off_one, whole = dataset(T.Normalize), dataset(AtItsPlace)
    assert whole.normalization is None
    small = []
    for index in range(len(whole)):  # ours: fine, then coarse
        sample, theirs = put_off_one[(2, index)], whole[(2, index)]
        assert sample.keys() == theirs.keys() and all(same(sample[key], theirs[key]) for key in sample)
        assert sample['img'].dtype == np.float32 and sample['label'].dtype == np.int64
        assert sample['img'].flags.c_contiguous
        compact = put_off_one.compact((2, index))
        small.append(compact['img'].dtype == np.uint8)
        assert compact['label'].dtype == np.uint8 and np.array_equal(compact['label'], sample['label'])
    assert len(small) == (16 if kind == 'ours' else 8)
    found = 'all' if all(small) else 'some' if any(small) else 'none'
    assert expected in ('any', found)


@pytest.mark.parametrize('mode', ['val', 'test'])
def test_the_other_modes(cityscapes, mode):
    transforms = [T.Resize((32, 16))]
    one, whole = (CityscapesAutolabeling([*transforms, normalize(MEAN, STD)], cityscapes.root, mode)
                  for normalize in (T.Normalize, AtItsPlace))
    assert same(one[0]['img'], whole[0]['img']) and one[0]['trans_info'] == whole[0]['trans_info']
    assert one[0].keys() == whole[0].keys()


def test_the_callers_dataset_still_normalises(toy):
    theirs = paddleseg.datasets.Dataset('test', toy.root, [T.Normalize(MEAN, STD)], 19,
                                        test_path=_list(toy, np.arange(144).reshape(6, 8, 3)))
    before = theirs[0]['img']
    assert [same(adapted(theirs)[0]['img'], before.astype(np.float32)) for _ in range(2)] == [True, True]
    assert same(theirs[0]['img'], before)


def test_a_dataset_that_does_more_than_its_transforms_keeps_its_normalize(toy):
    class Swapped(paddleseg.datasets.Dataset):
        def __getitem__(self, index):
            data = super().__getitem__(index)
            return {**data, 'img': data['img'][::-1]}  # another order of channels after Normalize

    path = _list(toy, np.arange(144).reshape(6, 8, 3))
    plain, swapped = (kind('test', toy.root, [T.Normalize(MEAN, STD)], 19, test_path=path)
                      for kind in (paddleseg.datasets.Dataset, Swapped))
    assert adapted(swapped).normalization is None
    assert np.array_equal(adapted(swapped)[0]['img'], adapted(plain)[0]['img'][::-1])


def test_grey_images_of_one_channel_are_normalised_at_once(toy):
    path = _list(toy, np.arange(48).reshape(6, 8))
    dataset = adapted(paddleseg.datasets.Dataset('test', toy.root, [T.Normalize()], 19, 1, test_path=path))
    expected = ((np.arange(48, dtype=np.float32) / 255 - 0.5) / 0.5).reshape(1, 6, 8)
    assert dataset.compact(0)['img'].dtype == np.float32 and np.array_equal(dataset[0]['img'], expected)


def _list(toy, pixels):
    """The path of a list of one image with these pixels."""
    cv2.imwrite(toy.write('images/a.png', pixels.astype(np.uint8)), pixels.astype(np.uint8))
    with open(toy.path('list.txt'), 'w') as file:
        file.write('images/a.png\n')
    return toy.path('list.txt')


@pytest.mark.parametrize('values, dtype', [([0, 255], np.uint8), ([-1, 3], np.int64), ([0, 256], np.int64),
                                           ([-1, 300], np.int64)])
def test_labels_that_fit_in_8_bits(values, dtype):
    label = np.array([values])
    assert compact_label(label).dtype == dtype and np.array_equal(compact_label(label), label)
    if dtype == np.uint8:
        small = label.astype(np.uint8)
        assert compact_label(small) is small
