"""An exported graph in int8: NNCF's quantisation after training, calibrated on images; the images to check it with.

In QDQ form (QuantizeLinear and DequantizeLinear of ONNX): convolutions take 8-bit activations, one scale per tensor,
and 8-bit weights, one scale per output channel. What FLOAT names stays float32.
"""
import contextlib
import importlib.util
import io
import json
import logging
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import helper
from paddleseg.transforms import Normalize
from tqdm import tqdm

from common.errors import UserError
from common.export_table import INT8_PACKAGES
from inference.pictures import find_inputs, read_image

logger = logging.getLogger(__name__)

SEED = 0
WINDOW = (256, 512)  # (H, W) at most, to calibrate on: NNCF keeps all activations of an image, 7 GB for HRNet-W48
CHECKED = 8  # images at most
CHECKED_WINDOW = (512, 1024)
FLOAT = ('resizing', 'concatenation', 'softmax', 'products with object regions', 'classifiers', 'sigmoid',
         'fusion of scales', 'argmax')
# Resize: in int8, OpenVINO 2026.4 refuses the graph where the rest is bfloat16, its default with AMX. Concat and
# Unsqueeze: NNCF would quantise their inputs instead of those of the convolutions after them, where ONNX Runtime looks.
FLOAT_TYPES = ('Resize', 'Concat', 'Unsqueeze', 'Softmax', 'MatMul', 'Sigmoid')

Transform = Callable[[dict[str, Any]], dict[str, Any]]


class Images(NamedTuple):
    """folder: of --calibration_images; None: the images of the config. most: to calibrate on."""
    folder: str | None = None
    most: int = 32


class Chosen(NamedTuple):
    """calibration, held_out: uint8 (h, w, 3) RGB windows of images. source, check_source: where these are from."""
    calibration: list[np.ndarray]
    held_out: list[np.ndarray]
    source: str
    check_source: str


def check_packages() -> None:
    """UserError if what int8 needs is not installed."""
    for name in INT8_PACKAGES:
        if importlib.util.find_spec(name) is None:
            raise UserError(f'--precision int8: expected the package {name}, found none; pip install --no-deps -r '
                            'requirements-int8.txt')


