"""The cases of tests/reference/paddleseg_losses.npz: which loss, with which parameters, on which made-up inputs.

Its generator, which runs PaddleSeg's own classes, and the test of ours read them from here.
"""
from unittest import mock

import numpy as np
import paddle

CLASSES = 3
SHAPE = 2, 12, 16
VOIDS = {'whole': 0.0, 'void': 0.2}
WEIGHT = [1.0, 2.0, 0.5]
QUERIES = 6

# Name of the case -> (loss, parameters, kind of output). A list of losses is a MixedLoss, its parameters the
# coefficients.
CASES = {
    'cross_entropy': ('CrossEntropyLoss', {}, 'logits'),
    'cross_entropy_weight': ('CrossEntropyLoss', {'weight': WEIGHT}, 'logits'),
    'cross_entropy_hard': ('CrossEntropyLoss', {'top_k_percent_pixels': 0.25}, 'logits'),
    'ohem': ('OhemCrossEntropyLoss', {'min_kept': 40}, 'logits'),
    'ohem_all': ('OhemCrossEntropyLoss', {}, 'logits'),
    'mixed': (['CrossEntropyLoss', 'LovaszSoftmaxLoss'], [0.8, 0.2], 'logits'),
    'lovasz_softmax': ('LovaszSoftmaxLoss', {}, 'logits'),
    'lovasz_hinge': ('LovaszHingeLoss', {}, 'two classes'),
    'bce': ('BCELoss', {}, 'logits'),
    'bce_dynamic': ('BCELoss', {'weight': 'dynamic'}, 'logits'),  # of pos_weight, Paddle 2.6 makes another number
    'bce_edge': ('BCELoss', {'edge_label': True}, 'one channel'),
    'bce_edge_dynamic': ('BCELoss', {'edge_label': True, 'weight': 'dynamic'}, 'one channel'),
    'dice': ('DiceLoss', {'smooth': 1.0}, 'logits'),
    'dice_weight': ('DiceLoss', {'smooth': 0.5, 'weight': WEIGHT}, 'logits'),
    'bootstrapped': ('BootstrappedCrossEntropyLoss', {'min_K': 60, 'loss_th': 0.3}, 'logits'),
    'bootstrapped_few': ('BootstrappedCrossEntropyLoss', {'min_K': 150, 'loss_th': 2.0}, 'logits'),
    'connectivity': ('SemanticConnectivityLoss', {}, 'logits'),
    'connectivity_few': ('SemanticConnectivityLoss', {'max_pred_num_conn': 4}, 'logits'),
    'semantic_encoding': ('SECrossEntropyLoss', {}, 'vector'),
    'relax_boundary': ('RelaxBoundaryLoss', {}, 'logits'),
    'rmi': ('RMILoss', {'num_classes': CLASSES}, 'logits'),
    'detail_aggregate': ('DetailAggregateLoss', {}, 'one channel'),
    'dual_task': ('DualTaskLoss', {}, 'logits'),
    'edge_attention': ('EdgeAttentionLoss', {}, 'edges'),
    'ohem_edge_attention': ('OhemEdgeAttentionLoss', {'min_kept': 40, 'edge_threshold': 0.5}, 'edges'),
    'ohem_edge_attention_all': ('OhemEdgeAttentionLoss', {}, 'edges'),
    'points': ('PointCrossEntropyLoss', {}, 'points'),
    'points_hard': ('PointCrossEntropyLoss', {'top_k_percent_pixels': 0.25}, 'points'),
    'pixel_contrast': ('PixelContrastCrossEntropyLoss', {'max_views': 8, 'max_samples': 64}, 'embeddings'),
    'mask_former': ('MaskFormerLoss', {'num_classes': CLASSES}, 'masks'),
    'kl': ('KLLoss', {'temperature': 2}, 'two outputs'),
    'focal': ('FocalLoss', {}, 'two classes'),
    'focal_classes': ('MultiClassFocalLoss', {'num_class': CLASSES}, 'logits'),
}


