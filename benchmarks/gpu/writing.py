"""Graphs, an image and how the weights are drawn, into a folder that travels: megabytes for hundreds of them."""
import argparse
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from benchmarks import inference as of_inference
from benchmarks.gpu import weights
from common.errors import FileError
from models.mscale_ocrnet import MscaleOCRNet

SMALLEST = 1 << 8  # numbers; smaller weights stay in the graphs
CLOSE = 1e-6  # of the largest number of a weight: what folding batch norm in float64 and in float32 can differ by


def write(folder: Path, args: argparse.Namespace) -> None:
    """The folder's manifest comes last: without it, writing was not finished."""
    from common import cli
    cli.start_paddle()
    import paddle

    from inference.export import description, onnx_graph
    from inference.export.whole import Settings
    from tools.toy.scene import compose
    if folder.exists() and any(folder.iterdir()):
        raise FileError(f'--write {folder}: expected a new or an empty folder, found {sorted(folder.iterdir())[0].name}'
                        '; choose another one, or delete it')
    folder.mkdir(parents=True, exist_ok=True)
    picture = np.ascontiguousarray(compose(tuple(args.size), np.random.default_rng(args.seed))[0], np.uint8)
    np.save(folder / 'image.npy', picture)
    model = of_inference.network(args)
    raw = draw(model, args.seed)
    image = np.ascontiguousarray(((picture.astype(np.float32) / 255 - 0.45) / 0.225).transpose(2, 0, 1)[None])
    of_inference.take_statistics(model, image)
    model.eval()
    calm(model)
    balance(model, image)
    recipe = Recipe(raw)
    for form, precision in itertools.product(('plain', 'ours'), weights.DTYPES):
        settings = Settings(tuple(args.size), 'classes', True, args.flip, precision, (0.45,) * 3, (0.225,) * 3)
        graph = onnx_graph.build(model, settings, {}, rearranged=form == 'ours')
        recipe.move(graph, form, precision)
        (folder / f'{form}_{precision}_classes.onnx').write_bytes(graph.SerializeToString())
        (folder / f'{form}_{precision}_logits.onnx').write_bytes(
            without_classes(graph, of_inference.NUM_CLASSES, args.size).SerializeToString())
    factors = np.concatenate(recipe.factors)
    np.save(folder / weights.FACTORS, factors)
    weights.write(folder, args.seed, recipe.arrays, factors)
    paths = [folder / weights.file_of(precision) for precision in weights.DTYPES]
    manifest = {
        'size': list(args.size), 'scales': list(args.scales), 'flip': args.flip, 'backbone': args.backbone,
        'seed': args.seed, 'classes': of_inference.NUM_CLASSES, 'versions': {
            'repository': description.version(), 'paddle': paddle.__version__, 'onnx': onnx.__version__,
            'numpy': np.__version__},
        'sha256': {path.name: weights.sha256_of(path) for path in paths}, 'arrays': recipe.arrays}
    for path in paths:
        path.unlink()
    (folder / 'manifest.json').write_text(json.dumps(manifest))


def draw(model: MscaleOCRNet, seed: int) -> list[np.ndarray]:
    """Give each convolution weights drawn anew, of the deviation that it has; returns them as they were drawn."""
    import paddle
    found = []
    for number, weight in enumerate(w for w in model.parameters() if len(w.shape) == 4):
        found.append(weights.drawn(seed, number, weight.shape))
        deviation = float(weight.numpy().std())
        weight.set_value(paddle.to_tensor(found[-1] * np.float32(3**0.5 * deviation)))
    return found


def calm(model: MscaleOCRNet) -> None:
    """Let batch norm not enlarge what the object regions differ by.

    With random weights they are nearly the same, and their small variance at one scale would be the measure for another
    scale: its logits would be the same for all pixels, and rounding in fp16 a fifth of their range.
    """
    import paddle
    found = [value for name, value in model.state_dict().items() if name.endswith('_variance') and
             any(f'.{layer}.' in name for layer in ('f_object', 'f_down', 'f_up'))]
    assert len(found) == 4, 'batch norm of the object regions has other names'
    for variance in found:
        variance.set_value(paddle.clip(variance, min=1.0))


