"""What a sample is, which files an epoch holds, and what is said about files that do not fit."""
import os
import random
import threading

import cv2
import numpy as np
import paddle
import paddleseg.transforms as T
import pytest
from PIL import Image

from common.errors import FileError, UserError
from datasets.cityscapes_autolabeling import CityscapesAutolabeling
from datasets.sampling import EpochStream
from tests.conftest import PATIENCE

FINE_TOOL = 'python tools/convert_cityscapes.py --cityscapes_path '
COARSE_TOOL = 'python tools/convert_cityscapes_autolabeling.py --dataset_root '


def random_transforms():
    """The augmentation of the Cityscapes experiments, with a crop that fits the toy images."""
    return [T.ResizeStepScaling(0.5, 2.0, 0), T.RandomPaddingCrop((48, 24)), T.RandomHorizontalFlip(),
            T.RandomDistort(brightness_range=0.25, contrast_range=0.25, saturation_range=0.25, hue_range=63),
            T.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])]


def assert_same(first, second):
    assert first.keys() == second.keys()
    for key in first:
        np.testing.assert_array_equal(np.asarray(first[key]), np.asarray(second[key]))


# What a sample is

def test_training_sample(cityscapes):
    dataset = CityscapesAutolabeling([T.Normalize(mean=[0.5] * 3, std=[0.25] * 3)], cityscapes.root)
    assert (dataset.NUM_CLASSES, dataset.IGNORE_INDEX, dataset.IMG_CHANNELS) == (19, 255, 3)
    assert (dataset.num_classes, dataset.ignore_index, dataset.mode) == (19, 255, 'train')
    assert dataset.labels.names[13] == 'car'
    for index, (image_path, label_path) in enumerate(dataset.file_list):
        sample = dataset[index]
        rgb = np.array(Image.open(image_path), np.float64)
        np.testing.assert_allclose(sample['img'], ((rgb / 255 - 0.5) / 0.25).transpose(2, 0, 1),
                                   atol=8 * 2**-23)  # of values up to 2: a half bit in each of three steps, times 4
        np.testing.assert_array_equal(sample['label'], np.array(Image.open(label_path)))
        assert sample.keys() == {'img', 'label'}
        assert sample['img'].dtype == np.float32 and sample['img'].flags.c_contiguous
        assert sample['label'].dtype == np.int64


def test_image_and_label_are_transformed_together(cityscapes):
    name = 'leftImg8bit/train/aachen/aachen_000000_000019_leftImg8bit.png'
    label = np.zeros((32, 64), np.uint8)
    label[8:20, 10:30] = 7
    cityscapes.write(name, np.repeat(label[..., None] * 20, 3, axis=2))
    cityscapes.write('gtFine/train/aachen/aachen_000000_000019_gtFine_labelTrainIds.png', label)
    transforms = [T.RandomPaddingCrop((24, 16)), T.RandomHorizontalFlip()]
    dataset = CityscapesAutolabeling(transforms, cityscapes.root)
    samples = [dataset[(epoch, 0)] for epoch in range(8)]
    for sample in samples:
        np.testing.assert_array_equal(sample['img'], np.repeat(sample['label'][None] * 20, 3, axis=0))
    assert len({sample['label'].tobytes() for sample in samples}) > 1


def test_validation_label_is_untransformed(cityscapes):
    dataset = CityscapesAutolabeling([T.Resize((32, 16)), T.Normalize()], cityscapes.root, mode='val', add_val=True)
    assert len(dataset) == 2
    sample = dataset[1]
    assert sample.keys() == {'img', 'label', 'trans_info'}
    assert sample['img'].shape == (3, 16, 32)
    assert sample['trans_info'] == [('resize', (32, 64))]
    assert sample['label'].dtype == np.int64
    np.testing.assert_array_equal(sample['label'], np.array(Image.open(dataset.file_list[1][1])))


def test_test_mode_needs_no_labels(cityscapes):
    dataset = CityscapesAutolabeling([T.Resize((32, 16))], cityscapes.root, mode='test')
    assert dataset.file_list == [
        (cityscapes.path('leftImg8bit/test/berlin/berlin_000000_000019_leftImg8bit.png'), None)]
    sample = dataset[0]
    assert sample.keys() == {'img', 'trans_info'} and sample['trans_info'] == [('resize', (32, 64))]


