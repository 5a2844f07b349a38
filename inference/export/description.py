"""What stands beside an exported network: metadata, deploy.yaml, and the files of a model page (safetensors, card)."""
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from common.atomic_io import write_atomically
from inference.export.whole import Settings

ROOT = Path(__file__).resolve().parents[2]
OUTPUT_OPS = {'classes': 'argmax', 'probabilities': 'softmax', 'logits': 'none'}  # PaddleSeg's names


def version() -> str:
    """This repository's version, from pyproject.toml."""
    lines = (ROOT / 'pyproject.toml').read_text(encoding='utf-8').splitlines()
    return next(line.split('"')[1] for line in lines if line.startswith('version'))


def metadata(labels: Any, scales: Sequence[float], settings: Settings, weights_sha256: str) -> dict[str, str]:
    """Text under names, for metadata_props and rt_info: JSON, but for `version` and `weights_sha256`.

    labels: datasets.labels.LabelSet.
    """
    values = {'classes': labels.names, 'palette': labels.palette, 'scales': list(scales), 'flip': settings.flip}
    if settings.mean:
        values.update(mean=settings.mean, std=settings.std)
    if labels.label_ids:
        values['label_ids'] = labels.label_ids
    return {**{key: json.dumps(value) for key, value in values.items()}, 'version': version(),
            'weights_sha256': weights_sha256}


def write_deploy(folder: Path, files: Mapping[str, str], transforms: Sequence[Mapping[str, Any]],
                 settings: Settings, classes: str) -> None:
    """deploy.yaml as PaddleSeg's tools read it; with preprocessing there is nothing left for them to transform.

    classes: their type.
    """
    height, width = settings.size or (None, None)
    shape = [height, width, 3] if settings.preprocessing else [1, 3, height, width]
    deploy = {**files, 'transforms': [] if settings.preprocessing else [dict(step) for step in transforms],
              'input_shape': shape, 'output_op': OUTPUT_OPS[settings.output],
              'output_dtype': classes if settings.output == 'classes' else 'float32'}
    write_atomically(folder / 'deploy.yaml', yaml.safe_dump({'Deploy': deploy}, sort_keys=False).encode())
