"""The weighted sum over outputs, in the shapes PaddleSeg's configurations give it."""
import numpy as np
import paddle
import pytest
from paddleseg.core.train import loss_computation
from paddleseg.models.losses import LovaszSoftmaxLoss, MixedLoss

import losses
import losses.statistics as statistics
from losses import BootstrappedCrossEntropyLoss, DiceLoss, weighted_losses
from tests import rounding
from tests.losses import plain
from tests.losses.plain import TOLERANCE

COEFS = [1, 0.4, 0.05, 0.05]
BOOTSTRAP = (20, 0.5)
KINDS = ('dice', 'bootstrapped_ce')
NAMES = [f'{kind}_{i}' for kind in KINDS for i in range(4)]


@pytest.fixture
def outputs():
    paddle.seed(0)
    outputs = [paddle.randn([2, 5, 6, 7]) * 2 for _ in range(4)]
    for logits in outputs:
        logits.stop_gradient = False
    return outputs


@pytest.fixture
def labels():
    labels = np.random.default_rng(0).integers(0, 5, (2, 6, 7))
    labels[:, 2] = 255
    return paddle.to_tensor(labels)


@pytest.fixture
def plain_losses(outputs, labels):
    """{name: value}, the total and the gradients by the plain formulas, in float64."""
    exact = [x.astype('float64') for x in outputs]
    values = [plain.dice(x, labels) for x in exact]
    values += [plain.bootstrapped_cross_entropy(x, labels, *BOOTSTRAP) for x in exact]
    total = sum(coef * value for coef, value in zip(COEFS * 2, values))
    total.backward()
    grads = [x.grad.numpy().copy() for x in outputs]
    for x in outputs:
        x.clear_grad()
    return {name: float(value) for name, value in zip(NAMES, values)}, float(total), grads


def eight():
    return {'types': [DiceLoss() for _ in range(4)] + [BootstrappedCrossEntropyLoss(*BOOTSTRAP) for _ in range(4)],
            'coef': COEFS * 2}


def mixed():
    return {'types': [MixedLoss([DiceLoss(), BootstrappedCrossEntropyLoss(*BOOTSTRAP)], [1, 1]) for _ in range(4)],
            'coef': COEFS}


def check(total, values, outputs, plain_losses):
    expected_values, expected_total, expected_grads = plain_losses
    assert sorted(values) == sorted(expected_values)
    for name, value in values.items():
        assert value.shape == [] and value.stop_gradient
        assert float(value) == pytest.approx(expected_values[name], rel=TOLERANCE), name
    assert total.shape == [] and float(total) == pytest.approx(expected_total, rel=TOLERANCE)
    total.backward()
    for logits, grad in zip(outputs, expected_grads):
        rounding.assert_close(logits.grad.numpy(), grad, floor=TOLERANCE)


@pytest.mark.parametrize('build', [eight, mixed])
def test_published_configurations(outputs, labels, plain_losses, build):
    before = labels.numpy().copy()
    check(*weighted_losses(outputs, labels, build()), outputs, plain_losses)
    np.testing.assert_array_equal(labels.numpy(), before)


def test_outputs_already_repeated_by_the_model(outputs, labels, plain_losses):
    check(*weighted_losses(outputs * 2, labels, eight()), outputs, plain_losses)


@pytest.mark.parametrize('build, repeat', [(eight, 2), (mixed, 1)])
def test_paddleseg_computes_the_same_numbers(outputs, labels, plain_losses, build, repeat):
    terms = loss_computation(logits_list=outputs * repeat, labels=labels, edges=None, losses=build())
    assert float(sum(terms)) == pytest.approx(plain_losses[1], rel=TOLERANCE)
    total, _ = weighted_losses(outputs, labels, build())
    assert float(total) == pytest.approx(float(sum(terms)), rel=rounding.of_sum(8))  # of terms equal to the bit


def test_coefficients_of_a_mixed_loss_multiply(outputs, labels, plain_losses):
    spec = {'types': [MixedLoss([DiceLoss(), BootstrappedCrossEntropyLoss(*BOOTSTRAP)], [0.25, 3])], 'coef': [2]}
    values, _, _ = plain_losses
    total, _ = weighted_losses(outputs[:1], labels, spec)
    assert float(total) == pytest.approx(2 * (0.25 * values['dice_0'] + 3 * values['bootstrapped_ce_0']), rel=TOLERANCE)


def test_other_losses_of_paddleseg(outputs, labels, plain_losses):
    lovasz = LovaszSoftmaxLoss()
    spec = {'types': [lovasz, DiceLoss(), lovasz, lovasz], 'coef': [1, 2, 3, 4]}
    total, values = weighted_losses(outputs[:2], labels, spec)
    assert list(values) == ['lovasz_softmax_0', 'dice_1', 'lovasz_softmax_0_2', 'lovasz_softmax_1']
    first, second = (float(lovasz(x, labels)) for x in outputs[:2])
    assert float(total) == pytest.approx(4 * first + 2 * plain_losses[0]['dice_1'] + 4 * second, rel=TOLERANCE)


@pytest.mark.parametrize('build', [eight, mixed])
def test_one_softmax_per_output(monkeypatch, outputs, labels, build):
    passes = []
    strips = statistics._strips
    monkeypatch.setattr(statistics, '_strips', lambda logits, *args: passes.append(logits) or strips(logits, *args))
    total, _ = weighted_losses(outputs, labels, build())
    assert len(passes) == 4
    total.backward()
    assert len(passes) == 8  # and one more for the gradient


def test_losses_that_differ_in_void_do_not_share(outputs, labels):
    spec = {'types': [DiceLoss(), DiceLoss(ignore_index=3)], 'coef': [1, 1]}
    labels = paddle.where(labels == 255, paddle.full_like(labels, 4), labels)
    _, values = weighted_losses(outputs[:1], labels, spec)
    assert float(values['dice_0']) == pytest.approx(float(plain.dice(outputs[0], labels)), rel=TOLERANCE)
    assert float(values['dice_0_2']) == pytest.approx(float(plain.dice(outputs[0], labels, 3)), rel=TOLERANCE)


@pytest.mark.parametrize('num_types, num_coefs, words', [
    (3, 3, ('loss.types', '4 outputs', 'found 3')),
    (6, 6, ('loss.types', '4 outputs', 'found 6')),
    (0, 0, ('loss.types', '4 outputs', 'found 0')),
    (4, 3, ('loss.coef', 'expected 4', 'found 3')),
])
def test_numbers_that_do_not_fit(outputs, labels, num_types, num_coefs, words):
    with pytest.raises(ValueError) as error:
        weighted_losses(outputs, labels, {'types': [DiceLoss()] * num_types, 'coef': [1] * num_coefs})
    text = str(error.value)
    assert '\n' not in text and all(word in text for word in words), text


def test_layers_are_the_functions(outputs, labels):
    assert float(DiceLoss()(outputs[0], labels)) == float(losses.dice(outputs[0], labels))
    assert float(BootstrappedCrossEntropyLoss(min_K=20, loss_th=0.5, ignore_index=255)(outputs[0], labels)) == float(
        losses.bootstrapped_cross_entropy(outputs[0], labels, 20, 0.5))
