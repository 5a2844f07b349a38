"""Class-uniform crops: where the classes are, which of them an epoch shows, and that the crop shows them."""
import glob
import logging
import os
import re
import shutil
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import paddle
import paddleseg.transforms as T
import pytest
from PIL import Image

from datasets import cityscapes_autolabeling, class_uniform
from datasets.cityscapes_autolabeling import CityscapesAutolabeling
from datasets.class_uniform import ClassUniformOrder, KeepCentroid, class_centroids
from datasets.sampling import EpochStream

VOID = 255


def transforms(crop=(48, 24)):
    """The geometry of the Cityscapes experiments; crop is (w, h), the image's padding 0."""
    return [T.ResizeStepScaling(0.5, 2.0, 0), T.RandomPaddingCrop(crop, im_padding_value=0), T.RandomHorizontalFlip()]


def dataset_of(toy, share=0.5, operations=None, **arguments):
    return CityscapesAutolabeling(operations or transforms(), toy.root, class_uniform=share, **arguments)


def write_fine(toy, labels, image=None):
    """A fine training set of these labels; image: BGR for all of them, or random ones."""
    for i, label in enumerate(labels):
        name = f'ulm/ulm_{i:06d}_000019'
        toy.write(f'gtFine/train/{name}_gtFine_labelTrainIds.png', label)
        pixels = toy._rng.integers(0, 256, (*label.shape, 3), dtype=np.uint8) if image is None else image
        toy.write(f'leftImg8bit/train/{name}_leftImg8bit.png', pixels)


def caches(toy):
    return glob.glob(toy.path('class_centroids_*.npz'))


def assert_same(first, second):
    assert first.keys() == second.keys()
    for key in first:
        np.testing.assert_array_equal(np.asarray(first[key]), np.asarray(second[key]))


# Where the classes are

def centroids_by_hand(label, num_classes, tile):
    rows = []
    for top in range(0, label.shape[0], tile):
        for left in range(0, label.shape[1], tile):
            for i in range(num_classes):
                y, x = np.nonzero(label[top:top + tile, left:left + tile] == i)
                if y.size:
                    rows.append((i, int(np.mean(y)) + top, int(np.mean(x)) + left))
    return sorted(rows)


@pytest.mark.parametrize('size, tile', [((32, 64), 32), ((37, 70), 32), ((5, 3), 8), ((1, 1), 1024), ((64, 8), 16)])
def test_centroids(size, tile):
    rng = np.random.default_rng(1)
    for label in (rng.integers(0, 19, size, np.uint8), rng.choice(np.array([3, 18, 19, 200, VOID], np.uint8), size)):
        records = class_centroids(label, 19, tile)
        assert sorted(map(tuple, records.tolist())) == centroids_by_hand(label, 19, tile)


def test_centroids_of_whole_tiles():
    # Rows and columns 0..1023 have the mean 511.5, the columns 1024..1029 1026.5, the rows 1024 and 1025 1024.5.
    label = np.full((1026, 1030), 7, np.uint8)
    assert class_centroids(label, 7).shape == (0, 3)  # as void
    assert class_centroids(label, 19).tolist() == [[7, 511, 511], [7, 511, 1026], [7, 1024, 511], [7, 1024, 1026]]


def test_records_name_their_image(cityscapes):
    dataset = dataset_of(cityscapes, add_val=True)
    expected = [(i, *row) for i, (_, label) in enumerate(dataset.file_list)
                for row in centroids_by_hand(np.array(Image.open(label)), 19, 1024)]
    assert len(dataset.file_list) == 6
    assert sorted(map(tuple, dataset._records.tolist())) == expected


# The cache

@pytest.fixture
def reads(monkeypatch):
    """All labels that are read to look for classes."""
    paths, original = [], class_uniform.read_label
    monkeypatch.setattr(class_uniform, 'read_label', lambda path, *rest: paths.append(path) or original(path, *rest))
    return paths


