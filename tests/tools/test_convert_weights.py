"""tools/convert_weights.py: there and back, what it says, and what it refuses."""
import numpy as np
import paddle
import pytest
from safetensors.numpy import load_file, save_file

from common import cli
from models.hrnet import HRNet_W18_NV_Small_V1
from models.mscale_ocrnet import MscaleOCRNet
from models.weight_files import NAME_TABLE, read_state
from models.weight_names import to_torch
from tests import nvidia
from tests.nvidia import hrnet_ocr
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


def torchs(weights):
    """The state dict under NVIDIA's names."""
    return to_torch({name: value for name, value in read_state(weights).items() if name != NAME_TABLE})


def part(state, heads):
    return {name: value for name, value in state.items() if name.startswith(heads)}


FORMS = {  # {what: (state dict of that form, arguments of nvidia.write_pth, what is missing, what the source was)}
    'NVIDIA, module. inside state_dict': (lambda s: s, {}, '', "NVIDIA's network"),
    'NVIDIA, before torch 1.6': (lambda s: s, {'form': 'stream'}, '', "NVIDIA's network"),
    'NVIDIA, bare': (lambda s: s, {'prefix': '', 'inside': False}, '', "NVIDIA's network"),
    'NVIDIA, OCRNet': (lambda s: part(s, ('backbone.', 'ocr.')), {}, 'scale_attn.', "NVIDIA's network"),
    'HRNet with OCR': (hrnet_ocr, {'prefix': '', 'inside': False}, 'scale_attn.', "HRNet with OCR of HRNet's authors"),
    'HRNet on ImageNet': (lambda s: {**{name.removeprefix('backbone.'): value for name, value in part(
        s, 'backbone.').items()}, 'classifier.weight': np.ones([9, 4], 'float32'), 'final_layer.0.bias': np.ones(
            9, 'float32'), 'incre_modules.0.0.bn1.running_mean': np.ones(4, 'float32')},
        {'prefix': '', 'inside': False, 'form': 'stream'}, ('scale_attn.', 'ocrnet.head.'),
        'HRNet trained on ImageNet'),
    'timm': (lambda s: {**{name.removeprefix('backbone.'): value for name, value in part(s, 'backbone.').items()},
                        'incre_modules.0.0.downsample.0.weight': np.ones([4, 4, 1, 1], 'float32'),
                        'downsamp_modules.0.0.weight': np.ones(4, 'float32'), 'classifier.bias': np.ones(9, 'float32')},
             {'prefix': '', 'inside': False}, ('scale_attn.', 'ocrnet.head.'), 'HRNet trained on ImageNet'),
}


@pytest.mark.parametrize('form', FORMS)
def test_every_form_there_and_back(weights, form, tmp_path, capsys):
    """To .pdparams, to .safetensors, from each to the other: the same tensors, and the same file, bit for bit."""
    change, options, missing, source = FORMS[form]
    path = nvidia.write_pth(tmp_path / 'x.pth', change(torchs(weights)), **options)
    ours = {name: value for name, value in read_state(weights).items()
            if name != NAME_TABLE and not (missing and name.startswith(missing))}
    for target, made_of in (('a.pdparams', path), ('a.safetensors', path), ('b.safetensors', tmp_path / 'a.pdparams'),
                            ('b.pdparams', tmp_path / 'a.safetensors')):
        assert run(made_of, tmp_path / target, *BACKBONE) is None
        text = capsys.readouterr().out
        assert '; 0 have no place' in text and (source in text) == (made_of == path)
        assert ('usable as model.pretrained' in text) == bool(missing)
        found = {name: value for name, value in read_state(tmp_path / target).items() if name != NAME_TABLE}
        assert found.keys() == ours.keys()
        assert all(found[name].dtype == ours[name].dtype and np.array_equal(found[name], ours[name]) for name in ours)
    for kind in ('pdparams', 'safetensors'):
        assert (tmp_path / f'a.{kind}').read_bytes() == (tmp_path / f'b.{kind}').read_bytes()
    if form == 'NVIDIA, bare':  # back under NVIDIA's names: what torch would save
        assert run(tmp_path / 'a.pdparams', tmp_path / 'back.safetensors', '--names', 'nvidia', *BACKBONE) is None
        back, first = load_file(tmp_path / 'back.safetensors'), read_state(path)
        assert back.keys() == first.keys()
        assert all(back[name].dtype == first[name].dtype and back[name].shape == first[name].shape
                   and np.array_equal(back[name], first[name]) for name in first)


def test_a_classifier_of_any_number_of_classes_is_not_built(tmp_path, capsys):
    """A shape with a zero in it takes no bytes, and would announce any number of classes."""
    for shape in ([1 << 40, 0], [5000], []):
        path = tmp_path / 'x.safetensors'
        save_file({'ocr.cls_head.bias': np.zeros(shape, 'float32')}, path)
        assert run(path, tmp_path / 'out.pdparams', *BACKBONE) == 1
        assert 'expected a classifier of 1 to 4096 classes, found a bias of shape' in capsys.readouterr().err


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
