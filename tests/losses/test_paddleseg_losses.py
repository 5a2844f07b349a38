"""Every loss in PaddleSeg's registry trains here or is refused by name; the values of the most used ones."""
import numpy as np
import paddle
import paddleseg.models.losses as original
import pytest
from paddleseg.cvlibs import manager

from common import registry
from common.config import Config
from common.errors import UserError
from common.paddle2_arithmetic import convert
from losses import DiceLoss, weighted_losses
from losses.paddleseg_adapters import WithoutGradient
from losses.paddleseg_losses import PARAMETERS, REFUSED, paddleseg_losses
from tests.conftest import ROOT
from tests.losses import paddleseg_cases as cases

OURS = ('BootstrappedCrossEntropyLoss', 'DiceLoss')
CLASSES = {'FocalLoss': 2, 'LovaszHingeLoss': 2, 'DetailAggregateLoss': 1}
ARGUMENTS = {'MultiClassFocalLoss': {'num_class': 5}, 'RMILoss': {'num_classes': 5}, 'OhemCrossEntropyLoss':
             {'min_kept': 100}, 'BootstrappedCrossEntropyLoss': {'min_K': 100, 'loss_th': 0.05}}
STRUCTURED = {loss: name for name, (loss, _, kind) in cases.CASES.items()
              if kind in ('edges', 'points', 'embeddings', 'masks', 'two outputs')}  # -> one of its cases
EPS = 1e-5  # float32 against float64, over a few thousand pixels