def test_labels_are_read_once(cityscapes, reads):
    first = dataset_of(cityscapes)
    assert len(reads) == 4 and len(caches(cityscapes)) == 1
    second = dataset_of(cityscapes, share=1, seed=3)
    np.testing.assert_array_equal(second._records, first._records)
    assert len(reads) == 4
    # Elsewhere with the same times of change: still the same files.
    moved = shutil.copytree(cityscapes.root, cityscapes.root + '_moved')
    CityscapesAutolabeling(transforms(), moved, class_uniform=0.5)
    assert len(reads) == 4


def test_changed_data_are_noticed(cityscapes, reads):
    label = cityscapes.path('gtFine/train/ulm/ulm_000001_000019_gtFine_labelTrainIds.png')

    def touch(extra=b''):
        with open(label, 'ab') as file:
            file.write(extra)
        os.utime(label, ns=(0, 10**18))

    def remove():
        os.remove(label)
        os.remove(cityscapes.path('leftImg8bit/train/ulm/ulm_000001_000019_leftImg8bit.png'))

    dataset_of(cityscapes)
    for change, count in [(touch, 4), (lambda: touch(b'longer'), 4),  # at one and the same time of change
                          (lambda: cityscapes.fine('train', 'ulm/ulm_000002_000019'), 5), (remove, 4)]:
        change()
        reads.clear()
        dataset = dataset_of(cityscapes)
        assert len(reads) == count == len(dataset.file_list)
        dataset_of(cityscapes)
        assert len(reads) == count
    reads.clear()
    dataset_of(cityscapes, add_val=True)
    assert len(reads) == 6


@pytest.mark.parametrize('how', ['empty', 'truncated', 'flipped', 'other'])
def test_damaged_cache_is_made_again(cityscapes, reads, caplog, how):
    expected = dataset_of(cityscapes)._records
    path, = caches(cityscapes)
    with open(path, 'rb') as file:
        content = file.read()
    middle = len(content) // 2
    with open(path, 'wb') as file:
        if how == 'other':
            np.savez(file, something=expected)
        else:
            flipped = content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1:]
            file.write({'empty': b'', 'truncated': content[:middle], 'flipped': flipped}[how])
    np.testing.assert_array_equal(dataset_of(cityscapes)._records, expected)
    assert f'{path}: cannot be read' in caplog.text
    assert len(reads) == 8
    dataset_of(cityscapes)
    assert len(reads) == 8


def test_folder_that_cannot_be_written(cityscapes, reads, caplog, tmp_path, monkeypatch):
    (tmp_path / 'temporary').mkdir()
    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path / 'temporary'))
    dataset_of(cityscapes)
    path, = caches(cityscapes)
    os.remove(path), os.mkdir(path)  # in the way, also for root, whom no permission stops
    dataset_of(cityscapes)
    assert f'cannot be kept in {path} (' in caplog.text
    assert os.listdir(tmp_path / 'temporary') == [os.path.basename(path)]
    dataset_of(cityscapes)
    assert len(reads) == 8


def test_several_at_once(cityscapes):
    with ThreadPoolExecutor(4) as pool:
        datasets = list(pool.map(lambda _: dataset_of(cityscapes), range(4)))
    assert all(np.array_equal(dataset._records, datasets[0]._records) for dataset in datasets)
    assert len(caches(cityscapes)) == 1 and not glob.glob(cityscapes.path('*.partial'))


def test_bad_files_are_named(cityscapes):
    label = cityscapes.write('gtFine/train/ulm/ulm_000000_000019_gtFine_labelTrainIds.png',
                             np.full((32, 64), 33, np.uint8))
    with pytest.raises(ValueError, match=re.escape(label) + r': expected train ids 0\.\.18.*found 33.*convert_city'):
        dataset_of(cityscapes)
    image = cityscapes.path('leftImg8bit/train/ulm/ulm_000000_000019_leftImg8bit.png')
    with open(image, 'wb') as file:
        file.write(b'<html>404</html>')
    with pytest.raises(ValueError, match=re.escape(image) + ': .*found 16 bytes that cannot be decoded'):
        dataset_of(cityscapes)
    assert not caches(cityscapes)


