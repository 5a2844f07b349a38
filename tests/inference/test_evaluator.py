"""What an evaluation returns for each image, and what it refuses: one line that names the image."""
import json
import os

import numpy as np
import paddle
import pytest

from common.errors import UserError
from datasets.labels import CITYSCAPES, LabelSet
from inference import evaluation_report, metrics
from inference.evaluator import evaluate
from inference.predictor import Predictor
from inference.records import image_names
from inference.scores.boundary import Boundary
from inference.scores.calibration import Calibration

LABELS = LabelSet(('road', 'car', 'never'), ((0, 0, 0), (1, 1, 1), (2, 2, 2)), categories=('flat', 'thing', 'thing'))


class Data:
    """Four images whose 'img' are logits; class 2 occurs nowhere."""
    num_classes, ignore_index = 3, 255
    file_list = tuple((f'/data/img/city/{i}_leftImg8bit.png', f'/data/gt/city/{i}_label.png') for i in range(4))

    def __init__(self, change=lambda index, sample: sample):
        self.change = change

    def __len__(self):
        return 4

    def __getitem__(self, index):
        rng = np.random.default_rng(index)
        label = rng.integers(0, 2, [6, 7])
        label[0] = 255
        logits = rng.standard_normal([3, 6, 7]).astype('float32')
        logits[2] = -9
        return self.change(index, {'img': logits, 'label': label})


@pytest.fixture(params=['cpu', 'gpu', 'scores'])
def run(request, monkeypatch):
    """evaluate() as on a CPU, as on a GPU (run on the CPU), and with further scores."""
    if request.param == 'gpu':
        monkeypatch.setattr(paddle, 'get_device', lambda: 'gpu:0')
    scores = [Calibration(LABELS), Boundary(LABELS, [1])] if request.param == 'scores' else []
    return lambda data, **more: evaluate(Predictor(lambda x: [x]), data, labels=LABELS, scores=scores, **more)


def test_images_add_up_to_the_whole(run):
    found = run(Data(), images=True)
    assert [image['index'] for image in found['images']] == [0, 1, 2, 3]
    assert [image['name'] for image in found['images']] == ['0', '1', '2', '3']
    for image in found['images']:
        sample = Data()[image['index']]
        expected = metrics.confusion_matrix(sample['label'], sample['img'].argmax(axis=0), 3, 255)
        np.testing.assert_array_equal(image['matrix'], expected)
        scores = metrics.scores(expected)
        np.testing.assert_array_equal(image['iou'], scores['iou'])
        assert (image['miou'], image['accuracy']) == (scores['miou'], scores['accuracy'])
    np.testing.assert_array_equal(found['matrix'], sum(image['matrix'] for image in found['images']))
    assert 'images' not in run(Data())


def test_a_class_never_seen_is_absent_neither_0_nor_1(run):
    found = run(Data(), images=True)
    assert np.isnan(found['iou'][2]) and found['miou'] == pytest.approx(found['iou'][:2].mean())
    assert found['categories']['iou'] == pytest.approx(dict(zip(('flat', 'thing'), found['iou'])))
    lines = evaluation_report.text(found, LABELS).splitlines()
    assert lines[3].split() == ['never', '-', '-', '-']
    data = json.loads(evaluation_report.to_json(evaluation_report.document(found, LABELS)))
    assert data['classes']['never'] == {'iou': None, 'precision': None, 'recall': None}
    assert data['images'][0]['iou'][2] is None and len(data['images']) == 4
    assert 'class,never,,,' in evaluation_report.classes_csv(data).decode().splitlines()