def batch(classes=5, void=0.2, seed=0, shape=(2, 24, 32)):
    """float32 (2, C, 24, 32) logits with a gradient, int64 (2, 24, 32) labels of blocks, `void` of them 255."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, max(classes, 2), (shape[0], shape[1] // 4, shape[2] // 4))
    labels[rng.random(labels.shape) < void] = 255
    logits = paddle.to_tensor(2 * rng.standard_normal((shape[0], classes, *shape[1:])).astype(np.float32))
    logits.stop_gradient = False
    return logits, paddle.to_tensor(labels.repeat(4, 1).repeat(4, 2))


def probabilities(logits):
    z = logits.numpy().astype(np.float64)
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def of_label(p, labels):
    """p (N, C, H, W) at the labels (N, H, W); at void that of class 0."""
    y = np.where(labels == 255, 0, labels)
    return np.take_along_axis(p, y[:, None], 1)[:, 0]


def names():
    registry.register()
    return sorted(manager.LOSSES.components_dict)


@pytest.mark.parametrize('void', [0.0, 0.2, 1.0], ids=['no void', 'void', 'all void'])
@pytest.mark.parametrize('name', [
    name for name in names() if name not in (*REFUSED, *STRUCTURED, 'MixedLoss', 'SemanticConnectivityLoss')])
def test_loss_trains(name, void):
    paddle.seed(0)
    loss = manager.LOSSES[name](**ARGUMENTS.get(name, {}))
    logits, labels = batch(CLASSES.get(name, 5), void)
    if name == 'SECrossEntropyLoss':
        logits = paddle.randn([2, 5])
        logits.stop_gradient = False
    before = labels.numpy().copy()
    total, terms = weighted_losses([logits], labels, {'types': [loss], 'coef': [1]})
    total.backward()
    np.testing.assert_array_equal(labels.numpy(), before)
    gradient = logits.grad.numpy()
    assert list(total.shape) == [] and np.isfinite(float(total)) and np.isfinite(gradient).all() and len(terms) == 1
    if void < 1:
        assert np.abs(gradient).max() > 0
    # These look at neighbours, or at the whole image: their gradient at void pixels is not 0 by their definition.
    if gradient.ndim == 4 and name not in ('DetailAggregateLoss', 'DualTaskLoss', 'RMILoss', 'RelaxBoundaryLoss'):
        assert np.abs(gradient.transpose(0, 2, 3, 1)[before == 255]).max(initial=0) == 0


def case_loss(name, void):
    """outputs -> loss of a case of tests.losses.paddleseg_cases."""
    loss, parameters, kind = cases.CASES[name]
    labels = paddle.to_tensor(cases.labels(kind, void)[0])
    spec = {'types': [manager.LOSSES[loss](**parameters)], 'coef': [1]}
    return lambda outputs: weighted_losses(outputs[:1] if kind != 'two outputs' else outputs, labels, spec)[0]


@pytest.mark.parametrize('name', sorted(set(STRUCTURED.values()) - {STRUCTURED['KLLoss']}))
def test_a_batch_that_is_all_void_is_0(name):
    kind = cases.CASES[name][2]
    value, gradients = cases.run(kind, cases.arrays(kind)[0], case_loss(name, 1.0))
    assert value == 0 and all((gradient == 0).all() for gradient in gradients.values())


@pytest.mark.parametrize('loss', [*STRUCTURED, 'CrossEntropyLoss', 'DiceLoss', 'KLLoss'])
def test_an_output_of_another_kind_is_one_line(loss):
    parameters = cases.CASES[STRUCTURED[loss]][1] if loss in STRUCTURED else {}
    logits, labels = batch()
    output = logits if loss in STRUCTURED else {'seg': logits, 'embed': logits}
    with pytest.raises(UserError, match=f'^{loss}: expected [^\n]*, found [^\n]*; [^\n]*$'):
        weighted_losses([output], labels, {'types': [manager.LOSSES[loss](**parameters)], 'coef': [1]})


def test_edges_take_the_place_of_labels():
    logits, labels = batch(1)
    edges = paddle.to_tensor(np.random.default_rng(1).integers(0, 2, labels.shape).astype(np.uint8))
    spec = {'types': [manager.LOSSES['BCELoss'](edge_label=True)], 'coef': [1]}
    total, _ = weighted_losses([logits], labels, spec, edges)
    z, y = logits.numpy()[:, 0].astype(np.float64), edges.numpy()
    assert float(total) == pytest.approx((np.logaddexp(0, z) - z * y).mean(), rel=EPS)
    with pytest.raises(UserError, match='^BCELoss: expected edges for edge_label: True, found a dataset without; set '):
        weighted_losses([logits], labels, spec)


def test_the_second_output_of_kl_gets_no_gradient():
    first, second = batch()[0], batch(seed=1)[0]
    spec = {'types': [manager.LOSSES['KLLoss']()] * 2, 'coef': [1, 0]}
    weighted_losses([first, second], batch()[1], spec)[0].backward()
    assert np.abs(first.grad.numpy()).max() > 0 and second.grad is None


def test_pixel_contrast_of_few_pixels_is_0():
    """Where no class has more than max_views pixels; PaddleSeg divides by zero there."""
    learned, _ = cases.arrays('embeddings')
    labels = paddle.to_tensor(cases.labels('embeddings', 0.2)[0])
    loss = manager.LOSSES['PixelContrastCrossEntropyLoss'](max_views=100)
    value, gradients = cases.run('embeddings', learned, lambda outputs: loss(outputs[0], labels))
    assert value == 0 and (gradients['embed'] == 0).all()


def test_a_loss_without_gradient_is_logged_and_told_once(caplog, monkeypatch):
    monkeypatch.setattr(WithoutGradient, 'told', False)
    losses = [manager.LOSSES[name]() for name in ('CrossEntropyLoss', 'SemanticConnectivityLoss',
                                                  'SemanticConnectivityLoss')]
    assert [record.getMessage().partition(':')[0] for record in caplog.records] == ['SemanticConnectivityLoss']
    gradients = []
    for number in (1, 3):
        logits, labels = batch()
        total, terms = weighted_losses([logits], labels, {'types': losses[:number], 'coef': [1] * number})
        total.backward()
        gradients.append(logits.grad.numpy())
    assert np.array_equal(*gradients)
    assert float(total) == pytest.approx(sum(map(float, terms.values())), rel=EPS)
    assert float(terms['semantic_connectivity_0']) > 0


@pytest.mark.parametrize('model, network, smooth', [('ENet', 'type: ENet', 1.0), ('MscaleOCRNet', '', None)])
def test_dice_is_the_recipes_with_its_network_alone(model, network, smooth, tmp_path):
    path = tmp_path / 'toy.yml'
    loss = 'loss: {types: [{type: MixedLoss, losses: [{type: DiceLoss}], coef: [1]}], coef: [1, 1, 1, 1]}\n'
    path.write_text(f'_base_: {ROOT}/configs/toy.yml\n{loss}' + (f'model: {{_inherited_: false, {network}}}\n'
                                                                  if network else ''))
    config = Config(path)
    assert config.dic['model']['type'] == model
    part = config.dic['loss']['types'][0]['losses'][0]
    assert part.get('smooth') == smooth
    layer = manager.LOSSES['DiceLoss'](**{key: value for key, value in part.items() if key != 'type'})
    assert isinstance(layer, DiceLoss) == (smooth is None)


@pytest.mark.parametrize('edge, fine', [(True, True), (False, False), (None, False)])
def test_edges_that_a_loss_needs_are_asked_for(edge, fine, tmp_path):
    path = tmp_path / 'toy.yml'
    path.write_text(f"""
