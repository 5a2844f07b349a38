"""Everything that trains, evaluates and predicts, once, on a small network; sections are marked on standard error.

With GLOG_v=6, Paddle writes there which kernel it picks for what. `python -m tests.gpu_build.workload DATA FOLDER`.
"""
import math
import os
import sys
from pathlib import Path

MARK = '=== section '


def section(name):
    os.write(2, f'\n{MARK}{name}\n'.encode())


def main(data, folder):
    from common import cli

    cli.load_paddle()
    import paddle

    import train
    import val
    from common.registry import register
    from inference import backends, memory
    from inference.predictor import Predictor
    from losses import functional
    from models.recompute import set_recompute
    from tests import fill
    from tests.conftest import run_script, write_tiny_config
    from tests.inference.test_memory import network

    register()
    config = write_tiny_config(Path(folder) / 'tiny.yml', data)
    model = network(n_scales=[0.5, 1.0])
    images = paddle.to_tensor(fill.image(1, [2, 3, 64, 64]))
    labels = paddle.randint(0, 19, [2, 64, 64])

    for recompute in (False, True):
        section('network')
        model.train()
        set_recompute(model, recompute)
        sum(output.sum() for output in model(images)).backward()
        model.clear_gradients()
    section('losses')
    for loss in (functional.dice, lambda x, y: paddle.nn.functional.cross_entropy(x, y, axis=1),
                 lambda x, y: functional.bootstrapped_cross_entropy(x, y, min_K=100, loss_th=0.05)):
        logits = paddle.randn([2, 19, 64, 64])
        logits.stop_gradient = False
        loss(logits, labels).backward()
    section('training')
    for number, flags in enumerate((
            ['--accum_steps', 2, '--recompute', '--opts', 'options.ema=0.9', 'optimizer.grad_clip_cfg={name: '
             'ClipGradByGlobalNorm, clip_norm: 1.0}'],
            ['--opts', 'optimizer={type: AdamW, weight_decay: 0.0001}', 'options.freeze_batch_norm=True'])):
        assert not run_script(train.main, '--config', config, '--iters', 2, '--num_workers', 0, '--save_dir',
                              Path(folder) / f'run{number}', *flags)
    section('host')  # whatever a run does on the CPU
    weights = Path(folder) / 'run0/iter_2/model.pdparams'
    assert not run_script(val.main, '--config', config, '--model_path', weights, '--num_workers', 0, '--backend',
                          'paddle')
    memory.on_gpu, memory.used, memory.available = (lambda device: True), (lambda device: 0), (lambda device: math.inf)
    model.eval()
    predictor = Predictor(backends.fuse_for_inference(model), scales=(0.75, 1.0), flip_horizontal=True)
    section('prediction')
    predictor({'img': images[0]})
    section('end')
    os._exit(0)  # Paddle 2.6's build for GPUs may free twice when it ends with this log on a CPU


if __name__ == '__main__':
    main(*sys.argv[1:])