def test_labels_other_than_train_ids(run):
    def change(index, sample):
        if index == 2:
            sample['label'][1, 1:3] = 26, 33
        return sample

    with pytest.raises(UserError, match=r'^/data/gt/city/2_label.png: expected train ids 0..2 and 255, found 26, 33; '
                                        'label ids must be converted to train ids first'):
        run(Data(change))


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_name_the_image(run, value):
    def change(index, sample):
        if index == 1:
            sample['img'][0, 5, 6] = value
        return sample

    with pytest.raises(UserError, match=r'^/data/img/city/1_leftImg8bit.png: expected finite logits, found NaN or inf'):
        run(Data(change))


def test_logits_of_other_classes(run):
    def change(index, sample):
        return {**sample, 'img': np.concatenate([sample['img']] * 2)}

    with pytest.raises(UserError, match=r'0_leftImg8bit.png: expected logits of the 3 classes of the dataset, found 6'):
        run(Data(change))


def test_a_prediction_of_another_size(run):
    def change(index, sample):
        return {**sample, 'img': sample['img'][:, 1:]} if index == 3 else sample

    with pytest.raises(UserError, match=r'^/data/img/city/3_leftImg8bit.png: expected a prediction of the size of the '
                                        r'label \(6, 7\), found \(5, 7\)'):
        run(Data(change))


def test_predictions_that_are_no_train_ids():
    with pytest.raises(UserError, match=r'0_leftImg8bit.png: expected predictions 0..2, found 7 to 7; predict train'):
        evaluate(lambda sample: np.full([6, 7], 7, np.uint8), Data())


def test_an_empty_split(run):
    class Empty(Data):
        def __len__(self):
            return 0

    with pytest.raises(UserError, match='val_dataset: expected images to evaluate on, found none; check dataset_root'):
        run(Empty())


def test_an_image_that_is_gone(streets, run):
    from datasets.cityscapes_autolabeling import CityscapesAutolabeling
    data = CityscapesAutolabeling([], str(streets), 'val')
    image, label = data.file_list[0]
    data.file_list[0] = image.replace('leftImg8bit.png', 'gone.png'), label
    with pytest.raises(UserError, match=r'gone.png: expected an image; found nothing there; unpack the file from its'):
        run(data)


def test_names_do_not_depend_on_where_the_data_is(tmp_path):
    class Files:
        def __init__(self, *names):
            self.file_list = [(os.path.join(tmp_path, name), 'label') for name in names]

    assert image_names(Files('a/x_leftImg8bit.png', 'b/x_leftImg8bit.png')) == ['a/x', 'b/x']
    assert image_names(Files('a/x_leftImg8bit.png')) == ['x']
    assert image_names(Files('a/x.png', 'a/x.jpg')) == ['x.png', 'x.jpg']


def test_per_image_files(run):
    labels = LabelSet(('a, b', 'car', 'never'), LABELS.palette)
    data = evaluation_report.document(run(Data(), images=True), labels)
    lines = evaluation_report.images_file('x.csv', data).decode().splitlines()
    assert lines[0] == 'index,name,miou,accuracy,"iou a, b",iou car,iou never,confusion' and len(lines) == 5
    cells = lines[1].split(',')
    first = data['images'][0]
    assert cells[:4] == ['0', '0', str(first['miou']), str(first['accuracy'])] and cells[6] == ''
    assert cells[7].split() == [':'.join(map(str, row)) for row in first['confusion']]
    assert json.loads(evaluation_report.images_file('x.json', data)) == {
        'classes': ['a, b', 'car', 'never'], 'images': json.loads(json.dumps(data['images']))}
    for path in ('x', 'x.txt'):
        with pytest.raises(UserError, match=f"--per_image {path}: expected a file name that ends in .json or .csv"):
            evaluation_report.check_format('--per_image', path)


def test_categories_of_cityscapes_are_in_the_report():
    matrix = np.diag(np.arange(19))
    found = {**metrics.scores(matrix), 'matrix': matrix, 'categories': {'iou': {'flat': 1.0}, 'mean': 1.0}}
    assert evaluation_report.text(found, CITYSCAPES).splitlines()[-1].split() == ['flat', '100.00']
