"""Time, memory, work and exactness of hierarchical inference: every backend compared with the plain network.

    python -m benchmarks.inference [--size 1024 2048] [--scales 0.5 1 2] [--threads 2] [--only plain openvino]
    python -m benchmarks.inference --config configs/... --model_path .../model.pdparams --image_path image.png
    python -m benchmarks.inference --only openvino --memory_limit 2.1

One image through MscaleOCRNet on HRNet-W48, each configuration in its own process:

    plain                  the published evaluation, literally, in eager Paddle as pip installs it: the whole network at
                           every scale, each result at full size, nothing in strips
    paddle, fp16, bf16     --backend paddle, the GPU's default (half precision on a GPU only)
    openvino, bf16         --backend openvino, the CPU's default (bf16 where the processor has it)
    onnxruntime            --backend onnxruntime
    int8                   --precision int8, calibrated on two other toy scenes, or on the training images of --config
    ... plain graph        what anyone gets who exports the network: each scale as one ONNX graph of the network as it
                           was trained, batch norm folded, without anything that nobody reads

`plain, fast MKL` is plain on an AMD processor with the setting that common/cli.py makes there, without which Paddle's
MKL takes its slowest path. `s` is the best of --repeat rounds after a warm-up round (for plain: the only round),
`CPU s` its processor time. `peak` is the peak of resident memory (on a GPU: of the memory allocated there), including
library, weights and image. Multiply-adds are counted from the shapes. `x faster`, `off` (the largest difference of
logits relative to their range) and `equal` (the share of pixels with the same argmax) are relative to the first row.
Conversion, calibration and the choice of the form come before, in a process of their own. The last line is the table as
JSON.

The first command uses random weights and the batch norm statistics of the image itself, so that activations have the
scale of a trained network. Random weights are far more sensitive to rounding than trained ones; use the second command
for those.
"""
from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    import paddle

    from common.builder import Builder
    from models.mscale_ocrnet import MscaleOCRNet

BACKENDS = {  # backend and precision
    'paddle': ('paddle', 'fp32'), 'paddle fp16': ('paddle', 'fp16'), 'paddle bf16': ('paddle', 'bf16'),
    'openvino': ('openvino', 'fp32'), 'openvino bf16': ('openvino', 'bf16'), 'openvino int8': ('openvino', 'int8'),
    'onnxruntime': ('onnxruntime', 'fp32'), 'onnxruntime int8': ('onnxruntime', 'int8')}
GRAPHS = {f'{name} plain graph': BACKENDS[name] for name in (
    'openvino', 'openvino bf16', 'openvino int8', 'onnxruntime')}
CONFIGURATIONS = ('plain', 'plain, fast MKL', *BACKENDS, *GRAPHS)
NUM_CLASSES = 19
IMAGES = 'images'


def network(args: argparse.Namespace) -> MscaleOCRNet:
    """The MscaleOCRNet of the flags, with random weights."""
    import paddle

    from models.mscale_ocrnet import MscaleOCRNet
    if args.config:
        model = builder_of(args).model
        assert isinstance(model, MscaleOCRNet), '--config must be of a MscaleOCRNet'
        return model
    from models import hrnet
    paddle.seed(0)
    return MscaleOCRNet(NUM_CLASSES, getattr(hrnet, args.backbone)(), [0], n_scales=args.scales)


def builder_of(args: argparse.Namespace) -> Builder:
    """The Builder of --config at the scales of --scales."""
    from common.builder import Builder
    from common.config import Config
    return Builder(Config(args.config, [f'model.n_scales={args.scales}'] if args.scales else [], with_pretrained=False))


def prepare(folder: Path, args: argparse.Namespace) -> None:
    """Save an image and weights: those of the flags, or a toy image and random weights with its batch norm statistics.
    """
    import paddle

    from common import cli
    cli.start_paddle()
    if args.config:
        from paddleseg.transforms import Compose

        from inference import pictures
        image = pictures.read_image(args.image_path).astype('float32')
        image = Compose(builder_of(args).val_transforms)({'img': image})['img'][None]
        np.save(folder / 'image.npy', image)
        shutil.copy(args.model_path, folder / 'model.pdparams')
        args.size, args.scales = image.shape[2:], args.scales or network(args).n_scales
        return
    from tools.toy.scene import compose
    picture, _ = compose(tuple(args.size), np.random.default_rng(0))
    (folder / IMAGES).mkdir()
    for seed in (1, 2, 3):  # one of them to check with
        scene, _ = compose((256, 512), np.random.default_rng(seed))
        Image.fromarray(np.asarray(scene)).save(folder / IMAGES / f'{seed}.png')
    image = (np.asarray(picture, np.float32) / 255 - 0.45) / 0.225
    image = np.ascontiguousarray(image.transpose(2, 0, 1)[None])
    np.save(folder / 'image.npy', image)
    model = network(args)
    take_statistics(model, image)
    paddle.save(model.state_dict(), str(folder / 'model.pdparams'))