def test_absent_classes_are_named_once(toy, caplog):
    write_fine(toy, [np.repeat(np.array([[0, i]], np.uint8), 8, axis=0) for i in (1, 13, 18)])
    with caplog.at_level(logging.INFO):
        dataset = dataset_of(toy, coarse_multiple=0)
    dataset.seed = 1
    message, = (record.getMessage() for record in caplog.records if 'left out' in record.getMessage())
    assert 'none of 3 labels: building, wall, fence, ' in message and message.endswith('train, motorcycle')
    assert message.count(',') + 1 == 15  # of 19, without road, sidewalk, car and bicycle


def test_all_void(toy):
    write_fine(toy, [np.full((8, 8), VOID, np.uint8)] * 2)
    with pytest.raises(ValueError, match=r'^[^\n]*expected labels that show classes, for class_uniform; found only void'
                                         r' in 2 labels; [^\n]*$'):
        dataset_of(toy, coarse_multiple=0)


# Which of them an epoch shows

def records(*counts):
    """Class i in the first counts[i] images, at (image, i)."""
    return np.array([(image, i, image, i) for i, count in enumerate(counts) for image in range(count)])


@pytest.mark.parametrize('share, uniform', [(0, 0), (0.1, 1), (0.25, 2), (0.5, 5), (0.66, 7), (1, 10)])
def test_share(share, uniform):
    order = ClassUniformOrder(records(10, 4, 1), 10, share, seed=0)
    for epoch in range(12):
        samples = [order(epoch, index) for index in range(10)]
        assert [centroid is not None for _, centroid in samples] == [True] * uniform + [False] * (10 - uniform)
        assert len({image for image, centroid in samples if centroid is None}) == 10 - uniform  # none twice


def test_classes_come_equally_often_and_their_records_too():
    order = ClassUniformOrder(records(10, 4, 1), 10, 0.5, seed=0)
    drawn = [[order(epoch, index) for index in range(5)] for epoch in range(24)]
    for epoch in drawn:
        assert sorted(Counter(x for _, (_, x) in epoch).values()) == [1, 2, 2]
    drawn = sum(drawn, [])  # 120: 40 of each class, so each record of the first 4 times, of the others 10 and 40 times
    assert all(image == y for image, (y, _) in drawn)
    assert Counter(drawn) == {**{(i, (i, 0)): 4 for i in range(10)}, **{(i, (i, 1)): 10 for i in range(4)},
                              (0, (0, 2)): 40}
    assert [image for image, (_, x) in drawn if x == 0][:10] != list(range(10))  # in random order


def test_all_images_come_before_one_repeats():
    order = ClassUniformOrder(records(10, 4, 1), 10, 0.3, seed=0)
    walk = [order(epoch, index)[0] for epoch in range(10) for index in range(3, 10)]
    assert all(sorted(walk[start:start + 10]) == list(range(10)) for start in range(0, 70, 10))
    assert walk[:10] != list(range(10))


# The crop

@pytest.mark.parametrize('length, crop', [(10, 4), (10, 9), (10, 10), (10, 13), (1, 1), (4, 1)])
def test_every_crop_with_the_centroid_and_no_other(length, crop):
    image = np.zeros((length, 6, 3), np.float32)
    image[..., 0] = np.arange(length)[:, None]
    np.random.seed(0)
    for y in range(length):
        possible = [first for first in range(max(length - crop, 0) + 1) if first <= y < first + crop]
        seen = Counter()
        for _ in range(60 * len(possible)):
            label = image[..., 0].astype(np.uint8)
            data = {'img': image, 'label': label, 'gt_fields': ['label'], 'centroid': ((y + 0.5) / length, 0.4)}
            data = T.RandomPaddingCrop((6, crop), label_padding_value=VOID)(KeepCentroid((crop, 6))(data))
            assert data['img'].shape == (crop, 6, 3) and 'centroid' not in data
            rows = data['label'][:, 0][data['label'][:, 0] != VOID]
            np.testing.assert_array_equal(data['img'][:len(rows), :, 0], np.repeat(rows[:, None], 6, axis=1))
            seen[int(rows[0])] += 1
        assert sorted(seen) == possible
        assert min(seen.values()) > 25  # of 60 expected, four and a half standard deviations


