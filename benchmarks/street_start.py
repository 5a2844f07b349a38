"""What could hold back a first run from scratch: the recipe's losses, attention and batch norm on one batch.

    python -m benchmarks.street_start --config CONFIG [--model_path WEIGHTS] [--images 16] [--seed 0]

On training crops of the config, with weights of a run or, without --model_path, as training starts from:

    hard pixels   share of the labelled pixels of the joint output with a loss above loss_th. Bootstrapping drops the
                  others, as long as more than min_K of an image are above
    gradients     of dice and of bootstrapped cross entropy, with the config's coefficients: norm over all parameters,
                  and the cosine of the angle between them
    attention     weight of the 0.5x scale in training: mean and standard deviation over the pixels; 0.5 is undecided
    accuracy      of every output, with batch norm's running statistics and with those of the batch
"""
import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from common import cli

if TYPE_CHECKING:
    import paddle

OUTPUTS = ('joint', 'joint auxiliary', '0.5x', '1.0x')


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = cli.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--config', required=True, help='YAML file of a MscaleOCRNet with dice and bootstrapping')
    parser.add_argument('--model_path', help='weights (default: those that training starts from)')
    parser.add_argument('--images', type=int, default=16, help='crops in the batch')
    parser.add_argument('--seed', type=int, default=0, help='of the weights and the crops')
    parser.add_argument('--opts', nargs='+', default=[], metavar='KEY=VALUE', help='override keys of the config')
    cli.add_debug_flag(parser)
    return parser.parse_args(argv)


def gradient(total: 'paddle.Tensor', parameters: Sequence[Any]) -> 'paddle.Tensor':
    """The gradient of a 0-d tensor in all parameters, one vector."""
    import paddle
    found = paddle.grad(total, parameters, retain_graph=True, allow_unused=True)
    return paddle.concat([(paddle.zeros_like(p) if g is None else g).reshape([-1]) for p, g in zip(parameters, found)])


def main(argv: Sequence[str]) -> None:
    args = parse_args(argv)
    cli.start_paddle()
    import numpy as np
    import paddle

    from common.builder import Builder
    from common.config import Config
    from losses import softmax_statistics
    from models.weights import load_weights

    builder = Builder(Config(args.config, args.opts, with_pretrained=args.model_path is None))
    paddle.seed(args.seed)
    model: Any = builder.model
    if args.model_path:
        load_weights(model, args.model_path)
    dataset = builder.train_dataset
    dataset.seed = args.seed
    samples = [dataset[(0, i * len(dataset) // args.images)] for i in range(args.images)]
    images, labels = (paddle.to_tensor(np.stack([s[key] for s in samples])) for key in ('img', 'label'))
    valid = labels != dataset.ignore_index

    def accuracies(outputs: Sequence[paddle.Tensor]) -> list[str]:
        right = [((logits.argmax(1) == labels) & valid).sum() for logits in outputs]
        return [f'{name} {100 * float(n) / int(valid.sum()):.1f}%' for name, n in zip(OUTPUTS, right)]

    model.eval()
    with paddle.no_grad():
        print('accuracy, running statistics:', ', '.join(accuracies(model.two_scales(images))))
    model.train()
    with paddle.no_grad():  # as training has it: at the start, running statistics say nothing yet
        attention = model.attention_map(images, 0.5)
    print(f'attention of 0.5x: {float(attention.mean()):.3f} +- {float(attention.std()):.3f}')
    outputs = model.two_scales(images)
    print('accuracy, statistics of the batch:', ', '.join(accuracies(outputs)))
    statistics = [softmax_statistics(logits, labels, dataset.ignore_index) for logits in outputs]
    kinds: dict[str, Any] = {}
    for i, (layer, coef) in enumerate(zip(builder.loss['types'], builder.loss['coef'])):
        value = coef * layer.from_statistics(statistics[i % len(outputs)])
        kinds[layer.short_name] = kinds.get(layer.short_name, 0) + value
        if hasattr(layer, 'min_K') and not i % len(outputs):
            above = (statistics[0].nll > layer.loss_th).astype('int64').sum(1)
            print(f'hard pixels: {100 * int(above.sum()) / int(valid.sum()):.1f}% of the labelled ones; fewest in an '
                  f'image {int(above.min())}, min_K {layer.min_K}')
    parameters = [p for p in model.parameters() if not p.stop_gradient]
    vectors = {name: gradient(value, parameters) for name, value in kinds.items()}
    print('gradients:', ', '.join(f'{name} {float(paddle.linalg.norm(g)):.3f}' for name, g in vectors.items()))
    if len(vectors) == 2:
        first, second = vectors.values()
        cosine = (first * second).sum() / (paddle.linalg.norm(first) * paddle.linalg.norm(second))
        print(f'cosine of their angle: {float(cosine):.2f}')


if __name__ == '__main__':
    cli.run(main)
