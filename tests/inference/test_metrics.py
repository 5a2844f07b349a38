"""Scores against the official evaluation code and against numbers worked by hand."""
import numpy as np
import paddle
import paddleseg.transforms as T
import pytest

from datasets.cityscapes_autolabeling import CityscapesAutolabeling
from inference import metrics
from inference.evaluator import evaluate
from inference.predictor import Predictor


def test_hand_worked():
    label = np.array([[0, 0, 1], [1, 2, 255]])
    prediction = np.array([[0, 1, 1], [1, 0, 2]])
    matrix = metrics.confusion_matrix(label, prediction, 4, 255)
    assert matrix.tolist() == [[1, 1, 0, 0], [0, 2, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    assert matrix.dtype == np.int64
    result = metrics.scores(matrix)
    np.testing.assert_allclose(result['iou'], [1 / 3, 2 / 3, 0, np.nan])
    np.testing.assert_allclose(result['precision'], [1 / 2, 2 / 3, np.nan, np.nan])
    np.testing.assert_allclose(result['recall'], [1 / 2, 1, 0, np.nan])
    assert result['miou'] == pytest.approx((1 / 3 + 2 / 3 + 0) / 3)  # class 3 occurs nowhere and is left out
    assert result['accuracy'] == pytest.approx(3 / 5)


def test_equals_the_official_cityscapes_evaluation(tmp_path):
    """Label-id images on disk, scored by cityscapesscripts; three classes occur nowhere, one only in predictions."""
    from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as official
    from cityscapesscripts.helpers.labels import trainId2label
    from PIL import Image

    rng = np.random.default_rng(0)
    label = rng.integers(0, 15, [3, 40, 60]).astype(np.uint8)
    label[rng.random(label.shape) < 0.2] = 255
    prediction = np.where(rng.random(label.shape) < 0.5, label, rng.integers(0, 16, label.shape)).astype(np.uint8)
    prediction[prediction == 255] = 3
    truth_paths, prediction_paths = [], []
    for i in range(3):
        for paths, ids, kind in ((truth_paths, label[i], 'gt'), (prediction_paths, prediction[i], 'pred')):
            table = np.zeros(256, np.uint8)
            for train_id in range(19):
                table[train_id] = trainId2label[train_id].id
            paths.append(str(tmp_path / f'{kind}{i}.png'))
            Image.fromarray(table[ids]).save(paths[-1])
    official.args.evalInstLevelScore = False
    official.args.quiet = True
    official.args.JSONOutput = False
    expected = official.evaluateImgLists(prediction_paths, truth_paths, official.args)

    matrix = sum(metrics.confusion_matrix(t, p, 19, 255) for t, p in zip(label, prediction))
    result = metrics.scores(matrix)
    for train_id in range(19):
        np.testing.assert_allclose(result['iou'][train_id], expected['classScores'][trainId2label[train_id].name])
    assert np.isnan(result['iou'][16:]).all() and result['iou'][15] == 0
    assert result['miou'] == pytest.approx(expected['averageScoreClasses'])


def test_all_void_gives_no_number_rather_than_a_wrong_one():
    matrix = metrics.confusion_matrix(np.full([2, 2], 255), np.zeros([2, 2], int), 3, 255)
    result = metrics.scores(matrix)
    assert np.isnan(result['miou']) and np.isnan(result['accuracy'])
    assert metrics.as_json(result, 'abc')['miou'] is None


def test_table_names_every_class_and_dashes_what_does_not_occur():
    result = metrics.scores(np.array([[8, 2, 0], [0, 10, 0], [0, 0, 0]]))
    text = metrics.table(result, ('road', 'traffic light', 'sky')).splitlines()
    assert text[1].split() == ['road', '80.00', '100.00', '80.00']
    assert text[2].split() == ['traffic', 'light', '83.33', '83.33', '100.00']
    assert text[3].split() == ['sky', '-', '-', '-']


def test_a_prediction_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r'size of the label \(2, 2\), found \(2, 3\)'):
        metrics.confusion_matrix(np.zeros([2, 2], int), np.zeros([2, 3], int), 2, 255)


@pytest.mark.parametrize('ignore_index', [255, 2])  # 2 is one of the classes
@pytest.mark.parametrize('size', [1, 100, 257])
def test_counting_on_a_device_gives_the_same_integers(monkeypatch, size, ignore_index):
    monkeypatch.setattr(metrics, 'STRIP', 100)
    rng = np.random.default_rng(size)
    label = rng.integers(0, 5, [size, 3])
    label[rng.random(label.shape) < 0.3] = 255
    prediction = rng.integers(0, 5, label.shape).astype(np.uint8)
    found = metrics.confusion_on_device(paddle.to_tensor(label), paddle.to_tensor(prediction), 5, ignore_index)
    label[label == 255] = ignore_index  # in no class, too
    np.testing.assert_array_equal(found.numpy(), metrics.confusion_matrix(label, prediction, 5, ignore_index))


def test_a_gpu_counts_where_it_predicts(monkeypatch):
    """The path of a GPU, run on a CPU: the same scores, and predictions that are not copied."""
    class Data:
        num_classes, ignore_index = 3, 255

        def __len__(self):
            return 4

        def __getitem__(self, index):
            rng = np.random.default_rng(index)
            label = rng.integers(0, 3, [6, 7])
            label[0] = 255
            return {'img': rng.standard_normal([3, 6, 7]).astype('float32'), 'label': label}

    predictor = Predictor(lambda x: [x])
    expected = evaluate(predictor, Data())
    monkeypatch.setattr(paddle, 'get_device', lambda: 'gpu:0')
    monkeypatch.setattr(Predictor, '__call__', None)
    found = evaluate(predictor, Data())
    np.testing.assert_array_equal(found['matrix'], expected['matrix'])
    assert found['matrix'].dtype == np.int64 and found['miou'] == expected['miou']


@pytest.mark.parametrize('size, uploads', [(None, ['uint8', 'uint8']), ((50, 30), ['uint8', 'float32'])])
@pytest.mark.parametrize('num_workers', [0, 2])
def test_images_go_to_a_gpu_in_8_bits(toy, monkeypatch, num_workers, size, uploads):
    """The path of a GPU, run on a CPU, on a real dataset: labels and, where they still have integers, images."""
    transforms = ([T.Resize(size)] if size else []) + [T.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])]
    dataset = CityscapesAutolabeling(transforms, str(toy), 'val')
    paddle.seed(0)
    network = paddle.nn.Conv2D(3, 19, 3, padding=1)
    predictor = Predictor(lambda x: [network(x)])
    expected = evaluate(predictor, dataset, num_workers)
    monkeypatch.setattr(paddle, 'get_device', lambda: 'gpu:0')
    sent, original = [], paddle.to_tensor

    def to_tensor(data, *args, **kwargs):
        if isinstance(data, np.ndarray) and data.ndim > 1:
            sent.append(data.dtype.name)
        return original(data, *args, **kwargs)

    monkeypatch.setattr(paddle, 'to_tensor', to_tensor)
    found = evaluate(predictor, dataset, num_workers)
    np.testing.assert_array_equal(found['matrix'], expected['matrix'])
    assert found['matrix'].sum() > 10000 and sorted(sent) == sorted(uploads * 3)
