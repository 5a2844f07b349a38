"""The tests run on the CPU, on a machine with GPUs too."""
import os
import subprocess
import sys

import paddle
import pytest

from tests.conftest import NO_GPU, ROOT

CODE = 'import os; from tests import conftest; print([os.environ.get(name) for name in conftest.NO_GPU])'


@pytest.mark.skipif(os.environ.get('MSCALE_TEST_DEVICE') == 'gpu', reason='asked to run on a GPU')
def test_paddle_is_on_the_cpu():
    assert paddle.get_device() == 'cpu'


@pytest.mark.parametrize('device, expected', [(None, list(NO_GPU.values())), ('gpu', ['3', None])])
def test_the_environment_hides_the_gpus_unless_asked_not_to(device, expected):
    environment = {name: value for name, value in os.environ.items() if name not in (*NO_GPU, 'MSCALE_TEST_DEVICE')}
    environment |= {'CUDA_VISIBLE_DEVICES': '3'} | ({'MSCALE_TEST_DEVICE': device} if device else {})
    done = subprocess.run([sys.executable, '-c', CODE], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == str(expected), done.stderr[-2000:]