def choose(images: Images, builder: Any, resizing: Sequence[Transform] = ()) -> Chosen:
    """Seeded windows of images: from the folder; without one, training images to calibrate on, others to check with.

    builder: common.builder.Builder. Those to check with are never calibrated on. resizing: the transforms of the
    validation images without Normalize, so that the images have the size at which the network sees them.
    """
    rng = np.random.default_rng(SEED)
    if images.folder is None:
        source, check_source = 'the training images of the config', 'the validation images of the config'
        found, others = _files(builder, 'train_dataset'), _files(builder, 'val_dataset')
        held_out = [others[i] for i in rng.permutation(len(others))[:CHECKED]]
    else:
        source = check_source = images.folder
        found = [path for path, _ in find_inputs(images.folder, flag='--calibration_images')]
        held_out = [found[i] for i in rng.permutation(len(found))[:min(CHECKED, max(1, len(found) // 4))]]
    found = sorted(set(found) - set(held_out))  # training images may be validation images, too (add_val)
    calibration = [found[i] for i in rng.permutation(len(found))[:images.most]]
    if not (calibration and held_out):
        raise UserError(f'--calibration_images: expected an image to calibrate on and another one to check with, found '
                        f'{len(calibration)} in {source} and {len(held_out)} in {check_source}; add images')
    chosen = Chosen([_window(path, WINDOW, rng, resizing) for path in calibration],
                    [_window(path, CHECKED_WINDOW, rng, resizing) for path in held_out], source, check_source)
    logger.info('int8: calibrate on %s windows of up to %sx%s of %s, check on %s others of %s, seed %s; in float32: '
                '%s', len(chosen.calibration), *WINDOW, source, len(chosen.held_out), check_source, SEED,
                ', '.join(FLOAT))
    return chosen


def resizing(builder: Any) -> list[Transform]:
    """The transforms of the validation images without Normalize."""
    return [step for step in builder.val_transforms if not isinstance(step, Normalize)]


def _files(builder: Any, section: str) -> list[Path]:
    cfg = dict(builder.config.dic.get(section, {}))
    for key in {'class_uniform', 'coarse_multiple'} & cfg.keys():  # these read all labels, which are not needed
        cfg[key] = 0
    try:
        return [Path(row[0]) for row in builder.build_component(cfg).file_list] if cfg else []
    except UserError as error:
        raise UserError(f'{error}; or name other images by --calibration_images DIR') from None


def _window(path: Path, size: tuple[int, int], rng: np.random.Generator, resizing: Sequence[Transform]) -> np.ndarray:
    """uint8 (h, w, 3) RGB at a random place of an image."""
    sample: dict[str, Any] = {'img': read_image(path), 'trans_info': []}
    for step in resizing:
        sample = step(sample)
    image = sample['img']
    top, left = (int(rng.integers(max(0, side - most) + 1)) for side, most in zip(image.shape, size))
    return np.ascontiguousarray(image[top:top + size[0], left:left + size[1], ::-1])


def description(chosen: Chosen) -> dict[str, str]:
    """For the metadata of the file."""
    values = {'method': f'NNCF {version("nncf")}, after training', 'weights': 'int8 per output channel',
              'activations': '8 bits per tensor', 'float32': FLOAT, 'calibration_images': len(chosen.calibration),
              'calibration_window': WINDOW, 'seed': SEED}
    return {'precision': json.dumps('int8'), 'quantisation': json.dumps(values)}


def quantised(graph: onnx.ModelProto, inputs: Sequence[np.ndarray]) -> onnx.ModelProto:
    """A graph of inference.export.onnx_graph for any size in int8, calibrated on these inputs; checked."""
    os.environ.setdefault('NNCF_CI', '1')  # it reports each use to its makers, where openvino_telemetry is installed
    import nncf
    from nncf.quantization.advanced_parameters import OverflowFix

    logging.getLogger('nncf').setLevel(logging.ERROR)  # nncf.set_log_level would quieten everybody's handlers
    for node in graph.graph.node:
        node.name = node.output[0]
    metadata = {entry.key: entry.value for entry in graph.metadata_props}
    with contextlib.redirect_stdout(io.StringIO()):  # NNCF's own bar; ours goes to stderr
        found = nncf.quantize(
            graph, nncf.Dataset(_Shown(inputs), lambda image: {'image': image}), subset_size=len(inputs),
            preset=nncf.QuantizationPreset.MIXED,
            # Not validated: with one scale there is no sigmoid.
            ignored_scope=nncf.IgnoredScope(names=float_nodes(graph.graph), types=list(FLOAT_TYPES), validate=False),
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                # Weights within 64 in place of 127: processors without VNNI add two products of an 8-bit activation and
                # a weight in 16 bits, and 2 * 255 * 64 is what fits. The correction of biases was not measured.
                overflow_fix=OverflowFix.ENABLE, disable_bias_correction=True))
    del found.metadata_props[:]
    helper.set_model_props(found, metadata)
    onnx.checker.check_model(found, full_check=True)
    return found


class _Shown:
    """A sequence whose iteration shows its progress."""

    def __init__(self, inputs: Sequence[np.ndarray]) -> None:
        self._inputs = inputs

    def __len__(self) -> int:
        return len(self._inputs)

    def __iter__(self) -> Iterator[np.ndarray]:
        with tqdm(total=len(self._inputs), desc='calibration', unit='image') as bar:
            for array in self._inputs:
                bar.update()  # before, since NNCF stops at the last one
                yield array


def float_nodes(graph: onnx.GraphProto) -> list[str]:
    """Names of the nodes beside FLOAT_TYPES that stay float: classifiers, and what no convolution follows."""
    users = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            users[name].append(node)
    followed: set[str] = set()  # names of nodes that a convolution follows
    for node in reversed(graph.node):
        if any(user.op_type == 'Conv' or user.name in followed for name in node.output for user in users[name]):
            followed.add(node.name)
    makers = {name: node for node in graph.node for name in node.output}
    auxiliary = [_source(makers, node.input[0]) for node in graph.node if node.op_type == 'Softmax']
    return [node.name for node in graph.node if node.name not in followed] + sorted(
        {node.name for node in auxiliary if node.op_type == 'Conv' and node.name in followed})


def _source(makers: dict[str, onnx.NodeProto], name: str) -> onnx.NodeProto:
    """What computes a value, before it is reshaped or cast."""
    node = makers[name]
    return _source(makers, node.input[0]) if node.op_type in ('Flatten', 'Cast') else node


