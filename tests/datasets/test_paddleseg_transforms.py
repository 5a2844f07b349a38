"""RandomPaddingCrop: PaddleSeg's own without category_max_ratio, and with it crops of image and label at one place."""
import numpy as np
import paddleseg.transforms as T
import pytest

from datasets.paddleseg_transforms import RandomPaddingCrop


def sample(label):
    """An image whose first two channels are the row and the column of a pixel."""
    rows, columns = np.indices(label.shape)
    image = np.stack([rows, columns, rows], -1).astype(np.float32)
    return {'img': image, 'label': label.copy(), 'gt_fields': ['label']}


@pytest.mark.parametrize('shape', [(40, 60), (20, 60), (32, 32)])
def test_without_a_ratio_it_is_that_of_paddleseg(shape):
    label = np.random.default_rng(0).integers(0, 19, shape).astype(np.uint8)
    results = []
    for kind in (T.RandomPaddingCrop, RandomPaddingCrop):
        np.random.seed(3)
        results.append(kind((32, 32))(sample(label)))
    assert np.array_equal(results[0]['img'], results[1]['img'])
    assert np.array_equal(results[0]['label'], results[1]['label'])


def test_no_class_fills_more_than_its_share():
    label = np.zeros((64, 64), np.uint8)
    label[:, 32:] = 1
    label[:8] = 255
    shares = []
    np.random.seed(0)
    for _ in range(30):
        found = RandomPaddingCrop((16, 16), category_max_ratio=0.75, loop_times=1000)(sample(label))
        assert found['img'].shape == (16, 16, 3) and found['label'].shape == (16, 16)
        rows, columns = found['img'][..., 0].astype(int), found['img'][..., 1].astype(int)
        assert np.array_equal(label[rows, columns], found['label'])  # image and label from one place
        counts = np.bincount(found['label'][found['label'] != 255], minlength=2)
        shares.append(counts.max() / counts.sum())
    assert min(shares) >= 0.5 and max(shares) < 0.75


def test_where_no_crop_fits_the_last_one_is_taken():
    found = RandomPaddingCrop((16, 16), category_max_ratio=0.5)(sample(np.zeros((40, 12), np.uint8)))
    assert found['img'].shape == (16, 16, 3) and (found['img'][:, 12:] == 127.5).all()  # padded
    assert found['label'].shape == (16, 16) and (found['label'][:, 12:] == 255).all()
