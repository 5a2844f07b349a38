"""Files of a page on a model hub: model.safetensors, config.json, README.md (the card), to be uploaded by hand."""
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from safetensors.numpy import save

from common.atomic_io import write_atomically
from inference.export.quantisation import FLOAT, Chosen
from inference.export.whole import Settings


def write(folder: Path, builder: Any, model: Any, weights: Path, settings: Settings, metadata: Mapping[str, str],
          license_name: str) -> None:
    """builder: common.builder.Builder. model: with the weights of the file `weights`. metadata: of the export."""
    arrays = {name: np.ascontiguousarray(value.numpy()) for name, value in model.state_dict().items()}
    write_atomically(folder / 'model.safetensors', save(arrays, {'format': 'pd'}))
    names = builder.labels.names
    network = {key: value for key, value in builder.config.dic['model'].items() if key != 'pretrained'}
    config = {
        'model_type': 'mscale_ocrnet', 'architectures': [type(model).__name__], 'model': network,
        'num_labels': len(names), 'id2label': dict(enumerate(names)),
        'label2id': {name: i for i, name in enumerate(names)}, 'palette': builder.labels.palette,
        'label_ids': builder.labels.label_ids or None, 'ignore_index': builder.labels.ignore_index,
        'image_mean': settings.mean or None, 'image_std': settings.std or None, 'version': metadata['version'],
        'weights_sha256': metadata['weights_sha256']}
    write_atomically(folder / 'config.json', (json.dumps(config, indent=1) + '\n').encode())
    write_atomically(folder / 'README.md', card(builder, weights, settings, metadata, license_name).encode())


def add_quantisation(folder: Path, chosen: Chosen, equal: float) -> None:
    """Say in the card how an int8 network was calibrated, and which share of the classes is that of fp32."""
    path = folder / 'README.md'
    text = path.read_text(encoding='utf-8')
    added = (f'- Quantised after training, calibrated on {len(chosen.calibration)} images; {", ".join(FLOAT)} are '
             f'float32. {100 * equal:.2f} % of the classes are those of fp32 on {len(chosen.held_out)} images that it '
             'was not calibrated on.')
    before, after = text.split('\n\n## Evaluation', 1)
    write_atomically(path, f'{before}\n{added}\n\n## Evaluation{after}'.encode())


def card(builder: Any, weights: Path, settings: Settings, metadata: Mapping[str, str], license_name: str) -> str:
    """Text of the card. What it says of data and scores is the config's and the evaluation's beside the weights."""
    labels, cfg = builder.labels, builder.config.dic['model']
    head = {'license': license_name, 'library_name': 'paddlepaddle', 'pipeline_tag': 'image-segmentation',
            'tags': ['semantic-segmentation', 'paddlepaddle', 'hrnet', 'ocrnet', 'multi-scale-attention']}
    backbone = cfg.get('backbone', {})
    lines = [
        '---', yaml.safe_dump(head, sort_keys=False).strip(), '---', '',
        f'# {cfg["type"]} on {backbone.get("type", "its backbone")}', '',
        'Semantic segmentation with hierarchical multi-scale attention (arXiv:2005.10821): one network at the scales '
        f'{metadata["scales"]}, fused by learned attention.', '',
        f'- Weights: `model.safetensors`, from a file with SHA-256 `{metadata["weights_sha256"]}`.',
        '- Network: `config.json`.',
        f'- Trained with the data of its config: {builder.config.dic["train_dataset"]["type"]}.',
        f'- Exported by version {metadata["version"]}, {settings.precision}.']
    if settings.mean:
        lines.append(f'- Input: RGB in 0..1, minus {list(settings.mean)}, divided by {list(settings.std)}'
                     + ('; the exported network does that itself and takes uint8 (H, W, 3).' if settings.preprocessing
                        else '.'))
    lines += ['', '## Evaluation', '', *(evaluations(weights) or [
        'No evaluation lies beside the weights that this was exported from.'])]
    lines += ['', '## Classes', '', *(f'{i}. {name}' for i, name in enumerate(labels.names))]
    return '\n'.join(lines) + '\n'


def evaluations(weights: Path) -> list[str]:
    """A line for each evaluation of these weights that val.py has left beside them."""
    lines = []
    for path in sorted(weights.parent.glob('evaluation_*.json')):
        try:
            found = json.loads(path.read_text(encoding='utf-8'))
            test_time = found['test_time']
            text = (f'- mIoU {100 * found["miou"]:.2f} %, accuracy {100 * found["accuracy"]:.2f} % on '
                    f'{len(found["images"])} images; scales {found["n_scales"]}, {test_time["flips"]} flips, config '
                    f'{Path(found["config"]).name} (`{path.name}`)')
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if Path(found['model_path']).name == weights.name and path.stat().st_mtime >= weights.stat().st_mtime:
            lines.append(text)
    return lines