def take_statistics(model: MscaleOCRNet, image: np.ndarray) -> None:
    """Make batch norm's running statistics those of an image, float32 (1, 3, H, W): activations of a trained scale."""
    import paddle
    for layer in model.sublayers():
        if isinstance(layer, paddle.nn.BatchNorm2D):
            layer._momentum = 0.0  # the running statistics become those of the single step below
    model.train()
    with paddle.no_grad():
        step = max(1, min(image.shape[2:]) // 512)
        model(paddle.to_tensor(image[:, :, ::step, ::step]))


def plain_inference(model: MscaleOCRNet | SimpleNamespace, x: paddle.Tensor) -> paddle.Tensor:
    """The published evaluation: float32 (1, 3, H, W) -> logits (1, K, H, W)."""
    import paddle.nn.functional as F

    def sized(y: paddle.Tensor, like: paddle.Tensor) -> paddle.Tensor:
        return F.interpolate(y, like.shape[2:], mode='bilinear')

    fused = None
    for scale in sorted(model.n_scales, reverse=True):
        scaled = F.interpolate(x, [int(side * scale) for side in x.shape[2:]], mode='bilinear')
        logits, aux, features = model.ocrnet(scaled)
        logits, aux, attention = (sized(y, scaled) for y in (logits, aux, model.scale_attn(features)))
        if fused is None:
            fused = logits
        elif scale >= 1:
            fused = attention * logits + (1 - attention) * sized(fused, logits)
        else:
            fused = sized(attention * logits, fused) + (1 - sized(attention, fused)) * fused
    assert fused is not None, 'there is at least one scale'
    return fused


# ---------------------------------------------------------------- work

def plain_macs(args: argparse.Namespace) -> float:
    """Multiply-adds of plain_inference: those of convolutions from their shapes, and of the object attention."""
    import paddle

    from models import layers
    total = 0
    convolve = layers.convolve

    def count(output: paddle.Tensor, weight: paddle.Tensor) -> None:
        nonlocal total
        total += output.size * weight.size // weight.shape[0]

    def counted(x: paddle.Tensor, weight: paddle.Tensor, *rest: Any) -> paddle.Tensor:
        output = convolve(x, weight, *rest)
        count(output, weight)
        return output

    def hook(layer: paddle.nn.Conv2D, inputs: Any, output: paddle.Tensor) -> None:
        count(output, layer.weight)

    model = network(args)
    model.eval()
    for layer in model.sublayers():
        if isinstance(layer, paddle.nn.Conv2D):
            # The stubs want a hook to return something; Paddle takes None for: leave the output as it is.
            layer.register_forward_post_hook(hook)  # type: ignore[arg-type]
    head = model.ocrnet.head
    pixels, keys = head.layers().pixels.out_channels, head.layers().value.out_channels
    side = 256  # counted on a small image: everything is proportional to the pixels, except a few at K regions
    with paddle.no_grad(), mock.patch.object(layers, 'convolve', counted):  # of ConvBN, whose nn.Conv2D is not called
        plain_inference(SimpleNamespace(n_scales=[1.0], ocrnet=model.ocrnet, scale_attn=model.scale_attn),
                        paddle.zeros([1, 3, side, side]))
    total += (side // 4)**2 * len(head.cls_head.bias) * (pixels + 2 * keys)
    return total * args.size[0] * args.size[1] / side**2 * sum(scale**2 for scale in args.scales)


def fused_macs(args: argparse.Namespace) -> float:
    """Multiply-adds of inference.fused_network: convolutions and matrix products of its graphs, and fusion of rows."""
    from inference import fused, onnx_writer
    from inference.backends.engine import STRIP
    from inference.row_strips import split_rows
    model = network(args)
    graphs = {part: onnx_writer.build(model, part) for part in onnx_writer.PARTS}
    channels = model.ocrnet.backbone.branch_channels
    total = 0
    for scale in args.scales:
        height, width = (int(side * scale) for side in args.size)
        total += _graph_macs(graphs['backbone'], {'image': [1, 3, height, width]})
        sides = [(-(-height // 2**b), -(-width // 2**b)) for b in (2, 3, 4, 5)]
        rows, width = sides[0]
        strips, counts = split_rows(rows, [h for h, _ in sides[1:]], max(1, STRIP // width))
        last = 'logits' if scale == max(args.scales) else 'logits_and_attention'
        for s in strips:
            size = s.stop - s.start
            shapes = {'finest': [1, channels[0], size + 2, width], 'enlarge': s.enlarge.shape,
                      'enlarge_shifted': s.enlarge_shifted.shape,
                      **{f'branch_{b}': [1, channels[b], counts[b - 1], sides[b][1]] for b in (1, 2, 3)}}
            total += _graph_macs(graphs['pixels'], shapes)
            size += 0 if last == 'logits' else 2 * fused.HALO
            dims = {i.name: [d.dim_value for d in i.type.tensor_type.shape.dim] for i in graphs[last].graph.input}
            total += _graph_macs(graphs[last], {**dims, 'pixels': [1, dims['pixels'][1], size, width],
                                                **({'inside': [1, 1, size, 1]} if 'inside' in dims else {})})
    top, classes = max(args.scales), len(model.ocrnet.head.cls_head.bias)
    return total + (classes * args.size[0] * int(args.size[0] * top / 4) * int(args.size[1] * top / 4)
                    if top > 1 else 0)


def _graph_macs(model: Any, shapes: Mapping[str, Sequence[int]]) -> int:
    """Multiply-adds of the convolutions and matrix products of an ONNX graph for inputs of the given shapes."""
    import onnx
    graph = onnx.ModelProto()
    graph.CopyFrom(model)
    for value in graph.graph.input:
        for dim, length in zip(value.type.tensor_type.shape.dim, shapes[value.name]):
            dim.dim_value = length
    del graph.graph.output[:]
    found = {i.name: list(i.dims) for i in graph.graph.initializer} | {k: list(v) for k, v in shapes.items()}
    inferred = onnx.shape_inference.infer_shapes(graph, data_prop=True)
    for value in inferred.graph.value_info:
        found[value.name] = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
    total = 0
    for node in graph.graph.node:
        if node.op_type == 'Conv':
            total += int(np.prod(found[node.output[0]])) * int(np.prod(found[node.input[1]][1:]))
        elif node.op_type == 'MatMul':
            out, inner = found[node.output[0]], found[node.input[0]][-1]
            assert all(out) and inner, f'{node.output[0]}: no shape'
            total += int(np.prod(out)) * inner
    return total


# ---------------------------------------------------------------- measuring

def measure(name: str, folder: Path, args: argparse.Namespace) -> None:
    """Print time and memory of a configuration as JSON; save its logits."""
    if name == 'plain':
        os.environ['MKL_DEBUG_CPU_TYPE'] = ''  # cli.start_paddle() keeps an existing value
    from common import cli, flags
    from common.resident_memory import resident_mb
    from inference import backends, forms
    cli.start_paddle()
    import paddle

    from inference.predictor import Predictor
    from models import layers
    from models.weights import load_weights
    weights = str(folder / 'model.pdparams')
    started = time.perf_counter()
    if name.startswith('plain'):
        layers.UNFOLDED = 1 << 62  # no strips
        model = network(args)
        load_weights(model, weights)
        model.eval()

        def run(x: paddle.Tensor) -> paddle.Tensor:
            return plain_inference(model, x)
    else:
        os.environ['MSCALE_CACHE'] = str(folder / 'cache')
        backend, precision = {**BACKENDS, **GRAPHS}[name]
        if args.config:
            builder: Any = builder_of(args)
        else:
            from paddleseg.transforms import Normalize
            builder = SimpleNamespace(model=network(args), release_model=lambda: None,
                                      val_transforms=[Normalize(mean=[0.45] * 3, std=[0.225] * 3)])
        with mock.patch.object(forms, 'choose', lambda *_: forms.PLAIN) if name in GRAPHS else contextlib.nullcontext():
            fused = backends.create(builder, weights, backend, precision,
                                    calibration=(None if args.config else str(folder / IMAGES), 32))
        release, builder = builder.release_model, None
        release()
        if args.create:
            return
        predict = Predictor(fused, **flags.predictor_options({'memory_limit': args.memory_limit}))

        def run(x: paddle.Tensor) -> paddle.Tensor:
            return predict.logits(x)
    ready = time.perf_counter() - started
    image = paddle.to_tensor(np.load(folder / 'image.npy'))
    gpu = paddle.get_device() != 'cpu'
    rounds = []
    with paddle.no_grad():
        for _ in range(1 if name.startswith('plain') and not gpu else args.repeat + 1):
            start, cpu = time.perf_counter(), time.process_time()
            logits = run(image)
            if gpu:
                paddle.device.synchronize()
            rounds.append((time.perf_counter() - start, time.process_time() - cpu))
    peak = paddle.device.cuda.max_memory_allocated() / 2**30 if gpu else resident_mb('VmHWM') / 1024
    np.save(folder / f'{name}.npy', logits.numpy())
    seconds, cpu = min(rounds[1:] or rounds)
    print(json.dumps({'seconds': seconds, 'cpu': cpu, 'peak_gb': peak, 'start_s': ready}))


def compare(args: argparse.Namespace) -> dict[str, Any]:
    """Measure the configurations and print a row for each; returns the rows and the multiply-adds."""
    rows: dict[str, dict[str, Any]] = {}
    base = None
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        prepare(folder, args)
        print(f'{args.config or args.backbone}, {args.size[0]}x{args.size[1]}, scales {args.scales}, '
              f'{args.threads} threads')
        macs = {'plain': plain_macs(args) / 1e9, 'fused': fused_macs(args) / 1e9}
        print(f'multiply-adds: plain {macs["plain"]:.0f} G, rearranged {macs["fused"]:.0f} G '
              f'({macs["fused"] / macs["plain"]:.1%})\n')
        print(f'{"":24} {"s":>8} {"CPU s":>8} {"x faster":>9} {"peak GB":>8} {"start s":>8} {"off":>9} {"equal":>9}',
              flush=True)
        for name in args.only or CONFIGURATIONS:
            command = [sys.executable, '-W', 'ignore', '-m', 'benchmarks.inference', *sys.argv[1:],
                       '--measure', name, str(folder)]
            for more in ([] if name.startswith('plain') else [['--create']]) + [[]]:  # first what is kept afterwards
                done = subprocess.run([*command, *more], env={**os.environ, 'OMP_NUM_THREADS': str(args.threads)},
                                      capture_output=True, text=True)
                if done.returncode:
                    break
            if done.returncode:
                print(f'{name:24} not measured: {(done.stderr.strip().splitlines() or ["no message"])[-1]}', flush=True)
                continue
            row = rows[name] = json.loads(done.stdout.splitlines()[-1])
            base = base or name
            row['faster'] = rows[base]['seconds'] / row['seconds']
            expected, found = (np.load(folder / f'{n}.npy', mmap_mode='r') for n in (base, name))
            row['off'] = float(np.abs(expected - found).max() / (expected.max() - expected.min()))
            row['equal'] = float((expected.argmax(1) == found.argmax(1)).mean())
            print(f'{name:24} {row["seconds"]:8.2f} {row["cpu"]:8.2f} {row["faster"]:9.2f} '
                  f'{row["peak_gb"]:8.2f} {row["start_s"]:8.1f} {row["off"]:9.1e} '
                  f'{row["equal"]:9.4%}', flush=True)
    return {'gmac': macs, **rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--size', type=int, nargs=2, default=(1024, 2048), metavar=('HEIGHT', 'WIDTH'))
    parser.add_argument('--scales', type=float, nargs='+', help='default: 0.5 1 2, or those of --config')
    parser.add_argument('--backbone', default='HRNet_W48_NV', help='name of a backbone in models/hrnet.py')
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument('--repeat', type=int, default=1, help='rounds after the one to warm up')
    parser.add_argument('--only', nargs='+', choices=CONFIGURATIONS, help='measure these')
    parser.add_argument('--config', help='measure the network of this config')
    parser.add_argument('--model_path', help='with these weights')
    parser.add_argument('--image_path', help='on this image')
    parser.add_argument('--memory_limit', type=float, metavar='GB', help='as of val.py; windows give other logits')
    parser.add_argument('--measure', nargs=2, help=argparse.SUPPRESS)
    parser.add_argument('--create', action='store_true', help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not args.config:
        args.scales = args.scales or [0.5, 1.0, 2.0]
    elif not (args.model_path and args.image_path):
        parser.error('--config: expected --model_path and --image_path with it')
    if args.measure:
        measure(args.measure[0], Path(args.measure[1]), args)
        return
    print(json.dumps(compare(args)))


if __name__ == '__main__':
    main()
