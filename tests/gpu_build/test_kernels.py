"""Every kernel that training, evaluation and prediction take exists for GPUs, in the types that --precision asks for.

`make test-gpu-build`: with a Paddle built for GPUs, on a machine that needs none. Paddle logs the kernels that it picks
on the CPU, and its registry lists those for GPUs. Elsewhere it is skipped by name.
"""
import os
import re
import subprocess
import sys

import paddle
import pytest

from tests.conftest import NO_GPU, PATIENCE, ROOT
from tests.gpu_build.workload import MARK

pytestmark = pytest.mark.skipif(not paddle.is_compiled_with_cuda(),
                                reason='needs a Paddle built for GPUs (make test-gpu-build)')
KEY = re.compile(r'\b(\w+) API kernel key: \[\w+, ([^,]+), (\w+)\]')
# Of Paddle's list for autocast's O1 that stay in float32, those that the network has, as kernels are named.
ALWAYS_FLOAT32 = {'softmax', 'sum', 'bilinear_interp', 'mean'}
# What SyncBatchNorm and the scaler of fp16 take on a GPU, and nothing on a CPU.
ONLY_ON_GPUS = {'sync_batch_norm': ('float32', 'float16', 'bfloat16'),
                'sync_batch_norm_grad': ('float32', 'float16', 'bfloat16'),
                'check_finite_and_unscale': ('float32',), 'update_loss_scaling': ('float32',)}
# Their output's size depends on values, which the host has to read: the GPU stands still meanwhile.
SYNCHRONISING = {'nonzero', 'masked_select', 'unique', 'unique_consecutive', 'where_index'}


@pytest.fixture(scope='module')
def picked(toy, tmp_path_factory):
    """{section: set of (interface, layout, dtype)} of a whole run."""
    folder = tmp_path_factory.mktemp('kernels')
    log = folder / 'log.txt'
    with open(log, 'wb') as stream:
        subprocess.run([sys.executable, '-m', 'tests.gpu_build.workload', str(toy), str(folder)], cwd=ROOT, check=True,
                       env={**os.environ, **NO_GPU, 'GLOG_vmodule': '*api=6'}, stderr=stream, timeout=PATIENCE)
    found, section = {}, ''
    for line in log.read_text(errors='replace').splitlines():
        if line.startswith(MARK):
            section = line.removeprefix(MARK)
        elif match := KEY.search(line):
            found.setdefault(section, set()).add(match.groups())
    return found


@pytest.fixture(scope='module')
def registered():
    """{kernel: {(layout, dtype)}} for GPUs."""
    found = {}
    for name, keys in paddle.base.core._get_registered_phi_kernels('function').items():
        for key in keys:
            place, layout, dtype = key.strip('()').split(', ')
            if place in ('GPU', 'GPUDNN'):
                found.setdefault(name, set()).add((layout, dtype))
    return found


def kernel(interface, registered):
    """The kernel of an interface; those that work in place end with an underscore."""
    return interface if interface in registered else interface.removesuffix('_')


def missing(entries, registered):
    """Those of (interface, layout, dtype) that no GPU kernel serves."""
    return sorted((interface, layout, dtype) for interface, layout, dtype in entries
                  if not {(layout, dtype), ('Undefined(AnyLayout)', dtype)} & registered.get(
                      kernel(interface, registered), set()))


def test_the_workload_has_its_kernels(picked):
    """Otherwise the log has changed, and nothing below is a test."""
    names = {section: {interface for interface, _, _ in found} for section, found in picked.items()}
    assert {'conv2d', 'conv2d_grad', 'batch_norm_grad', 'relu_grad', 'bilinear_interp_grad'} <= names['network']
    assert {'momentum_', 'adamw_', 'squared_l2_norm', 'conv2d_grad'} <= names['training']
    assert {'cross_entropy_with_softmax_grad', 'softmax_grad'} <= names['losses'] | names['training']
    assert {'conv2d', 'argmax', 'flip', 'bilinear_interp'} <= names['prediction']
    assert {'bfloat16', 'float16'}.isdisjoint(dtype for found in picked.values() for _, _, dtype in found)


@pytest.mark.parametrize('section', ['network', 'losses', 'training', 'prediction'])
def test_float32(section, picked, registered):
    assert missing(picked[section], registered) == []


@pytest.mark.parametrize('dtype', ['float16', 'bfloat16'])
@pytest.mark.parametrize('section', ['network', 'prediction'])
def test_mixed_precision(section, dtype, picked, registered):
    """Autocast's O1 leaves what it does not list in the type of its inputs, so anything may get there."""
    entries = {(interface, layout, dtype) for interface, layout, found in picked[section]
               if found == 'float32' and interface.removesuffix('_grad') not in ALWAYS_FLOAT32}
    assert len(entries) > 10 and missing(entries, registered) == []


def test_what_only_a_gpu_takes(registered):
    assert missing({(name, 'Undefined(AnyLayout)', dtype) for name, dtypes in ONLY_ON_GPUS.items() for dtype in dtypes},
                   registered) == []


@pytest.mark.parametrize('section', ['network', 'losses', 'training', 'prediction'])
def test_nothing_waits_for_the_host(section, picked):
    assert not SYNCHRONISING & {interface for interface, _, _ in picked[section]}


def test_a_kernel_that_is_missing_is_found(registered):
    """The one that was known: crop has no float16."""
    entries = {('crop', 'NCHW', 'float16'), ('crop', 'NCHW', 'float32'), ('no_such_kernel', 'NCHW', 'float32')}
    assert missing(entries, registered) == [('crop', 'NCHW', 'float16'), ('no_such_kernel', 'NCHW', 'float32')]