def test_index_out_of_range_ends_iteration(cityscapes):
    dataset = CityscapesAutolabeling([], cityscapes.root)
    assert len(list(iter(dataset))) == len(dataset) == 8
    for index in (8, -1, (3, 8)):
        with pytest.raises(IndexError, match=r'expected 0\.\.7; found'):
            dataset[index]


@pytest.mark.parametrize('arguments', [dict(mode='trainval'), dict(coarse_multiple=-1),
                                       dict(coarse_multiple=float('nan')), dict(seed=-1)])
def test_values_out_of_range(cityscapes, arguments):
    name, = arguments
    with pytest.raises(ValueError, match=f'^{name}: expected .*; found '):
        CityscapesAutolabeling([], cityscapes.root, **arguments)


# Which files an epoch holds

def coarse_walk(dataset, epochs):
    return [dataset.files(epoch, index) for epoch in range(epochs) for index in range(len(dataset.file_list),
                                                                                      len(dataset))]


@pytest.mark.parametrize('multiple, per_epoch', [(0, 0), (0.4, 1), (1, 4), (1.5, 6), (3, 12)])
def test_coarse_images_per_epoch(cityscapes, multiple, per_epoch):
    dataset = CityscapesAutolabeling([], cityscapes.root, coarse_multiple=multiple)
    assert len(dataset) == 4 + per_epoch
    assert [dataset.files(5, index) for index in range(4)] == dataset.file_list


@pytest.mark.parametrize('multiple', [0.5, 1, 1.5, 3])
def test_all_coarse_images_are_seen_before_one_repeats(cityscapes, multiple):
    dataset = CityscapesAutolabeling([], cityscapes.root, coarse_multiple=multiple)
    walk = coarse_walk(dataset, 14)
    rounds = [walk[start:start + 7] for start in range(0, len(walk), 7)]
    assert len(rounds) >= 4
    assert all(sorted(one_round) == dataset.coarse_list for one_round in rounds)
    assert walk[:7] != dataset.coarse_list  # in random order


def test_coarse_order_is_the_seed_s(cityscapes):
    walks = [coarse_walk(CityscapesAutolabeling([], cityscapes.root, seed=seed), 4) for seed in (0, 0, 1)]
    assert walks[0] == walks[1] != walks[2]
    later = CityscapesAutolabeling([], cityscapes.root)
    later.seed = 1
    assert coarse_walk(later, 4) == walks[2]
    random.seed(9), np.random.seed(9)  # whatever else a process has drawn
    assert coarse_walk(CityscapesAutolabeling([], cityscapes.root, seed=1), 4) == walks[2]


def test_coarse_sample_is_read_from_its_files(cityscapes):
    dataset = CityscapesAutolabeling([], cityscapes.root)
    image_path, label_path = dataset.files(2, 6)
    assert (image_path, label_path) in dataset.coarse_list
    sample = dataset[(2, 6)]
    np.testing.assert_array_equal(sample['img'], np.array(Image.open(image_path)).transpose(2, 0, 1))
    np.testing.assert_array_equal(sample['label'], np.array(Image.open(label_path)))


def test_no_coarse_files_needed_without_coarse_images(toy):
    toy.fine('train', 'ulm/ulm_000000_000019')
    toy.fine('val', 'munster/munster_000000_000019')
    assert len(CityscapesAutolabeling([], toy.root, coarse_multiple=0)) == 1
    assert len(CityscapesAutolabeling([], toy.root, mode='val')) == 1


def test_add_val(cityscapes):
    dataset = CityscapesAutolabeling([], cityscapes.root, add_val=True)
    assert len(dataset.file_list) == 6
    assert len(dataset) == 12  # coarse images are counted by all fine ones
    val = CityscapesAutolabeling([], cityscapes.root, mode='val').file_list
    assert dataset.file_list[4:] == val
    np.testing.assert_array_equal(dataset[5]['label'], np.array(Image.open(val[1][1])))


