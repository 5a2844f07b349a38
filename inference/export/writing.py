"""One export: written beside its place, checked, then moved there whole."""
import dataclasses
import importlib
import importlib.util
import logging
import os
import secrets
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import paddleseg.transforms

from common.atomic_io import flush_folder, sha256_of
from common.errors import FileError, UserError
from common.export_table import FORMATS
from inference import backends
from inference.export import check, description, model_page, quantisation
from inference.export.whole import Settings
from models.weights import load_weights

logger = logging.getLogger(__name__)


def export(builder: Any, weights: Path, save_dir: Path, format_name: str, settings: Settings,
           license_name: str, images: quantisation.Images) -> None:
    """Write the network of a config with these weights in a format, with what belongs to it, into a new folder.

    builder: common.builder.Builder. settings: without mean and std, which are the config's. images: to
    calibrate int8 on. The file is run against the network of val.py first. Raises UserError or FileError with one line,
    with nothing written, where the format does not have it, the network is of another kind, the folder has files, or
    the results differ.
    """
    chosen = FORMATS[format_name]
    missing = [name for name in chosen.packages if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f'--format {format_name}: expected the package {missing[0]}, found none; pip install '
                        f'{" ".join(missing)}')
    if settings.precision not in chosen.precisions:
        raise UserError(f'--precision {settings.precision}: expected {" or ".join(chosen.precisions)} with --format '
                        f'{format_name}; choose it, or another --format')
    if settings.size is None and not chosen.any_size:
        raise UserError(f'--input_shape any: expected height and width with --format {format_name}, whose files take '
                        'images of one size; for example --input_shape 512 1024')
    if settings.precision == 'int8':
        quantisation.check_packages()
    settings = _with_normalisation(settings, builder)
    with _new_folder(save_dir) as folder:
        module = importlib.import_module(chosen.module)
        model = builder.model
        if not (hasattr(model, 'supports_fusion') and model.supports_fusion()):
            raise UserError(f'{builder.config.path}: expected a MscaleOCRNet on an HRNet, found '
                            f"{type(model).__name__}; PaddleSeg's tools/export.py exports PaddleSeg's models")
        load_weights(model, weights)
        model.eval()
        digest, scales = sha256_of(weights), list(model.n_scales)
        logger.info('write %s, %s, scales %s%s, for images of %s', format_name, settings.precision, scales,
                    ' with flip' * settings.flip, 'x'.join(map(str, settings.size or ('any size',))))
        metadata = description.metadata(builder.labels, scales, settings, digest)
        photographs: list[np.ndarray] = []
        if settings.precision == 'int8':
            taken = quantisation.choose(images, builder, quantisation.resizing(builder))
            photographs = taken.held_out
            metadata.update(quantisation.description(taken))
            files = module.write(model, settings, metadata, folder, [
                check.network_input(image, settings, check.normalising(builder)) for image in taken.calibration])
        else:
            files = module.write(model, settings, metadata, folder)
        transforms = builder.config.val_dataset_cfg.get('transforms', [])
        classes = 'uint8' if settings.preprocessing else chosen.classes
        description.write_deploy(folder, files, transforms, settings, classes)
        model_page.write(folder, builder, model, weights, settings, metadata, license_name)
        del model
        equal = _check(builder, weights, module.load, folder, settings, classes, photographs)
        if settings.precision == 'int8':
            model_page.add_quantisation(folder, taken, equal)
    names = [f'{path.name} ({path.stat().st_size / 1e6:.1f} MB)' if path.stat().st_size > 1e5 else path.name
             for path in sorted(save_dir.iterdir())]
    logger.info('written to %s: %s', save_dir, ', '.join(names))


def _check(builder: Any, weights: Path, load: Any, folder: Path, settings: Settings, classes: str,
           photographs: Sequence[np.ndarray]) -> float:
    network = backends.create(builder, str(weights))
    cases = check.cases(network, settings, check.normalising(builder), photographs)
    del network
    return check.compare(load(folder), cases, settings, classes)


def _with_normalisation(settings: Settings, builder: Any) -> Settings:
    """With the mean and std of the config's validation images, for each of RGB."""
    steps = builder.val_transforms if 'val_dataset' in builder.config.dic else []
    normalize = [step for step in steps if isinstance(step, paddleseg.transforms.Normalize)]
    if settings.preprocessing and (len(steps) != 1 or not normalize):
        found = ', '.join(type(step).__name__ for step in steps) or 'none'
        raise UserError(f"{builder.config.path}: key 'val_dataset.transforms': expected Normalize alone with "
                        f'--with_preprocessing, found {found}; leave --with_preprocessing out')
    if len(normalize) != 1:
        return settings
    mean, std = (tuple(np.broadcast_to(values, 3).tolist()) for values in (normalize[0].mean, normalize[0].std))
    return dataclasses.replace(settings, mean=mean, std=std)


@contextmanager
def _new_folder(save_dir: Path) -> Iterator[Path]:
    """A folder beside `save_dir`, which is moved there at the end, or removed after an error, Ctrl-C or SIGTERM."""
    if save_dir.is_file() or (save_dir.is_dir() and any(save_dir.iterdir())):
        there = 'a file' if save_dir.is_file() else sorted(save_dir.iterdir())[0].name
        raise FileError(f'--save_dir {save_dir}: expected a new or an empty folder, found {there}; choose another one, '
                        'or delete it')
    save_dir.parent.mkdir(parents=True, exist_ok=True)
    partial = save_dir.with_name(f'.{save_dir.name}.partial-{secrets.token_hex(4)}')
    partial.mkdir()
    before = signal.signal(signal.SIGTERM, lambda signum, _: sys.exit(128 + signum))  # so that the folder is removed
    try:
        yield partial
        os.replace(partial, save_dir)
        flush_folder(save_dir.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
