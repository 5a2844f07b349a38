"""NVIDIA's names: every tensor has its place, and its weights give NVIDIA's logits here."""
import functools
import logging

import numpy as np
import paddle
import pytest

from common.builder import Builder
from common.config import Config
from common.errors import UserError
from inference import backends
from models import layers
from models.hrnet import HRNet
from models.mscale_ocrnet import MscaleOCRNet
from models.weight_names import nvidia_name, to_torch
from models.weights import load_pretrained, load_weights
from tests import fill, nvidia, rounding
from tests.built import Built
from tests.conftest import ROOT

CONFIG = ROOT / 'configs/nvidia_hrnet_ocr_mscale.yml'


@pytest.fixture(scope='module')
def filled():
    return nvidia.filled()


@pytest.fixture(scope='module')
def published(filled, tmp_path_factory):
    """NVIDIA's file, as torch.save wrote it when they trained."""
    path = tmp_path_factory.mktemp('nvidia') / 'cityscapes_ocrnet.HRNet_Mscale.pth'
    yield nvidia.write_pth(path, filled, form='stream')
    path.unlink()


@pytest.fixture(scope='module')
def model(published):
    """The network of the config for NVIDIA's weights, with the weights of their file."""
    model = Builder(Config(CONFIG, with_pretrained=False)).model
    load_weights(model, published)
    model.eval()
    return model


def test_every_tensor_has_its_name_and_shape(model, filled):
    found = to_torch({name: value.numpy() for name, value in model.state_dict().items()})
    described = [[name, list(value.shape), value.dtype.name] for name, value in found.items()]
    assert sorted(described) == sorted(nvidia.listed())
    assert found.keys() == filled.keys()
    assert all(np.array_equal(found[name], filled[name]) for name in filled), 'there and back: the same file'


@pytest.fixture(scope='module')
def plain(model):
    """name of a case -> (logits of the plain network, their condition)."""
    @functools.cache
    def of_case(name):
        x = nvidia.image(name)
        run = rounding.of_network(lambda x: model.hierarchy(x, nvidia.CASES[name][0]))
        logits = run(x)
        return logits, rounding.sensitivity(run, x, logits, trials=2)

    return of_case


@pytest.fixture(scope='module')
def of_backend(model, published):
    """name of a backend -> what val.py makes of NVIDIA's config and file, but for a network of its own."""
    return functools.cache(lambda backend: backends.create(Built(model), published, backend))


def agree(found, case, condition):
    """The reference within rounding, of which 1e-4 of the largest value is the most for a well-conditioned case.

    At the input of s1 a region of the image is at a tie of the object attention: the input's last bit moves it by more
    than a thousandth, so what is left there to compare is the condition, and nearly all values.
    """
    found, expected = found[:, :, ::2, ::2], nvidia.logits(case)
    assert case == 's1' or rounding.allowed(condition) < 1e-4
    rounding.assert_close(found, expected, condition, name=case)
    assert np.quantile(np.abs(found - expected) / np.abs(expected).max(), 0.99) < 2e-5


@pytest.mark.parametrize('case', nvidia.CASES)
def test_the_plain_logits_are_nvidias(plain, case):
    found, condition = plain(case)
    agree(found, case, condition)


@pytest.mark.parametrize('case', nvidia.CASES)
@pytest.mark.parametrize('backend', ['paddle', 'openvino', 'onnxruntime'])
def test_the_logits_of_every_backend_are_nvidias(plain, of_backend, backend, case):
    """From NVIDIA's file and the config for it, on the way that val.py goes."""
    if backend not in backends.installed():
        pytest.skip('not installed')
    network = of_backend(backend)
    assert network.n_scales == [0.5, 1.0, 2.0] and network.executor.name == backend
    network.n_scales = nvidia.CASES[case][0][::-1]  # in another order
    agree(network(paddle.to_tensor(nvidia.image(case)))[0].numpy(), case, plain(case)[1])
    network.n_scales = [0.5, 1.0, 2.0]


def test_the_config_is_what_nvidias_code_fixes():
    """Its normalisation, read from the images on; its classes in its order."""
    builder = Builder(Config(CONFIG, with_pretrained=False))
    (normalize,) = builder.val_transforms
    pixel = np.array([[[255, 0, 51]]], 'float32')  # R, G, B
    found = normalize({'img': pixel})['img'].reshape(-1)
    expected = [(1 - 0.485) / 0.229, (0 - 0.456) / 0.224, (0.2 - 0.406) / 0.225]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert builder.labels.names[:3] == ('road', 'sidewalk', 'building') and builder.labels.names[-1] == 'bicycle'
    norms = [layer for layer in small().sublayers() if isinstance(layer, paddle.nn.BatchNorm2D)]
    assert {norm._epsilon for norm in norms} == {1e-5}


def test_align_corners_reaches_every_resize(monkeypatch):
    """As if align_corners were True wherever Paddle interpolates; evaluation and training."""
    paddle.seed(0)
    aligned, other = small(align_corners=True), small()
    other.set_state_dict(aligned.state_dict())
    x = paddle.to_tensor(fill.image(3, [1, 3, 64, 96]))
    aligned.eval(), other.eval()
    found, half_pixel = aligned(x)[0].numpy(), other(x)[0].numpy()
    aligned.train(), other.train()
    paddle.seed(1)
    found_training = [y.numpy() for y in aligned(x)]
    interpolate = paddle.nn.functional.interpolate
    monkeypatch.setattr(layers.F, 'interpolate', lambda *args, align_corners, **kwargs: interpolate(
        *args, align_corners=True, **kwargs))
    paddle.seed(1)
    for y, expected in zip(found_training, other(x)):
        np.testing.assert_array_equal(y, expected.numpy())
    for model in (aligned, other):
        model.set_state_dict(aligned.state_dict())
        model.eval()
    np.testing.assert_array_equal(aligned(x)[0].numpy(), other(x)[0].numpy())
    assert np.abs(found - half_pixel).max() > 1e-3 and not aligned.supports_fusion()