_base_: {ROOT}/configs/toy.yml
train_dataset: {{_inherited_: false, type: Cityscapes, dataset_root: x, transforms: [{{type: Normalize}}]
                 {'' if edge is None else f', edge: {edge}'}}}
loss: {{types: [{{type: BCELoss, edge_label: True}}], coef: [1, 1, 1, 1]}}
""")
    if fine:
        assert Config(path).dic['train_dataset']['edge']
    else:
        with pytest.raises(UserError, match="key 'train_dataset.edge': expected True, as loss.types.0 has edge_label"):
            Config(path)


@pytest.mark.parametrize('name', ['CrossEntropyLoss', 'DiceLoss'])
def test_weights_for_other_classes_are_one_line(name):
    logits, labels = batch()
    with pytest.raises(UserError, match=f'^{name}: expected 5 numbers in weight, [^\n]*, found 2; '):
        manager.LOSSES[name](weight=[1.0, 2.0])(logits, labels)


def test_every_loss_is_accounted_for():
    assert {*paddleseg_losses(), *OURS, 'MixedLoss'} == set(names())
    assert set(vars(original)) & set(names()) == set(names()) - {'MultiClassFocalLoss'}  # which it forgets to import


@pytest.mark.parametrize('name', sorted(REFUSED))
@pytest.mark.parametrize('mixed', [False, True], ids=['alone', 'in a MixedLoss'])
def test_loss_is_refused_by_name(name, mixed, tmp_path):
    part = {'type': name}
    loss = {'type': 'MixedLoss', 'losses': [part], 'coef': [1]} if mixed else part
    path = tmp_path / 'toy.yml'
    path.write_text(f'_base_: {ROOT}/configs/toy.yml\nloss: {{types: [{loss}], coef: [1, 1, 1, 1]}}\n'.replace("'", ''))
    with pytest.raises(UserError) as error:
        Config(path)
    key = 'loss.types.0.losses.0.type' if mixed else 'loss.types.0.type'
    assert str(error.value) == (f"{path}: key '{key}': expected a type that runs here, found {name}: {REFUSED[name]}; "
                                'see docs/paddleseg.md')


@pytest.mark.parametrize('name, parameter', PARAMETERS)
def test_parameter_is_refused_by_name(name, parameter):
    refusal = paddleseg_losses()[name].refusal
    valid, reason = PARAMETERS[name, parameter]
    assert refusal({'type': name}) is None and all(refusal({parameter: value}) is None for value in valid)
    assert reason in refusal({parameter: 'none'}) and f'its {parameter} must be' in refusal({parameter: 'none'})


@pytest.mark.parametrize('name, classes', [('FocalLoss', 5), ('LovaszHingeLoss', 3), ('DetailAggregateLoss', 2),
                                           ('RMILoss', 3), ('SECrossEntropyLoss', 3)])
def test_output_that_does_not_fit_is_one_line(name, classes):
    logits, labels = batch(classes)
    with pytest.raises(UserError, match=f'^{name}: expected [^\n]*, found [^\n]*; [^\n]*$'):
        manager.LOSSES[name](**ARGUMENTS.get(name, {}))(logits, labels)


def test_mixed_loss_is_the_sum_of_its_parts():
    logits, labels = batch()
    parts = [manager.LOSSES[name]() for name in ('CrossEntropyLoss', 'LovaszSoftmaxLoss', 'DiceLoss')]
    mixed = manager.LOSSES['MixedLoss'](parts, [0.8, 0.2, 1])
    total, terms = weighted_losses([logits], labels, {'types': [mixed], 'coef': [2]})
    values = [float(part(logits, labels)) for part in parts]
    assert float(total) == pytest.approx(2 * (0.8 * values[0] + 0.2 * values[1] + values[2]), rel=EPS)
    assert list(terms) == ['cross_entropy_0', 'lovasz_softmax_0', 'dice_0']


@pytest.mark.parametrize('void', [0.0, 0.2])
@pytest.mark.parametrize('weight', [None, [1.0, 2.0, 0.5, 3.0, 1.5]])
@pytest.mark.parametrize('top_k', [1.0, 0.25])
def test_cross_entropy(void, weight, top_k):
    logits, labels = batch(void=void)
    loss = manager.LOSSES['CrossEntropyLoss'](weight=weight, top_k_percent_pixels=top_k)
    y = labels.numpy()
    valid = y != 255
    w = np.ones(5) if weight is None else np.array(weight)
    weights = w[np.where(valid, y, 0)]
    nll = -np.log(of_label(probabilities(logits), y)) * weights * valid
    if top_k == 1:
        expected = nll.sum() / (weights * valid).sum()
    else:  # PaddleSeg divides by the weights of the chosen pixels
        chosen = np.argsort(-nll.ravel())[:int(top_k * nll.size)]
        expected = nll.ravel()[chosen].sum() / weights.ravel()[chosen].sum()
    assert float(loss(logits, labels)) == pytest.approx(expected, rel=EPS)


@pytest.mark.parametrize('void', [0.0, 0.2])
@pytest.mark.parametrize('thresh, min_kept', [(0.7, 100), (0.05, 300), (0.7, 10 ** 6)])
def test_ohem(void, thresh, min_kept):
    logits, labels = batch(void=void)
    y = labels.numpy()
    valid = y != 255
    p = of_label(probabilities(logits), y)
    kept = valid
    if min_kept < valid.sum():
        kept = valid & (p < max(thresh, np.sort(p[valid])[min_kept - 1]))
    # 1e-5 is in PaddleSeg's formula: of means over all pixels
    expected = (-np.log(p) * kept).mean() / (kept.mean() + 1e-5)
    loss = manager.LOSSES['OhemCrossEntropyLoss'](thresh=thresh, min_kept=min_kept)
    assert float(loss(logits, labels)) == pytest.approx(expected, rel=EPS)


@pytest.mark.parametrize('void', [0.0, 0.2])
def test_focal(void):
    logits, labels = batch(void=void)
    y = labels.numpy()
    p = of_label(probabilities(logits), y)
    expected = (0.5 * (1 - p) ** 3 * -np.log(p))[y != 255].mean()
    loss = manager.LOSSES['MultiClassFocalLoss'](num_class=5, alpha=0.5, gamma=3.0)
    assert float(loss(logits, labels)) == pytest.approx(expected, rel=EPS)
    logits, labels = batch(2, void)
    y = labels.numpy()
    s = 1 / (1 + np.exp(-logits.numpy().astype(np.float64)))
    right = np.stack([y == 0, y == 1], 1)
    p = np.where(right, s, 1 - s)
    alpha = np.where(right, 0.25, 0.75)
    expected = (-alpha * (1 - p) ** 2 * np.log(p)).transpose(0, 2, 3, 1)[y != 255].mean()
    assert float(manager.LOSSES['FocalLoss']()(logits, labels)) == pytest.approx(expected, rel=EPS)


def lovasz(errors, truth):
    """The Lovasz extension of the Jaccard loss: sum of the sorted errors times the growth of the loss."""
    order = np.argsort(-errors, kind='stable')
    truth = truth[order].astype(np.float64)
    jaccard = 1 - (truth.sum() - truth.cumsum()) / (truth.sum() + (1 - truth).cumsum())
    return errors[order] @ np.diff(jaccard, prepend=0)


@pytest.mark.parametrize('void', [0.0, 0.2])
def test_lovasz(void):
    logits, labels = batch(void=void)
    y = labels.numpy()
    p = probabilities(logits).transpose(0, 2, 3, 1)[y != 255]
    y = y[y != 255]
    expected = np.mean([lovasz(np.abs((y == c) - p[:, c]), y == c) for c in np.unique(y)])
    loss = manager.LOSSES['LovaszSoftmaxLoss']()
    value = loss(logits, labels)
    assert float(value) == pytest.approx(expected, rel=1e-4)
    value.backward()
    # along one direction the change of the value is what the gradient says
    direction = paddle.to_tensor(np.random.default_rng(1).standard_normal(logits.shape).astype(np.float32))
    slope = float(loss(logits + 1e-3 * direction, labels) - loss(logits - 1e-3 * direction, labels)) / 2e-3
    assert slope == pytest.approx(float((logits.grad * direction).sum()), rel=0.05, abs=2e-4)


def test_labels_with_a_channel_and_half_precision_logits():
    logits, labels = batch()
    loss = manager.LOSSES['CrossEntropyLoss']()
    value = float(loss(logits, labels))
    assert float(loss(logits, labels.unsqueeze(1).astype('int32'))) == value
    half = loss(logits.astype('float16'), labels)
    assert half.dtype == paddle.float32 and float(half) == pytest.approx(value, rel=1e-3)


def test_regression_leaves_void_out():
    logits, labels = batch(1)
    valid = labels.numpy() != 255
    difference = (logits.numpy()[:, 0] - labels.numpy())[valid]
    for name, expected in (('L1Loss', np.abs(difference).mean()), ('MSELoss', (difference ** 2).mean())):
        assert float(manager.LOSSES[name]()(logits, labels)) == pytest.approx(expected, rel=EPS)
    logits, labels = batch(3)
    one_hot = np.eye(3)[labels.numpy()[labels.numpy() != 255]]
    difference = logits.numpy().transpose(0, 2, 3, 1)[labels.numpy() != 255] - one_hot
    assert float(manager.LOSSES['MSELoss']()(logits, labels)) == pytest.approx((difference ** 2).mean(), rel=EPS)


def test_integers_take_the_dtype_of_floats_and_nothing_else_is_changed():
    f, i, b = paddle.to_tensor([1.5]), paddle.to_tensor([2]), paddle.to_tensor([True])
    for a, c, dtype in ((f, i, f.dtype), (i, f, f.dtype), (f, b, f.dtype), (b, i, i.dtype), (i, i, i.dtype)):
        assert convert(lambda x, y: x * y, a, c).dtype == dtype
    assert convert(lambda x, y: x + y, 1, 2) == 3
    assert original.CrossEntropyLoss is not manager.LOSSES['CrossEntropyLoss']
    assert original.CrossEntropyLoss.__module__ == 'paddleseg.models.losses.cross_entropy_loss'