def balance(model: MscaleOCRNet, image: np.ndarray) -> None:
    """Move the biases of the classes so that none has all pixels: that they are equal would say nothing."""
    import paddle
    step = max(1, min(image.shape[2:]) // 512)
    scales = [scale for scale in model.n_scales if scale <= 1] or model.n_scales  # larger ones take minutes in Paddle
    with paddle.no_grad():
        logits = model.hierarchy(paddle.to_tensor(np.ascontiguousarray(image[:, :, ::step, ::step])), scales)
    bias = model.ocrnet.head.layers().classifier.bias
    bias.set_value(bias - logits.mean([0, 2, 3]))


class Recipe:
    """Where each weight of the graphs comes from; weights are taken out of them.

    raw: of each convolution, as drawn. Batch norm multiplies each output channel by a factor, and the rearranged head
    has pieces of the weights of the plain graph, which is moved first.
    """

    def __init__(self, raw: Sequence[np.ndarray]) -> None:
        self.arrays: list[dict[str, Any]] = []
        self.factors: list[np.ndarray] = []
        self._raw = raw
        self._whole: list[tuple[np.ndarray, dict[str, Any]]] = []  # weights of the plain graph
        self._places: dict[tuple[str, str], dict[str, Any]] = {}  # by form and name in the graph of it
        self._ends = dict.fromkeys(weights.DTYPES, 0)

    def move(self, graph: onnx.ModelProto, form: str, precision: str) -> None:
        """fp32 first: what fp16 has is its rounding, under the same name."""
        for stored in graph.graph.initializer:
            if len(stored.dims) != 4 or np.prod(stored.dims) < SMALLEST:
                continue
            key = form, stored.name
            if precision == 'fp32':
                array = numpy_helper.to_array(stored)
                found = self._drawn(array) if form == 'plain' else self._piece(array)
                if found is not None:
                    self._places[key] = found
            if key in self._places:
                place = self._places[key]
                width = np.dtype(weights.DTYPES[precision]).itemsize
                assert stored.data_type == numpy_helper.from_array(np.zeros(1, weights.DTYPES[precision])).data_type
                _set_external(stored, weights.file_of(precision), place['offsets'][precision],
                              int(np.prod(stored.dims)) * width)

    def _drawn(self, array: np.ndarray) -> dict[str, Any] | None:
        """The convolution whose weight, times a factor for each output channel, this is."""
        for number, raw in enumerate(self._raw):
            if raw.shape == array.shape:
                rows, folded = raw.reshape(len(raw), -1), array.reshape(len(raw), -1)
                largest = np.abs(rows).argmax(1)[:, None]
                factors = (np.take_along_axis(folded, largest, 1) / np.take_along_axis(rows, largest, 1))[:, 0]
                if np.abs(rows[0] * factors[0] - folded[0]).max() <= CLOSE * np.abs(folded[0]).max():
                    assert np.abs(rows * factors[:, None] - folded).max() <= CLOSE * np.abs(folded).max()
                    start = sum(map(len, self.factors))
                    self.factors.append(factors.astype(np.float32))
                    found = self._add({'number': number, 'shape': list(raw.shape),
                                       'factors': [start, start + len(raw)], 'columns': [0, raw.shape[1]],
                                       'tap': None}, raw.size)
                    self._whole.append((array, found))
                    return found
        return None

    def _piece(self, array: np.ndarray) -> dict[str, Any] | None:
        """The weight of the plain graph that this is a piece of."""
        for whole, entry in self._whole:
            if len(whole) == len(array):
                for columns, tap in _places(whole, array):
                    if np.array_equal(weights.piece(whole, columns, tap), array):
                        if columns == [0, whole.shape[1]] and tap is None:
                            return entry
                        return self._add({**entry, 'columns': columns, 'tap': tap}, array.size)
        return None

    def _add(self, entry: Mapping[str, Any], size: int) -> dict[str, Any]:
        entry = {**entry, 'offsets': dict(self._ends)}
        for precision, dtype in weights.DTYPES.items():
            end = self._ends[precision] + size * np.dtype(dtype).itemsize
            self._ends[precision] = -(-end // weights.ALIGNMENT) * weights.ALIGNMENT
        self.arrays.append(entry)
        return entry


def _places(whole: np.ndarray, array: np.ndarray) -> Iterator[tuple[list[int], list[int] | None]]:
    """Columns and taps of `whole` at which `array` may be: its first number is there."""
    height, width = whole.shape[2:]
    same = array.shape[2:] == (height, width)
    taps: list[list[int] | None] = [None] if same else [[y, x] for y in range(height) for x in range(width)]
    for tap in taps:
        y, x = tap or (0, 0)
        for start in np.flatnonzero(whole[0, :, y, x] == array[0, 0, 0, 0]):
            yield [int(start), int(start) + array.shape[1]], tap


def _set_external(stored: onnx.TensorProto, location: str, offset: int, length: int) -> None:
    stored.ClearField('raw_data')
    stored.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (('location', location), ('offset', offset), ('length', length)):
        stored.external_data.add(key=key, value=str(value))


def without_classes(graph: onnx.ModelProto, classes: int, size: Sequence[int]) -> onnx.ModelProto:
    """The same graph, which gives the logits float32 (1, K, H, W) that ArgMax reads."""
    found = onnx.ModelProto()
    found.CopyFrom(graph)
    nodes = found.graph.node
    first = next(number for number, node in enumerate(nodes) if node.op_type == 'ArgMax')
    logits = nodes[first].input[0]
    del nodes[first:]
    for node in nodes:
        node.output[0] = 'logits' if node.output[0] == logits else node.output[0]
    del found.graph.output[:]
    found.graph.output.add().CopyFrom(onnx.helper.make_tensor_value_info(
        'logits', onnx.TensorProto.FLOAT, [1, classes, *size]))
    return found
