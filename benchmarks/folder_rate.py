"""Images per second of predict.py on a folder, against its network as one plain graph in OpenVINO's own pipeline.

    python -m benchmarks.folder_rate [--images 500] [--size 360 480] [--backbone HRNet_W18_NV] [--threads 2]

`plain graph` is what anyone would write with OpenVINO around an export with the heads as trained: images are decoded in
threads, an AsyncInferQueue runs the graph (image in, classes out) with its hint for throughput, and a thread writes the
same two pictures of each prediction as predict.py. Each runs in its own process, with all images and with a tenth of
them; the rate is that of the rest, so that starting does not count, which `start` says. Images are toy scenes with
noise, weights as in benchmarks.inference. `cpu s` is processor time per image, on which other processes have less
influence; `equal` is the share of equal classes. The last line is the table as JSON.
"""
from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks import inference as of_inference
from benchmarks.folder import make
from common import cli

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of RGB, as in the config below
CONFIG = '''_base_: {base}
model: {{pretrained: null, n_scales: {scales}, backbone: {{type: {backbone}}}}}
'''
ROWS = ('plain graph', 'predict.py')


def prepare(folder: Path, args: argparse.Namespace) -> None:
    """Weights, the graph, a config and the images."""
    import paddle

    from inference.export import onnx_graph
    from inference.export.whole import Settings
    for name, count in (('all', args.images), ('few', args.images // 10)):
        (folder / name).mkdir()
        make(folder / name, count, tuple(args.size))
    image = (np.asarray(Image.open(folder / 'all/images/0.png'), float) / 255 - MEAN) / STD
    model = of_inference.network(args)
    of_inference.take_statistics(model, image.transpose(2, 0, 1)[None].astype(np.float32))
    paddle.save(model.state_dict(), str(folder / 'model.pdparams'))
    model.eval()
    settings = Settings(preprocessing=True, mean=MEAN, std=STD)
    (folder / 'plain.onnx').write_bytes(onnx_graph.build(model, settings, {}).SerializeToString())
    base = Path('configs/mscale_ocr_cityscapes_autolabel_mapillary.yml').resolve()
    (folder / 'config.yml').write_text(CONFIG.format(base=base, scales=args.scales, backbone=args.backbone))


def plain_graph(folder: Path, images: str, out: Path, threads: int) -> None:
    """Predict a folder without this repository's inference."""
    from concurrent.futures import ThreadPoolExecutor

    import cv2
    import openvino

    from datasets.labels import CITYSCAPES
    from inference.pictures import color_table, read_image, write_prediction
    cv2.setNumThreads(1)
    core, colors = openvino.Core(), color_table(CITYSCAPES)
    model = core.compile_model(str(folder / 'plain.onnx'), 'CPU', {
        'PERFORMANCE_HINT': 'THROUGHPUT', 'INFERENCE_NUM_THREADS': threads, 'INFERENCE_PRECISION_HINT': 'f32'})
    queue = openvino.AsyncInferQueue(model)
    with ThreadPoolExecutor(1) as writer, ThreadPoolExecutor(threads) as reader:
        written = []

        def done(request: Any, item: tuple[str, np.ndarray]) -> None:
            written.append(writer.submit(write_prediction, out, item[0], item[1],
                                         request.get_output_tensor().data.copy(), colors))

        queue.set_callback(done)
        paths = sorted((folder / images / 'images').iterdir())
        for path, image in zip(paths, reader.map(read_image, paths)):
            queue.start_async({0: np.ascontiguousarray(image[..., ::-1])}, (path.stem, image))
        queue.wait_all()
        for future in written:
            future.result()


def seconds_of(row: str, images: str, folder: Path, args: argparse.Namespace) -> np.ndarray:
    """Of the clock, and of the processors."""
    out = folder / f'{row} {images}'
    command = [sys.executable, '-W', 'ignore', '-m', 'benchmarks.folder_rate', '--threads', str(args.threads), '--part',
               str(folder), images, str(out)]
    if row == 'predict.py':
        command = [sys.executable, '-W', 'ignore', 'predict.py', '--config', str(folder / 'config.yml'), '--model_path',
                   str(folder / 'model.pdparams'), '--image_path', str(folder / images / 'images'), '--save_dir',
                   str(out)]
    environment = {**os.environ, 'OMP_NUM_THREADS': str(args.threads), 'MSCALE_CACHE': str(folder / 'cache')}

    def now() -> np.ndarray:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return np.array([time.perf_counter(), used.ru_utime + used.ru_stime])

    start = now()
    subprocess.run(command, check=True, env=environment, capture_output=True)
    return now() - start


def main(argv: Sequence[str]) -> None:
    parser = cli.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--images', type=int, default=500)
    parser.add_argument('--size', type=int, nargs=2, default=[360, 480], metavar=('HEIGHT', 'WIDTH'))
    parser.add_argument('--scales', type=float, nargs='+', default=[0.5, 1.0])
    parser.add_argument('--backbone', default='HRNet_W18_NV', help='name of a backbone in models/hrnet.py')
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument('--part', nargs=3, help=argparse.SUPPRESS)
    cli.add_debug_flag(parser)
    args = parser.parse_args(argv)
    if args.part:
        return plain_graph(Path(args.part[0]), args.part[1], Path(args.part[2]), args.threads)
    args.config = None
    cli.start_paddle()
    wanted: np.ndarray = np.zeros(0)
    rows: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder, args)
        print(f'{args.backbone}, {args.images} images of {args.size[0]}x{args.size[1]}, scales {args.scales}, '
              f'{args.threads} threads\n{"":12} {"images/s":>9} {"ratio":>7} {"cpu s":>7} {"start s":>8} {"equal":>9}',
              flush=True)
        seconds_of('predict.py', 'few', folder, args)  # converts, and measures which form is the fastest
        for row in ROWS:
            few, every = (seconds_of(row, images, folder, args) for images in ('few', 'all'))
            rest = args.images - args.images // 10
            each, cpu = (every - few) / rest
            rows[row] = {'rate': 1 / each, 'cpu': cpu, 'start': few[0] - args.images // 10 * each}
            classes = np.stack([np.asarray(Image.open(path)) for path in sorted(
                (folder / f'{row} few/pseudo_color_prediction').iterdir())])
            wanted = classes if row == ROWS[0] else wanted
            equal = (classes == wanted).mean()
            print(f'{row:12} {rows[row]["rate"]:9.2f} {rows[row]["rate"] / rows[ROWS[0]]["rate"]:7.2f} {cpu:7.3f} '
                  f'{rows[row]["start"]:8.2f} {equal:9.4%}', flush=True)
    print(json.dumps(rows))


if __name__ == '__main__':
    cli.run(main)