# Random numbers

def test_sample_depends_on_seed_epoch_and_index_alone(cityscapes):
    dataset = CityscapesAutolabeling(random_transforms(), cityscapes.root)
    first = dataset[(1, 2)]
    dataset[(0, 3)], random.random(), np.random.random()
    assert_same(dataset[(1, 2)], first)
    dataset.set_epoch(1)
    assert_same(dataset[2], first)
    # One file for all indices: what differs is random alone.
    dataset.file_list = dataset.file_list[:1] * 4
    samples = [dataset[key]['img'].tobytes() for key in [(0, 0), (1, 0), (0, 1), (1, 1)]]
    dataset.seed = 1
    assert len({*samples, dataset[(0, 0)]['img'].tobytes()}) == 5


def test_global_generators_are_left_alone(cityscapes):
    class Broken:
        def __call__(self, data):
            random.random(), np.random.random()
            raise RuntimeError('broken transform')

    random.seed(5), np.random.seed(5)
    expected = random.random(), random.gauss(0, 1), np.random.random(), np.random.normal()
    random.seed(5), np.random.seed(5)
    dataset = CityscapesAutolabeling(random_transforms(), cityscapes.root)
    drawn = [random.random()]
    dataset[0]
    drawn.append(random.gauss(0, 1))
    with pytest.raises(RuntimeError, match='broken transform'):
        CityscapesAutolabeling([Broken()], cityscapes.root)[0]
    drawn.append(np.random.random())
    dataset[(3, 1)]
    drawn.append(np.random.normal())
    assert tuple(drawn) == expected


def test_workers_do_not_change_samples(cityscapes):
    def batches(num_workers):
        dataset = CityscapesAutolabeling(random_transforms(), cityscapes.root, seed=4)
        stream = EpochStream(dataset, batch_size=3, iters=8, seed=4)  # 24 samples: 3 epochs of 8
        loader = paddle.io.DataLoader(dataset, batch_sampler=stream, num_workers=num_workers)
        return [{key: value.numpy() for key, value in batch.items()} for batch in loader]

    # Workers first: where a loader's thread is just ending, a fork may copy a lock it holds, and the worker hangs.
    shared, alone = batches(2), batches(0)
    assert len(alone) == len(shared) == 8
    for one, two in zip(alone, shared):
        assert one['img'].shape == (3, 3, 24, 48) and one['label'].shape == (3, 24, 48)
        assert_same(one, two)


def test_loaders_in_threads_take_turns(cityscapes):
    # A loader without workers reads ahead in a thread; a second one must not draw from its generators.
    dataset = CityscapesAutolabeling(random_transforms(), cityscapes.root)
    expected = [dataset[(0, index)] for index in range(4)]
    for _ in range(10):
        loaders = [paddle.io.DataLoader(dataset, batch_sampler=[[(0, index)] for index in range(4)]) for _ in range(3)]
        for batches in zip(*loaders):
            for batch in batches:
                matches = [np.array_equal(batch['img'].numpy()[0], sample['img']) for sample in expected]
                assert sum(matches) == 1


# Files that do not fit

def fine_label(toy):
    return toy.path('gtFine/train/aachen/aachen_000000_000019_gtFine_labelTrainIds.png')


def read_error(toy, index=0):
    with pytest.raises(ValueError) as caught:
        CityscapesAutolabeling([], toy.root)[index]
    text = str(caught.value)
    assert '\n' not in text
    return text


def values(*extra):
    pixels = np.full((32, 64), 255, np.uint8)
    pixels[0, :len(extra)] = extra
    return pixels


@pytest.mark.parametrize('pixels, expected, found', [
    (values()[:16], '(32, 64)', 'found (16, 64)'),
    (values()[:, :32].repeat(2, axis=0), '(32, 64)', 'found (64, 32)'),
    (np.zeros((32, 64, 3), np.uint8), 'single-channel 8 bit', 'mode RGB'),
    (np.zeros((32, 64, 4), np.uint8), 'single-channel 8 bit', 'mode RGBA'),
    (np.zeros((32, 64), np.uint16), 'single-channel 8 bit', 'mode I'),
    (values(0, 18, 19), '0..18 and 255', 'found 19 (label ids'),
    (values(7, 33, 26), '0..18 and 255', 'found 26, 33 (label ids'),
    (values(33, 34), '0..18 and 255', 'found 33, 34;'),
    (values(254), '0..18 and 255', 'found 254;')])