@pytest.mark.parametrize('crop', [(48, 24), (20, 100), (300, 20), (7, 5)])  # (w, h), of images of 20..80 x 35..140
def test_crop_contains_the_centroid_at_every_scale(toy, crop):
    # Channels: blue marks the image (padding is 0), green is x, red is y. One class to an image, so one centroid.
    height, width = 40, 70
    image = np.full((height, width, 3), 200, np.uint8)
    image[..., 1], image[..., 2] = np.arange(width), np.arange(height)[:, None]
    rng = np.random.default_rng(2)
    labels = np.full((6, height, width), VOID, np.uint8)
    for i, label in enumerate(labels):
        y, x = rng.integers(0, height - 4), rng.integers(0, width - 4)
        label[y:y + 4, x:x + 4] = i
    write_fine(toy, labels, image)
    dataset = dataset_of(toy, 1, transforms(crop), coarse_multiple=0)
    for epoch in range(15):
        for index in range(6):
            sample = dataset[(epoch, index)]
            i = int(dataset.files(epoch, index)[1].split('_')[-4])
            y, x = np.nonzero(labels[i] == i)
            red, green, blue = sample['img']
            assert sample['img'].shape == (3, *crop[::-1]) == (3, *sample['label'].shape)
            for channel, mean in ((red, y.mean()), (green, x.mean())):
                # Within a pixel, which is up to two of the original; the mean of four ends in .5 and is rounded down.
                shown = channel[blue == 200]
                assert shown.min() - 1.5 <= mean <= shown.max() + 1.5
            assert set(np.unique(sample['label'])) <= {i, VOID} and (sample['label'] == i).any()


def test_rare_class_is_seen_often(toy):
    # Classes 0 and 1 in all of 20 images, class 2 in one, a block of 6 x 6: at half size its centroid is still inside.
    labels = np.zeros((20, 64, 64), np.uint8)
    labels[:, :, 32:] = 1
    labels[7, 20:26, 40:46] = 2
    write_fine(toy, labels)

    def shows_rare(share):
        dataset = dataset_of(toy, share, transforms((24, 24)), coarse_multiple=0)
        return [bool((dataset[(epoch, index)]['label'] == 2).any()) for epoch in range(6) for index in range(20)]

    # 6 epochs without: image 7 comes 6 times, and not every crop of it shows the block.
    assert sum(shows_rare(0)) <= 6
    # 6 epochs with 10 class-uniform samples: 60, of which a third must show it, 20 of 120 samples or 0.5 / 3 of all.
    # By chance at most: image 7 drawn once for class 0, once for class 1 (20 draws from 20 records each), and plain in
    # 3 of 60 samples (3 walks through 20 images).
    assert 20 <= sum(shows_rare(0.5)) <= 25


# Samples

def test_sample_depends_on_seed_epoch_and_index_alone(cityscapes):
    first = dataset_of(cityscapes, seed=2)
    keys = [(epoch, index) for epoch in range(3) for index in range(len(first))]
    samples = {key: first[key] for key in keys}
    later = dataset_of(cityscapes)  # from the cache
    later.seed = 2
    for key in reversed(keys):
        assert_same(later[key], samples[key])
    later.seed = 3
    for half in ((0, 1), (2, 3)):  # class-uniform, plain
        assert any(later.files(*key) != first.files(*key) for key in keys if key[1] in half)