def labels(kind, void):
    """(int64 (2, 12, 16) blocks of class ids, `void` of them 255; uint8 edges (2, 12, 16))."""
    rng = np.random.default_rng(1)
    ids = rng.integers(0, 2 if kind == 'two classes' else CLASSES, (SHAPE[0], SHAPE[1] // 4, SHAPE[2] // 4))
    ids[rng.random(ids.shape) < void] = 255
    return ids.repeat(4, 1).repeat(4, 2).astype(np.int64), rng.integers(0, 2, SHAPE).astype(np.uint8)


def arrays(kind):
    """{name: float32 array}, what gets a gradient, and those without: {name: array}."""
    n, h, w = SHAPE
    rng = np.random.default_rng(0)
    points = rng.random((n, 50, 2), np.float32)
    mask = rng.random((n, 1, h, w), np.float32)
    shapes = {
        'logits': {'logits': (n, CLASSES, h, w)}, 'two classes': {'logits': (n, 2, h, w)},
        'one channel': {'logits': (n, 1, h, w)}, 'vector': {'logits': (n, CLASSES)},
        'edges': {'logits': (n, CLASSES, h, w)}, 'points': {'logits': (n, CLASSES, 50)},
        'embeddings': {'embed': (n, 8, h // 2, w // 2)},
        'two outputs': {'logits': (n, CLASSES, h, w)},
        'masks': {'pred_logits': (n, QUERIES, CLASSES + 1), 'pred_masks': (n, QUERIES, h // 2, w // 2),
                  'more_logits': (n, QUERIES, CLASSES + 1), 'more_masks': (n, QUERIES, h // 2, w // 2)}}[kind]
    learned = {name: (2 * rng.standard_normal(shape)).astype(np.float32) for name, shape in shapes.items()}
    if kind == 'embeddings':
        learned['embed'] /= np.linalg.norm(learned['embed'], axis=1, keepdims=True)
    given = {'points': points, 'mask': mask,
             'other': (2 * rng.standard_normal((n, CLASSES, h, w))).astype(np.float32),
             'seg': (2 * rng.standard_normal((n, CLASSES, h // 2, w // 2))).astype(np.float32)}
    return learned, given


def outputs(kind, x, given):
    """What the network returns: a list, as of PaddleSeg's models. x, given: {name: tensor}."""
    if kind == 'edges':
        return [[x['logits'], given['mask']]]
    if kind == 'points':
        return [[x['logits'], given['points']]]
    if kind == 'embeddings':
        return [{'seg': given['seg'], 'embed': x['embed']}]
    if kind == 'two outputs':
        return [x['logits'], given['other']]
    if kind == 'masks':
        more = {'pred_logits': x['more_logits'], 'pred_masks': x['more_masks']}
        return [{'pred_logits': x['pred_logits'], 'pred_masks': x['pred_masks'], 'aux_outputs': [more]}]
    return [x['logits']]


def same_numbers():
    """A context: the random numbers of DetailAggregateLoss (as it is built), DualTaskLoss and
    PixelContrastCrossEntropyLoss, the same in every version."""
    rng = np.random.default_rng(2)

    def rand(shape, dtype=None):
        return paddle.to_tensor(rng.random(tuple(shape), np.float32))

    return mock.patch.multiple(paddle, rand=rand, create_parameter=rand, randperm=lambda n: paddle.to_tensor(
        rng.permutation(int(n)).astype(np.int64)))


def run(kind, inputs, loss):
    """(value, {name: gradient}) of loss(outputs) -> 0-d, for inputs {name: float32 array}."""
    x = {name: paddle.to_tensor(value) for name, value in inputs.items()}
    for tensor in x.values():
        tensor.stop_gradient = False
    given = {name: paddle.to_tensor(value) for name, value in arrays(kind)[1].items()}
    with same_numbers():
        value = loss(outputs(kind, x, given))
        if not value.stop_gradient:
            value.backward()
    gradients = {name: np.zeros(inputs[name].shape, np.float32) if tensor.grad is None else tensor.grad.numpy()
                 for name, tensor in x.items()}
    return np.float32(float(value.reshape([]))), gradients
