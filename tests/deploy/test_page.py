"""The Python of docs/deployment.md runs as it stands, and prints what stands below it."""
import importlib.util
import re
import subprocess
import sys

import cv2
import numpy as np
import paddle
import pytest

import export
from common.builder import Builder
from common.config import Config
from inference.export import tflite_file
from tests import fill
from tests.conftest import PATIENCE, ROOT, run_script, write_tiny_config

BLOCKS = re.findall(r'^```python\n(.*?)^```\n\n```\n(.*?)^```', (ROOT / 'docs/deployment.md').read_text(),
                    re.MULTILINE | re.DOTALL)
FORMATS = [re.search(r"'output/(\w+)/", code).group(1) for code, _ in BLOCKS]


def test_every_format_without_a_program_is_there():
    assert sorted(FORMATS) == ['openvino', 'paddle', 'tflite']


@pytest.mark.parametrize('name', FORMATS)
def test_python_of_the_page(toy, tmp_path, name):
    missing = [package for package in tflite_file.PACKAGES if importlib.util.find_spec(package) is None]
    if name == 'tflite' and missing:
        pytest.skip(f'no {" ".join(missing)}: requirements-tflite.txt')
    config = write_tiny_config(tmp_path / 'tiny.yml', toy, n_scales=[1.0])
    model = Builder(Config(config, [], with_pretrained=False)).model
    fill.weights(model)
    weights = tmp_path / 'model/model.pdparams'
    paddle.save(model.state_dict(), str(weights))
    cv2.imwrite(str(tmp_path / 'street.png'), np.random.default_rng(0).integers(0, 256, [512, 1024, 3], np.uint8))
    size = ['512', '1024'] if name == 'tflite' else ['any']
    assert not run_script(export.main, '--config', config, '--model_path', weights, '--save_dir',
                          tmp_path / 'output' / name, '--format', name, '--with_preprocessing', '--input_shape', *size)
    code, printed = BLOCKS[FORMATS.index(name)]
    if not paddle.__version__.startswith('3'):
        code = code.replace('model.json', 'model.pdmodel')
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], cwd=tmp_path, capture_output=True, text=True,
                          timeout=PATIENCE)
    assert not done.returncode, done.stderr
    assert done.stdout == printed