def test_workers_and_processes_do_not_change_samples(cityscapes):
    def batches(num_workers, world_size=1):
        samples = []
        for rank in range(world_size):
            dataset = dataset_of(cityscapes, seed=4)
            stream = EpochStream(dataset, batch_size=4 // world_size, iters=5, seed=4, rank=rank, world_size=world_size)
            loader = paddle.io.DataLoader(dataset, batch_sampler=stream, num_workers=num_workers)
            samples.append([{key: value.numpy() for key, value in batch.items()} for batch in loader])
        return [{key: np.concatenate([part[key] for part in parts]) for key in parts[0]} for parts in zip(*samples)]

    shared, alone, two = batches(2), batches(0), batches(0, world_size=2)
    assert len(alone) == len(shared) == len(two) == 5
    for batch, *others in zip(alone, shared, two):
        assert batch['img'].shape == (4, 3, 24, 48) and batch['label'].shape == (4, 24, 48)
        for other in others:
            assert_same(batch, other)


def test_files_are_those_that_are_read(cityscapes, monkeypatch):
    read = []

    def spy(original):
        return lambda path, *arguments: read.append(path) or original(path, *arguments)

    for name in ('read_image', 'read_label'):
        monkeypatch.setattr(cityscapes_autolabeling, name, spy(getattr(cityscapes_autolabeling, name)))
    dataset = dataset_of(cityscapes)
    for epoch in range(3):
        for index in range(len(dataset)):
            read.clear()
            dataset[(epoch, index)]
            assert tuple(read) == dataset.files(epoch, index)


def test_coarse_samples_and_the_length_stay(cityscapes):
    plain, uniform = dataset_of(cityscapes, 0, coarse_multiple=1.5), dataset_of(cityscapes, 1, coarse_multiple=1.5)
    assert len(plain) == len(uniform) == 10
    for epoch in range(3):
        for index in range(4, 10):
            assert uniform.files(epoch, index) == plain.files(epoch, index)
            assert_same(uniform[(epoch, index)], plain[(epoch, index)])
        assert all(uniform.files(epoch, index) in plain.file_list for index in range(4))


def test_off_is_as_before(cityscapes, reads):
    operations = transforms()
    dataset = CityscapesAutolabeling(operations, cityscapes.root)
    assert dataset.transforms.transforms == operations and len(operations) == 3
    assert [dataset.files(3, index) for index in range(4)] == dataset.file_list
    # For training only:
    assert len(CityscapesAutolabeling([], cityscapes.root, mode='val', class_uniform=0.5)) == 2
    assert len(CityscapesAutolabeling([], cityscapes.root, mode='test', class_uniform=0.5)) == 1
    assert not reads and not caches(cityscapes)


# Errors

@pytest.mark.parametrize('share', [-0.1, 1.5, float('nan')])
def test_share_out_of_range(cityscapes, share):
    with pytest.raises(ValueError, match=rf'^class_uniform: expected a share of 0\.\.1; found {share}$'):
        dataset_of(cityscapes, share)


@pytest.mark.parametrize('operations, found', [
    ([], 'found no transforms; add one'),
    ([T.ResizeStepScaling(), T.Normalize()], 'found ResizeStepScaling, Normalize; add one'),
    ([T.RandomHorizontalFlip(), T.RandomPaddingCrop()], 'found RandomHorizontalFlip; move it behind'),
    ([T.ResizeStepScaling(), T.RandomVerticalFlip(), T.RandomPaddingCrop()], 'found RandomVerticalFlip; move it'),
    ([T.RandomRotation(), T.RandomPaddingCrop()], 'found RandomRotation; move it'),
    ([T.Padding((99, 99)), T.RandomPaddingCrop()], 'found Padding; move it')])
def test_transforms_that_do_not_fit(cityscapes, operations, found):
    with pytest.raises(ValueError, match=r'^train_dataset\.transforms: expected [^\n]* class_uniform: 0$') as error:
        CityscapesAutolabeling(operations, cityscapes.root, class_uniform=0.5)
    assert found in str(error.value)
    CityscapesAutolabeling(operations, cityscapes.root)
