"""Converted networks: ONNX graphs of the parts, cached in a folder named by a hash of everything they depend on."""
import hashlib
import inspect
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from common.atomic_io import flush_folder, sha256_of
from common.errors import FileError
from common.model_zoo import cache_folder
from inference import fused
from models import layers, ocr, operations, scale_attention
from models.mscale_ocrnet import MscaleOCRNet
from models.weights import check_path, load_weights

logger = logging.getLogger(__name__)

OBJECTS, SIZES = 'objects.npz', 'sizes.json'


@contextmanager
def converted(model: MscaleOCRNet, model_path: str | os.PathLike, cache: bool, half: bool = False) -> Iterator[Path]:
    """A folder with the parts of inference.onnx_writer as .onnx and OBJECTS, for a model with these weights; as `kept`.

    half: another folder, whose graphs are in float16, except for the strips of the head.
    """
    name = key(model, model_path)
    with kept(key_of(name, 'fp16') if half else name, partial(_write, model, model_path, half), model_path,
              cache) as folder:
        del model  # so that the caller can free its memory inside the context
        yield folder


def _write(model: MscaleOCRNet, model_path: str | os.PathLike, half: bool, folder: Path) -> None:
    load_weights(model, model_path)
    model.eval()
    write_parts(model, folder, _half_graphs(model) if half else None)


@contextmanager
def kept(key: str, write: Callable[[Path], None], model_path: str | os.PathLike, cache: bool) -> Iterator[Path]:
    """A folder of this name with what `write` puts into it.

    cache: keep it in `cache_folder`, and look there first; otherwise it is removed afterwards.
    Raises FileError if it cannot be written.
    """
    folder = _convert(key, write, model_path, cache)
    del write
    try:
        yield folder
    finally:
        if not cache:
            shutil.rmtree(folder, ignore_errors=True)


def _convert(key: str, write: Callable[[Path], None], model_path: str | os.PathLike, cache: bool) -> Path:
    root = cache_folder() if cache else Path(tempfile.gettempdir())
    folder = root / key
    try:
        root.mkdir(parents=True, exist_ok=True)
        if cache and _is_whole(folder):
            return folder
        partial = Path(tempfile.mkdtemp(dir=root, prefix='.partial-'))
    except OSError as error:
        raise FileError(f'{root}: expected a folder to keep the converted network in, found {error.strerror}; set '
                        'MSCALE_CACHE to another folder, or use --no_cache') from error
    try:
        logger.info('converting %s, once', model_path)
        write(partial)
        sizes = {path.name: path.stat().st_size for path in sorted(partial.iterdir())}
        (partial / SIZES).write_text(json.dumps(sizes))
        if not cache:
            return partial
        if folder.exists() and not _is_whole(folder):
            shutil.rmtree(folder, ignore_errors=True)
        try:
            partial.rename(folder)
        except OSError:  # another process was faster
            if not _is_whole(folder):
                raise
            shutil.rmtree(partial, ignore_errors=True)
        flush_folder(root)
        return folder
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def write_parts(model: MscaleOCRNet, folder: Path, graphs: Iterable[tuple[str, Any]] | None = None) -> None:
    """Write the parts of a model in evaluation mode.

    graphs: (name, onnx.ModelProto), those without strips by default; a part among them takes the place of the one in
    float.
    """
    from inference import onnx_writer
    from inference.shared_weights import SharedWeights
    fused.check_folding(model)
    if graphs is None:
        graphs = _whole_graphs(model)
    with SharedWeights(folder) as shared:
        def write(name: str, graph: Any) -> None:
            (folder / f'{name}.onnx').write_bytes(shared.move(graph).SerializeToString())

        for name, graph in graphs:
            write(name, graph)
        for part in onnx_writer.PARTS:
            if not (folder / f'{part}.onnx').exists():
                write(part, onnx_writer.build(model, part))
    weights = fused.object_weights(model.ocrnet.head)
    np.savez(folder / OBJECTS, **weights)  # type: ignore[arg-type]  # NumPy's stub takes ** for allow_pickle: bool


def _whole_graphs(model: MscaleOCRNet, half: bool = False) -> Iterator[tuple[str, Any]]:
    """Those without strips."""
    from inference import scale_graph
    for attend in (False, True):
        yield scale_graph.part(attend), scale_graph.build(model, attend, half)
    if model.scale_image is layers.scale_image:  # PaddleSeg's network scales images in its own way
        yield scale_graph.HIERARCHY, scale_graph.build_hierarchy(model, half)


def _half_graphs(model: MscaleOCRNet) -> Iterator[tuple[str, Any]]:
    from inference import scale_graph
    yield from _whole_graphs(model, half=True)
    yield 'backbone', scale_graph.build_backbone(model)


def key(model: MscaleOCRNet, model_path: str | os.PathLike) -> str:
    """Hash of the weights, the network and its scales, the code that converts, and onnx's version."""
    import onnx

    from inference import onnx_writer, plain_head, row_strips, scale_graph, shared_weights
    from inference.export import onnx_graph, rearranged_head, scaled_sizes, whole
    check_path(model_path)
    kinds = [kind for kind in type(model.ocrnet.backbone).__mro__ if kind is not object]
    backbones = map(inspect.getmodule, kinds)
    ours = [module for module in backbones if module is not None and not module.__name__.startswith('paddle')]
    modules = (onnx_writer, scale_graph, shared_weights, plain_head, onnx_graph, rearranged_head, scaled_sizes, whole,
               row_strips, fused, layers, ocr, operations, scale_attention, *ours)
    shapes = [(name, list(p.shape)) for name, p in model.state_dict().items()]
    return key_of(sha256_of(model_path), shapes, sorted(set(model.n_scales)), onnx.__version__,
                  *map(inspect.getsource, modules))


def key_of(*parts: Any) -> str:
    """A hash of everything that a converted network depends on."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _is_whole(folder: Path) -> bool:
    try:
        sizes = json.loads((folder / SIZES).read_text())
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError):
        return False
