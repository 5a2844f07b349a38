"""The whole workflow in a few minutes on a CPU: toy data, training, evaluation with flip and three scales, pictures."""
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CONFIG = 'configs/toy.yml'
DATA = 'data/toy_cityscapes'
RUN = 'output/demo'


def step(title: str, *command: str) -> None:
    """Show and run one command of the project as a user would type it; exit if it fails."""
    print(f'\n=== {title}\n$ python {" ".join(command)}', flush=True)
    start = time.perf_counter()
    status = subprocess.run([sys.executable, *command], cwd=ROOT).returncode
    if status:
        sys.exit(f'demo: that command failed with status {status}; its message is above')
    print(f'--- {time.perf_counter() - start:.0f} s', flush=True)


def main() -> None:
    start = time.perf_counter()
    shutil.rmtree(ROOT / RUN, ignore_errors=True)  # an earlier demo's; nothing else writes there
    step('draw a toy Cityscapes', 'tools/make_toy_cityscapes.py', '--out', DATA, '--size', '128', '256',
         '--train', '60', '--val', '12', '--extra', '60', '--seed', '0')
    step('label ids -> train ids', 'tools/convert_cityscapes.py', '--cityscapes_path', DATA)
    step('auto-labels -> train ids', 'tools/convert_cityscapes_autolabeling.py', '--dataset_root', DATA)
    step('train a small MscaleOCRNet', 'train.py', '--config', CONFIG, '--save_dir', RUN, '--use_vdl',
         '--num_workers', '1', '--log_iters', '50')
    iters = max(int(folder.name[5:]) for folder in (ROOT / RUN).glob('iter_*'))
    weights = f'{RUN}/iter_{iters}/model.pdparams'
    step('evaluate at scales 0.5, 1 and 1.5 with flip', 'val.py', '--config', CONFIG, '--model_path', weights,
         '--aug_eval', '--flip_horizontal', '--report', f'{RUN}/report')
    step('paint predictions', 'predict.py', '--config', CONFIG, '--model_path', weights,
         '--image_path', f'{DATA}/leftImg8bit/val', '--save_dir', f'{RUN}/predictions')
    report = json.loads((ROOT / RUN / f'iter_{iters}' / 'evaluation_toy_flip.json').read_text())
    print(f'\nDone in {time.perf_counter() - start:.0f} s.'
          f'\n  mIoU on the toy validation set: {report["miou"]:.4f} ({len(report["images"])} images, see above)'
          f'\n  predictions:     {RUN}/predictions/pseudo_color_prediction'
          f'\n  overlays:        {RUN}/predictions/added_prediction'
          f'\n  training curves: {Path(sys.executable).with_name("visualdl")} --logdir {RUN} --disable-telemetry'
          f'\n  to look at, in a browser: {(ROOT / RUN / "report/index.html").as_uri()}')


if __name__ == '__main__':
    main()
