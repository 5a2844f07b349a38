"""tools/convert_weights.py: there and back, what it says, and what it refuses."""
import numpy as np
import paddle
import pytest
from safetensors.numpy import load_file, save_file

from common import cli
from models.hrnet import HRNet_W18_NV_Small_V1
from models.mscale_ocrnet import MscaleOCRNet
from models.weight_files import read_state
from tools import convert_weights

BACKBONE = '--backbone', 'HRNet_W18_NV_Small_V1'


def run(*argv):
    with pytest.raises(SystemExit) as stop:
        cli.run(convert_weights.main, [str(word) for word in argv])
    return stop.value.code


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    paddle.seed(1)
    model = MscaleOCRNet(7, HRNet_W18_NV_Small_V1(), [0])
    path = tmp_path_factory.mktemp('weights') / 'model.pdparams'
    paddle.save(model.state_dict(), str(path))
    return path


def test_to_nvidia_and_back(weights, tmp_path, capsys):
    there, back = tmp_path / 'nvidia.safetensors', tmp_path / 'back.pdparams'
    assert run(weights, there, '--names', 'nvidia', *BACKBONE) is None
    found = load_file(there)
    assert found['ocr.cls_head.bias'].shape == (7,) and 'scale_attn.bn0.num_batches_tracked' in found
    assert run(there, back, *BACKBONE) is None
    text = capsys.readouterr().out
    assert "under torch's names; 0 have no place" in text and 'mean 0.485 0.456 0.406' in text and 'SHA-256' in text
    expected, result = paddle.load(str(weights), return_numpy=True), paddle.load(str(back), return_numpy=True)
    assert expected.keys() == result.keys()
    assert all(np.array_equal(expected[name], result[name]) for name in expected)


def test_to_safetensors_under_our_names(weights, tmp_path):
    assert run(weights, tmp_path / 'x.safetensors', *BACKBONE) is None
    expected, result = read_state(weights), read_state(tmp_path / 'x.safetensors')
    assert all(np.array_equal(expected[name], value) for name, value in result.items()) and len(result) > 300


def test_what_is_missing_is_listed_and_what_has_no_place_is_refused(weights, tmp_path, capsys):
    state = {name: value for name, value in paddle.load(str(weights), return_numpy=True).items()
             if not name.startswith('scale_attn.')}
    save_file(state, tmp_path / 'ocrnet.safetensors')
    assert run(tmp_path / 'ocrnet.safetensors', tmp_path / 'out.pdparams', *BACKBONE) is None
    text = capsys.readouterr().out
    assert 'missing: scale_attn.atten_head.0._conv.weight' in text and 'usable as model.pretrained' in text
    save_file({**state, 'extra': np.zeros(2, 'float32')}, tmp_path / 'more.safetensors')
    assert run(tmp_path / 'more.safetensors', tmp_path / 'more.pdparams', *BACKBONE) == 1
    captured = capsys.readouterr()
    assert 'no place: extra' in captured.out and 'Nothing was written' in captured.err
    assert not (tmp_path / 'more.pdparams').exists()


@pytest.mark.parametrize('argv, text', [
    (['{w}', '{t}/x.pt'], 'expected a name that ends in .pdparams or .safetensors, found .pt'),
    (['{w}', '{w}'], 'expected a new file, found one that is there'),
    (['/none.pth', '{t}/x.pdparams'], '/none.pth: expected a weights file, found nothing'),
    (['{w}', '{t}/x.pdparams', '--backbone', 'HRNet'], '--backbone: expected one of HRNet_W18'),
    (['{w}', '{t}/x.pdparams'], 'choose another --backbone'),
])
def test_bad_input(weights, tmp_path, capsys, argv, text):
    assert run(*[word.format(w=weights, t=tmp_path) for word in argv]) == 1
    error = capsys.readouterr().err
    assert text in error and error.startswith('error: ') and not list(tmp_path.iterdir())
