"""tools/check_quantisation.py: its scores are those of val.py, in every precision."""
import json
import shutil

import pytest

import val
from tests.export.test_quantisation import needs_nncf, trained  # noqa: F401 (a fixture)
from tests.test_command_lines import run
from tools import check_quantisation
from tools.quantisation import layers


@needs_nncf
def test_the_table(trained, toy, tmp_path, capsys, monkeypatch):  # noqa: F811
    monkeypatch.setenv('MSCALE_CACHE', str(tmp_path / 'cache'))
    weights = shutil.copytree(trained[1].parent, tmp_path / 'run') / 'model.pdparams'
    common = ['--config', trained[0], '--model_path', weights, '--num_workers', 0, '--calibration_count', 4]
    assert run(check_quantisation.main, *common, '--save', tmp_path / 'table.json') is None
    lines = capsys.readouterr().out.splitlines()
    found = json.loads((tmp_path / 'table.json').read_text())
    names = [name for name in ('fp32', 'bf16', 'int8') if name in found]  # not every processor has bf16
    assert list(found) == names and {'fp32', 'int8'} <= set(names)
    start = next(i for i, line in enumerate(lines) if line.split() == names)
    table = {line[:17].strip(): line[17:] for line in lines[start + 1:]}
    for precision in ('fp32', 'int8'):
        more = ['--precision', precision] if precision == 'int8' else common[-2:0]
        assert run(val.main, *common[:6], *more, *(common[6:] if precision == 'int8' else [])) is None
        report = json.loads(next((tmp_path / 'run').glob('evaluation_*.json')).read_text())
        assert found[precision]['miou'] == report['miou']
        assert f'{100 * report["miou"]:.2f}' in table['mIoU']
        for name, scores in report['classes'].items():
            assert (name in table) == (scores['iou'] is not None)
            assert name not in table or f'{100 * scores["iou"]:.2f}' in table[name]
    difference = 100 * (found['int8']['miou'] - found['fp32']['miou'])
    assert table['mIoU'].endswith(f'({difference:+5.2f})')
    assert found['fp32']['equal'] == 1 > found['int8']['equal'] > 0.9
    assert all(row['seconds'] > 0 and row['peak_gb'] > 0.1 for row in found.values())


@pytest.mark.slow
@needs_nncf
def test_layers(trained, tmp_path, capsys, monkeypatch):  # noqa: F811
    """One group after the other in float32; with all of them nothing is left of int8 but rounding."""
    monkeypatch.setattr(layers, 'DEPTH', 2)  # a dozen groups
    common = ['--config', trained[0], '--model_path', trained[1], '--calibration_count', 4, '--layers']
    assert run(check_quantisation.main, *common, '--save', tmp_path / 'table.json') is None
    rows = json.loads((tmp_path / 'table.json').read_text())
    (none, *groups, every), lines = rows, capsys.readouterr().out.splitlines()
    assert (none['group'], every['group']) == ('none', 'all')
    assert (none['convolutions'], every['convolutions']) == (0, sum(row['convolutions'] for row in groups))
    assert {'backbone.conv_layer1_1', 'head.conv3x3_ocr', 'scale_attn.atten_head', 'others'} <= {
        row['group'] for row in groups}
    assert every['error'] < 1e-4 < min(row['error'] for row in groups) and every['equal'] > 0.9999
    assert min(row['error'] for row in groups) < none['error']
    assert groups == sorted(groups, key=lambda row: row['error'])
    table = [line.split() for line in lines[-len(rows):]]
    assert table == [[row['group'], str(row['convolutions']), f'{row["error"]:.2%}', f'{row["equal"]:.2%}']
                     for row in rows]


@needs_nncf
def test_layers_of_a_backend_without_int8(trained, capsys):  # noqa: F811
    assert run(check_quantisation.main, '--config', trained[0], '--model_path', trained[1], '--layers', '--backend',
               'paddle') == 1
    assert capsys.readouterr().err.strip().splitlines()[-1] == (
        'error: --layers: expected a MscaleOCRNet and --backend openvino or onnxruntime, found paddle and '
        'MscaleOCRNet; leave it out')


def test_refusals(tmp_path, capsys):
    common = ['--config', 'a.yml', '--model_path', 'b']
    for flags, text in ((['--save', 'a.csv'], 'error: --save a.csv: expected a name that ends in .json; rename it'),
                        (['--precision', 'bf16'], 'error: --precision bf16: expected none, since fp32, bf16, int8 are '
                                                  'compared; leave it out'),
                        (['--calibration_count', 0], 'error: --calibration_count: expected at least 1, found 0')):
        assert run(check_quantisation.main, *common, *flags) == 1
        assert capsys.readouterr().err.strip().splitlines()[-1] == text


@needs_nncf
def test_a_backend_without_int8_is_told_before_anything_is_evaluated(trained, capsys):  # noqa: F811
    assert run(check_quantisation.main, '--config', trained[0], '--model_path', trained[1], '--backend', 'paddle') == 1
    printed = capsys.readouterr()
    assert 'error: --precision int8: expected --backend openvino or onnxruntime, found paddle' in printed.err
    assert 'network: paddle' not in printed.out + printed.err