def test_label_that_does_not_fit(cityscapes, pixels, expected, found):
    assert cv2.imwrite(fine_label(cityscapes), pixels)
    text = read_error(cityscapes)
    assert text.startswith(fine_label(cityscapes) + ': expected ')
    assert expected in text and found in text and f'`{FINE_TOOL}{cityscapes.root}`' in text


def test_coarse_label_names_its_own_tool(cityscapes):
    _, path = CityscapesAutolabeling([], cityscapes.root).files(0, 4)
    assert cv2.imwrite(path, values(33))
    text = read_error(cityscapes, 4)
    assert path in text and f'`{COARSE_TOOL}{cityscapes.root}`' in text and FINE_TOOL not in text


def test_validation_label_is_checked(cityscapes):
    dataset = CityscapesAutolabeling([], cityscapes.root, mode='val')
    assert cv2.imwrite(dataset.file_list[0][1], values(24))
    with pytest.raises(ValueError, match='found 24 '):
        dataset[0]


def test_palette_label_is_its_indices(cityscapes):
    pixels = np.random.default_rng(1).integers(0, 19, (32, 64), dtype=np.uint8)
    image = Image.fromarray(pixels)
    image.putpalette(list(range(255, -1, -1)) * 3)
    image.save(fine_label(cityscapes))
    assert Image.open(fine_label(cityscapes)).mode == 'P'
    np.testing.assert_array_equal(CityscapesAutolabeling([], cityscapes.root)[0]['label'], pixels)


def corrupt(path, how):
    with open(path, 'rb') as file:
        content = file.read()
    middle = len(content) // 2
    content = {'truncated': content[:middle], 'empty': b'', 'text': b'<html>404</html>',
               'flipped': content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1:]}[how]
    with open(path, 'wb') as file:
        file.write(content)


@pytest.mark.parametrize('how', ['truncated', 'empty', 'text', 'flipped'])
def test_corrupt_label(cityscapes, how):
    corrupt(fine_label(cityscapes), how)
    text = read_error(cityscapes)
    assert text.startswith(fine_label(cityscapes)) and 'decoded' in text and FINE_TOOL in text


@pytest.mark.parametrize('how', ['truncated', 'empty', 'text', 'flipped'])
def test_corrupt_image(cityscapes, how):
    path = cityscapes.path('leftImg8bit/train/aachen/aachen_000000_000019_leftImg8bit.png')
    corrupt(path, how)
    text = read_error(cityscapes)
    assert text.startswith(path) and f'found {os.path.getsize(path)} bytes that cannot be decoded' in text


def test_file_that_is_gone(cityscapes):
    dataset = CityscapesAutolabeling([], cityscapes.root)
    os.remove(dataset.file_list[0][0])
    with pytest.raises(FileError, match=r'aachen_000000_000019_leftImg8bit\.png'):
        dataset[0]


def test_error_in_a_worker_names_the_file(cityscapes, monkeypatch):
    # Paddle raises it in a thread of its own; the main one is told no more than that a queue was killed.
    assert cv2.imwrite(fine_label(cityscapes), values(33))
    text = read_error(cityscapes)
    errors, arrived = [], threading.Event()

    def hook(arguments):
        errors.append((arguments.exc_type, str(arguments.exc_value)))
        arrived.set()

    monkeypatch.setattr(threading, 'excepthook', hook)
    dataset = CityscapesAutolabeling([], cityscapes.root)
    with pytest.raises(SystemError):
        list(paddle.io.DataLoader(dataset, batch_sampler=[[(0, 0), (0, 1)]], num_workers=2))
    assert arrived.wait(timeout=PATIENCE)
    (kind, message), = errors
    assert kind is UserError and text in message
