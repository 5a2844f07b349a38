"""Segment an image or a folder with a model.onnx of export.py; needs the requirements.txt beside it alone."""
import argparse
import json
import os
import sys
import time
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import onnxruntime as ort
from PIL import Image

SUFFIXES = ('.png', '.jpg', '.jpeg', '.bmp', '.tif', '.tiff', '.webp')
CUDA = ('CUDAExecutionProvider', {'use_tf32': '0'})  # TF32, its default, has 10 bits of mantissa
PROVIDERS = {'cpu': [], 'cuda': [CUDA], 'tensorrt': [('TensorrtExecutionProvider', {}), CUDA]}


def load(path: str, provider: str) -> ort.InferenceSession:
    options, wanted = ort.SessionOptions(), [*PROVIDERS[provider], ('CPUExecutionProvider', {})]
    options.log_severity_level, name = 3, wanted[0][0]
    if name not in ort.get_available_providers():
        sys.exit(f'error: --provider {provider}: expected a package with {name}, found one with '
                 f'{", ".join(ort.get_available_providers())}; pip install onnxruntime-gpu in place of onnxruntime')
    try:
        session = ort.InferenceSession(path, options, wanted)
    except Exception as error:  # ONNX Runtime's errors have no class of their own
        sys.exit(f'error: --model {path}: expected a model.onnx of export.py, found: {" ".join(str(error).split())}')
    if session.get_providers()[0] != name:  # ONNX Runtime would go on with the CPU
        sys.exit(f'error: --provider {provider}: expected {name} to start, found that it did not; see the lines above')
    if 'palette' not in session.get_modelmeta().custom_metadata_map:
        sys.exit(f'error: --model {path}: expected the metadata of export.py, found none; export it again')
    return session


def segment(session: ort.InferenceSession, image: np.ndarray) -> np.ndarray:
    """uint8 (H, W, 3) BGR -> uint8 (H, W) train ids. ValueError if the model cannot take the image."""
    model, meta = session.get_inputs()[0], session.get_modelmeta().custom_metadata_map
    size, fixed = image.shape[:2], model.shape[:2] if len(model.shape) == 3 else model.shape[2:]
    if any(isinstance(side, int) and side != found for side, found in zip(fixed, size)):
        raise ValueError(f'expected an image of {fixed[0]}x{fixed[1]} (H x W) for this model, found {size[0]}x{size[1]}'
                         '; resize it, or export with --input_shape any')
    rgb = np.ascontiguousarray(image[..., ::-1])
    if model.type == 'tensor(float)':  # exported without --with_preprocessing
        if 'mean' not in meta:
            raise ValueError('expected a model with mean and std; export it with --with_preprocessing')
        rgb = rgb.astype(np.float32) / 255
        rgb -= json.loads(meta['mean'])
        rgb /= json.loads(meta['std'])
        rgb = rgb.transpose(2, 0, 1)[None]
    found = session.run(None, {model.name: rgb})[0]
    return (found.argmax(1) if found.ndim == 4 else found).reshape(size).astype(np.uint8)


def save(path: Path, picture: Image.Image) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(f'{path}.partial', 'PNG')
    os.replace(f'{path}.partial', path)  # whole or absent


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--model', required=True, help='model.onnx of export.py')
    parser.add_argument('--image_path', required=True, help='image, or folder (searched recursively)')
    parser.add_argument('--save_dir', default='output/result', help='folder of the predictions')
    parser.add_argument('--provider', choices=PROVIDERS, default='cpu', help='what computes')
    args = parser.parse_args(argv)
    root, save_dir = Path(args.image_path), Path(args.save_dir)
    images = [root] if root.is_file() else sorted(p for p in root.rglob('*') if p.suffix.lower() in SUFFIXES
                                                  and save_dir.resolve() not in p.resolve().parents)
    if not images:
        sys.exit(f'error: --image_path {root}: expected an image, or a folder with {" ".join(SUFFIXES)}, found none')
    session = load(args.model, args.provider)
    palette = np.zeros((256, 3), np.uint8)
    colors = json.loads(session.get_modelmeta().custom_metadata_map['palette'])
    palette[:len(colors)] = colors
    names = [Path(p.name) if root.is_file() else p.relative_to(root) for p in images]
    uses = Counter(name.with_suffix('') for name in names)  # a.png and a.jpg keep their suffixes
    failed, start = [], time.perf_counter()
    for done, (path, name) in enumerate(zip(images, names), 1):
        try:
            image = cv2.imread(str(path), cv2.IMREAD_COLOR)
            if image is None:
                raise ValueError('expected an image, found none that can be decoded; copy it again or leave it out')
            ids = segment(session, image)
            file = f'{name if uses[name.with_suffix("")] > 1 else name.with_suffix("")}.png'
            mixed = cv2.addWeighted(image, 0.6, palette[ids][..., ::-1].copy(), 0.4, 0)
            save(save_dir / 'added_prediction' / file, Image.fromarray(cv2.cvtColor(mixed, cv2.COLOR_BGR2RGB)))
            picture = Image.fromarray(ids)
            picture.putpalette(palette.tobytes())
            save(save_dir / 'pseudo_color_prediction' / file, picture)
        except Exception as error:  # the other images are segmented all the same
            failed.append(f'error: {path}: {" ".join(str(error).split())}')
        print(f'\r{done} of {len(images)} images, {(time.perf_counter() - start) / done:.2f} s each', end='',
              file=sys.stderr, flush=True)
    print(f'\nsegmented {len(images) - len(failed)} of {len(images)} images; pictures in {save_dir}', *failed, sep='\n',
          file=sys.stderr)
    return 1 if failed else 0


if __name__ == '__main__':
    sys.exit(main())
