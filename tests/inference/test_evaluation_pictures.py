"""The pictures of an evaluation: image, ground truth, prediction and attention, at one size."""
import cv2
import numpy as np
import paddle
import pytest

from datasets.labels import LabelSet
from inference.evaluation_pictures import evaluation_pictures
from inference.predictor import Predictor

LABELS = LabelSet(names=('road', 'traffic light'), palette=((128, 64, 128), (250, 170, 30)))
WIDTH, HEIGHT = 32, 16


class Images:
    """Images of one colour, whose upper half is class 1 and whose first column is void."""

    def __init__(self, folder, factor=1):
        self.factor = factor
        self.file_list = [(str(folder / f'{i}.png'), None) for i in range(3)]
        for i, (path, _) in enumerate(self.file_list):
            cv2.imwrite(path, np.full([HEIGHT * factor, WIDTH * factor, 3], (10, 20, 200 + i), np.uint8))

    def __len__(self):
        return 3

    def __getitem__(self, index):
        height, width = HEIGHT * self.factor, WIDTH * self.factor
        label = np.zeros([height, width], np.int64)
        label[:height // 2] = 1
        label[:, :self.factor] = 255
        # Evaluated at a size of its own and padded: prediction and attention must come back from there.
        return {'img': np.zeros([3, HEIGHT + 8, WIDTH], 'float32'), 'label': label,
                'trans_info': [('resize', (height, width)), ('padding', (HEIGHT, WIDTH))]}


class Model:
    """Predicts class 1 in the left half, class 0 in the right half."""

    def __call__(self, x):
        left = (paddle.arange(x.shape[3]) < x.shape[3] // 2).astype('float32').expand([1, 1, *x.shape[2:]])
        return [paddle.concat([1 - left, left], axis=1)]


class AttentiveModel(Model):
    """With a weight of 0.2 for its half scale."""
    n_scales = (1.0, 0.5)

    def with_scale_weights(self):
        def marked(x):
            logits, = self(x)
            return [paddle.concat([logits, paddle.full_like(logits[:, :1], 0.2), paddle.full_like(logits[:, :1], 0.8)],
                                  axis=1)]

        return marked


def panels(picture):
    height, width = picture.shape[0] // 2, picture.shape[1] // 2
    return [picture[top:top + height, left:left + width] for top in (0, height) for left in (0, width)]


@pytest.mark.parametrize('factor, size', [(1, (HEIGHT, WIDTH)), (20, (256, 512))])
def test_pictures_show_image_ground_truth_prediction_and_attention(tmp_path, factor, size):
    result = evaluation_pictures(Predictor(AttentiveModel()), Images(tmp_path, factor), LABELS, count=2)
    assert len(result) == 2
    for i, picture in enumerate(result):
        assert picture.dtype == np.uint8 and picture.shape == (2 * size[0], 2 * size[1], 3)
        image, truth, guess, attention = panels(picture)
        assert (image == (200 + i, 20, 10)).all(), 'the file is RGB, as OpenCV does not read it'
        void = size[1] // WIDTH
        assert (truth[:, :void] == 0).all()
        assert (truth[:size[0] // 2, void:] == LABELS.palette[1]).all()
        assert (truth[size[0] // 2:, void:] == LABELS.palette[0]).all()
        assert (guess[:, :size[1] // 2 - 1] == LABELS.palette[1]).all()
        assert (guess[:, size[1] // 2 + 1:] == LABELS.palette[0]).all()
        assert (attention == 51).all()


def test_pictures_of_a_model_without_attention(tmp_path):
    result = evaluation_pictures(Predictor(Model()), Images(tmp_path), LABELS, count=9)
    assert len(result) == 3
    assert all((panels(picture)[3] == 0).all() for picture in result)


def test_attention_goes_through_the_windows_of_the_prediction(tmp_path):
    class Windowed(AttentiveModel):
        def __call__(self, x):
            shapes.append(list(x.shape))
            return super().__call__(x)

    shapes = []
    predictor = Predictor(Windowed(), crop_size=(24, 16), stride=(24, 16))
    picture, = evaluation_pictures(predictor, Images(tmp_path), LABELS, count=1)
    assert shapes == [[1, 3, 24, 16]] * 2
    assert (panels(picture)[3] == 51).all()
