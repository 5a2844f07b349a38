"""Converted networks in int8: the convolutions of backbone and head take 8 bits, the rest stays float.

Calibrated as an export (inference.export.quantisation), on one scale of the network at a time, as it sees the images.
"""
import hashlib
import inspect
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import paddle
from onnx.utils import Extractor

from common.atomic_io import write_atomically
from inference import converted, scale_graph
from inference.export import check, quantisation
from models.mscale_ocrnet import MscaleOCRNet
from models.weights import load_weights

logger = logging.getLogger(__name__)

CHECK = 'check.json'
CHECKED = 4  # windows of images at most
ENOUGH = 0.99  # of the classes


@contextmanager
def converted_int8(builder: Any, model: MscaleOCRNet, model_path: str | os.PathLike, images: quantisation.Images,
                   cache: bool,
                   logits: Callable[[str, Path | None, list[np.ndarray]], list[np.ndarray]]) -> Iterator[Path]:
    """A folder as of inference.converted, whose backbone and scale graphs are in int8.

    builder: common.builder.Builder, which gives the images and releases its model. images: to calibrate on, and to
    check with. logits: (precision, folder, images) -> logits of the network in that precision, of the folder where it
    is int8; called once per folder that is kept.
    Raises UserError where packages or images are missing.
    """
    quantisation.check_packages()
    taken = quantisation.choose(images, builder, quantisation.resizing(builder))
    inputs, shown = calibration(builder, model, taken)
    digest = hashlib.sha256()
    for array in inputs:
        digest.update(str(array.shape).encode() + array.tobytes())
    key = converted.key_of(converted.key(model, model_path), digest.hexdigest(), version('nncf'),
                           *map(inspect.getsource, (quantisation, sys.modules[__name__])))

    with converted.kept(key, partial(_write, model, model_path, inputs), model_path, cache) as folder:
        del model, inputs  # 0.3 GB
        builder.release_model()
        path = folder / CHECK
        if not path.exists():
            wanted, found = (logits(precision, where, shown)
                             for precision, where in (('fp32', None), ('int8', folder)))
            equal = np.mean([(a.argmax(1) == b.argmax(1)).mean() for a, b in zip(wanted, found)])
            write_atomically(path, json.dumps({'equal': float(equal), 'images': len(shown)}).encode())
        said = json.loads(path.read_text())
        logger.log(logging.INFO if said['equal'] >= ENOUGH else logging.WARNING,
                   'int8: %.2f %% of the classes of %d images that it was not calibrated on are those of fp32%s',
                   100 * said['equal'], said['images'], '' if said['equal'] >= ENOUGH else
                   '; more images (--calibration_count) that are like those to come (--calibration_images) may help')
        yield folder


def calibration(builder: Any, model: MscaleOCRNet,
                taken: quantisation.Chosen) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Float32 (1, 3, h, w): what the network sees of the images to calibrate on, at every scale; images to check with.
    """
    normalise = check.normalising(builder)
    inputs = [model.scale_image(paddle.to_tensor(check.normalised(image, normalise)), scale).numpy()
              for image in taken.calibration for scale in sorted(set(model.n_scales))]
    return inputs, [check.normalised(image[:quantisation.WINDOW[0], :quantisation.WINDOW[1]], normalise)
                    for image in taken.held_out[:CHECKED]]


def _write(model: MscaleOCRNet, model_path: str | os.PathLike, inputs: Sequence[np.ndarray], folder: Path) -> None:
    load_weights(model, model_path)
    model.eval()
    converted.write_parts(model, folder, _graphs(model, inputs))


def _graphs(model: MscaleOCRNet, inputs: Sequence[np.ndarray]) -> Iterator[tuple[str, onnx.ModelProto]]:
    """The scale graphs and the backbone of a model in evaluation mode with its weights, calibrated once."""
    graph = quantisation.quantised(scale_graph.build(model, True), inputs)
    for name, outputs in ((scale_graph.part(True), [scale_graph.LOGITS, scale_graph.ATTENTION]),
                          (scale_graph.part(False), [scale_graph.LOGITS]), ('backbone', scale_graph.branches(graph))):
        yield name, Extractor(graph).extract_model([scale_graph.IMAGE], outputs)