def small(**options):
    return MscaleOCRNet(3, HRNet(2, modules=(1, 1, 1), blocks=1, stem=(1, 4)), [0], ocr_mid_channels=8,
                        ocr_key_channels=4, attn_channels=4, dropout=0.0, **options)


def torch_state(model):
    return to_torch({name: value.numpy() for name, value in model.state_dict().items()})


def write(path, state):
    from safetensors.numpy import save_file
    save_file({name: np.ascontiguousarray(value) for name, value in state.items()}, path)
    return str(path)


def test_nvidias_file_is_loaded_as_it_is(tmp_path, caplog):
    source, target = small(), small()
    path = write(tmp_path / 'x.safetensors', {f'module.{k}': v for k, v in torch_state(source).items()})
    with caplog.at_level(logging.INFO):
        load_weights(target, path)
    assert 'the names are those of torch' in caplog.text
    for name, value in target.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), source.state_dict()[name].numpy(), err_msg=name)


def test_what_is_missing_or_too_much_is_listed(tmp_path):
    state = torch_state(small())
    del state['ocr.cls_head.bias']
    state['ocr.other.weight'] = np.zeros(3, 'float32')
    with pytest.raises(ValueError) as error:
        load_weights(small(), write(tmp_path / 'x.safetensors', state))
    for text in ('missing: ocrnet.head.cls_head.bias', 'unexpected: ocr.other.weight'):
        assert text in str(error.value)


def test_a_backbone_of_imagenet_starts_a_training(tmp_path, caplog):
    source, target = small(), small()
    state = {name.removeprefix('backbone.'): value for name, value in torch_state(source).items()
             if name.startswith('backbone.')}
    state.update({'classifier.weight': np.zeros([1000, 8], 'float32'),
                  'incre_modules.0.0.conv1.weight': np.zeros(2, 'float32')})
    head = target.ocrnet.head.cls_head.weight.numpy().copy()
    with caplog.at_level(logging.INFO):
        load_pretrained(target, write(tmp_path / 'hrnet.safetensors', state))
    assert 'a backbone alone: the heads start from random weights; 2 entries of its own head are dropped' in caplog.text
    name = 'ocrnet.backbone.conv_layer1_1._conv.weight'
    np.testing.assert_array_equal(target.state_dict()[name].numpy(), source.state_dict()[name].numpy())
    np.testing.assert_array_equal(target.ocrnet.head.cls_head.weight.numpy(), head)


def test_a_name_of_no_network():
    with pytest.raises(KeyError):
        nvidia_name('ocrnet.head.other._conv.weight')


def test_hrnet_with_ocr_of_its_authors_starts_a_training(tmp_path, caplog):
    source, target = small(), small()
    state = nvidia.hrnet_ocr(torch_state(source))
    assert {'model.conv1.weight', 'model.aux_head.1.running_mean', 'model.conv3x3_ocr.0.bias', 'model.cls_head.bias',
            'model.ocr_distri_head.object_context_block.f_up.1.0.weight'} <= state.keys()
    attention = target.scale_attn.atten_head[2].weight.numpy().copy()
    with caplog.at_level(logging.INFO):
        load_pretrained(target, nvidia.write_pth(tmp_path / 'hrnet_ocr_cs.pth', state, prefix='', inside=False))
    assert 'has no scale attention: it starts from random weights' in caplog.text
    for name, value in target.state_dict().items():
        if name.startswith('ocrnet.'):
            np.testing.assert_array_equal(value.numpy(), source.state_dict()[name].numpy(), err_msg=name)
    np.testing.assert_array_equal(target.scale_attn.atten_head[2].weight.numpy(), attention)


def test_nvidias_old_scale_attention(tmp_path):
    """--mscale_old_arch numbers the same layers."""
    source, target = small(), small()
    old = {'scale_attn.conv0.': 'scale_attn.0.', 'scale_attn.bn0.': 'scale_attn.1.', 'scale_attn.conv1.':
           'scale_attn.3.', 'scale_attn.bn1.': 'scale_attn.4.', 'scale_attn.conv2.': 'scale_attn.6.'}
    state = {}
    for name, value in torch_state(source).items():
        head = next((head for head in old if name.startswith(head)), '')
        state[old.get(head, '') + name.removeprefix(head)] = value
    assert 'scale_attn.6.weight' in state
    load_weights(target, nvidia.write_pth(tmp_path / 'x.pth', state))
    for name, value in target.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), source.state_dict()[name].numpy(), err_msg=name)


def test_two_entries_of_one_meaning_are_refused(tmp_path):
    state = torch_state(small())
    for other in ('module.ocr.cls_head.bias', 'ocrnet.head.cls_head.bias'):
        path = write(tmp_path / 'x.safetensors', {**state, other: np.zeros(3, 'float32')})
        with pytest.raises(UserError, match=r'every tensor once, found two entries that mean \S*cls_head.bias'):
            load_weights(small(), path)


def test_the_names_of_torch_are_for_this_network_alone(tmp_path):
    class Other(paddle.nn.Layer):
        def __init__(self):
            super().__init__()
            self.conv = paddle.nn.Conv2D(3, 3, 1)

    with pytest.raises(UserError, match='expected the names of Other, found those of torch'):
        load_weights(Other(), write(tmp_path / 'x.safetensors', torch_state(small())))
