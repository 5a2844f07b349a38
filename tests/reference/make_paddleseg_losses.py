"""Writes paddleseg_losses.npz: values and gradients of PaddleSeg's own losses, where they run. From the root:

    python -m tests.reference.make_paddleseg_losses

with paddleseg 2.8.0, Paddle 2.6.2 and NumPy 1.26.4 (requirements-paddle26.txt), which the file states. Two are helped
along. MaskFormerLoss gathers booleans, for which that Paddle has no kernel on a CPU: they are gathered as integers.
RelaxBoundaryLoss multiplies integers with logarithms, of which Paddle 2 makes integers, without a gradient: its labels
are made float32.
"""
import contextlib
import os
from unittest import mock

import numpy as np
import paddle
import paddleseg
import paddleseg.models.losses as losses
from paddleseg.models.losses.focal_loss import MultiClassFocalLoss
from paddleseg.transforms import GenerateInstanceTargets

from tests.losses import paddleseg_cases as cases

FILE = os.path.join(os.path.dirname(__file__), 'paddleseg_losses.npz')


def gather_of_booleans():
    gather = paddle.gather

    def gathered(x, index, axis=None):
        boolean = x.dtype == paddle.bool
        found = gather(x.astype('int32') if boolean else x, index, axis)
        return found.astype('bool') if boolean else found

    return mock.patch.object(paddle, 'gather', gathered)


class RelaxBoundaryLoss(losses.RelaxBoundaryLoss):
    def relax_onehot(self, label, num_classes):
        return super().relax_onehot(label, num_classes).astype('float32')


CLASSES = {'RelaxBoundaryLoss': RelaxBoundaryLoss, 'MultiClassFocalLoss': MultiClassFocalLoss}


def instances(labels):
    """As PaddleSeg's data loader gives them."""
    step = GenerateInstanceTargets(cases.CLASSES)
    each = [step({'label': label, 'img': np.zeros((3, *label.shape))})['instances'] for label in labels]
    return {key: paddle.to_tensor(np.stack([item[key] for item in each])) for key in ('gt_classes', 'gt_masks')}


def reference(loss, parameters, kind, void):
    """(value, {name: gradient}), as PaddleSeg's loss_computation calls the loss."""
    labels, edges = cases.labels(kind, void)
    if isinstance(loss, list):
        layer = losses.MixedLoss([getattr(losses, name)() for name in loss], parameters)
    else:
        with cases.same_numbers():
            layer = (CLASSES.get(loss) or getattr(losses, loss))(**parameters)

    def computed(outputs):
        target = paddle.to_tensor(labels)
        if loss == 'KLLoss':
            return layer(outputs[0], outputs[1].detach())
        if loss == 'MaskFormerLoss':
            return layer(outputs[0], instances(labels))
        if getattr(layer, 'edge_label', False):
            target = paddle.to_tensor(edges[:, None].astype(np.int64))
        value = layer(outputs[0], target)
        return sum(value) if isinstance(value, list) else value

    return cases.run(kind, cases.arrays(kind)[0], computed)


def main():
    found = {'versions': np.array(f'paddleseg {paddleseg.__version__}, paddlepaddle {paddle.__version__}, numpy '
                                  f'{np.__version__}')}
    for name, (loss, parameters, kind) in cases.CASES.items():
        for which, void in cases.VOIDS.items():
            with gather_of_booleans() if loss == 'MaskFormerLoss' else contextlib.nullcontext():
                value, gradients = reference(loss, parameters, kind, void)
            found[f'{name}/{which}/value'] = value
            found.update({f'{name}/{which}/{key}': gradient for key, gradient in gradients.items() if gradient.any()})
            print(name, which, value, {key: float(np.abs(g).max()) for key, g in gradients.items()})
    np.savez_compressed(FILE, **found)
    print(os.path.getsize(FILE), 'bytes')


if __name__ == '__main__':
    main()
