"""README.md, CONTRIBUTING.md and docs/: every command runs here on toy data or is listed with a reason, and every flag,
file, config, link and make target that they name is there.

In the sandbox the configs have their own names but tiny networks, crops and numbers of iterations; data/cityscapes is
made from toy archives in ~/Downloads. Otherwise a command runs as it is written, through its script's main.
"""
import contextlib
import functools
import importlib
import io
import itertools
import re
import shlex
import shutil
import sys
from typing import NamedTuple

import cv2
import numpy as np
import paddle
import pytest
import yaml

from common import cli
from tests import fill
from tests.conftest import ROOT
from tests.test_rooms import MAY_IMPORT, ROOMS

# In the order in which their commands run: data first.
PAGES = ['docs/data.md', 'docs/training.md', 'docs/evaluation.md', 'docs/prediction.md', 'docs/export.md',
         'docs/deployment.md', 'docs/weights.md', 'docs/performance.md', 'docs/results.md', 'docs/elastic.md',
         'docs/gpus.md', 'docs/paddleseg.md', 'docs/design.md', 'CONTRIBUTING.md', 'README.md']
# How a command begins that does not run here, and why; its flags are checked all the same.
NEEDS = {
    'make': 'minutes; setup, lint and test run in .ci/run, and its other targets call tests or the scripts below',
    'python -u -m paddle.distributed.launch': 'several GPUs; on CPUs: tests/training/test_distributed.py',
    'python -m paddle.distributed.launch': 'several GPUs or processes; on CPUs: tests/training/test_distributed.py',
    'python -m benchmarks.': 'minutes to hours',
    'python benchmarks/gpu_inference.py': 'a GPU; on a CPU: tests/benchmarks/test_gpu_inference.py',
    'python -m tests.zoo_backends': 'minutes; tests/inference/test_traced_network.py',
    'python export.py --precision int8': 'trained weights, NNCF; tests/export/test_quantisation.py',
    'python predict.py --precision int8': 'NNCF; tests/inference/test_quantised.py',
    'python tools/check_quantisation.py': 'NNCF; tests/tools/test_check_quantisation.py',
    'python tools/check_machine.py': 'minutes; tests/tools/test_check_machine.py',
    'python tools/convert_weights.py': 'weights of HRNet-W48; tests/tools/test_convert_weights.py',
    'python train.py --config $PADDLESEG/': 'a checkout of PaddleSeg; tests/zoo.py',
    'python val.py --config configs/nvidia_hrnet_ocr_mscale.yml': "NVIDIA's weights; tests/models/test_weight_names.py",
    'python3 -m venv': 'installs; done by make setup',
    '. .venv/bin/activate': 'installs; done by make setup',
    'pip': 'the network',
    'apt-get': 'the network',
    'trtexec': 'TensorRT and a GPU',
    'python export.py --format tflite': 'requirements-tflite.txt; tests/export/test_tflite_file.py',
    'cmake': 'headers; tests/deploy/test_programs.py',
    'output/cpp/segment': 'cmake; tests/deploy/test_programs.py',
    'visualdl': 'runs until it is stopped; tests/training/test_visualdl_page.py',
    'etcd': 'two machines; tests/training/test_elastic.py',
    'pytest': 'minutes',
}
# Flags of others that the text names.
OTHERS = {'--no-deps', '--logdir', '--disable-telemetry', '--data-dir', '--listen-client-urls',
          '--advertise-client-urls', '--help', '--shm-size', '--ipc',
          # NVIDIA's
          '--mscale_old_arch', '--mscale_no3x3',
          # PaddleSeg's
          '--device', '--amp_level', '--profiler_options', '--data_format', '--repeats', '--use_ema', '--auc_roc'}
SHELL = {'do', 'then', 'else', 'for', 'done', 'break', 'fi', 'export', 'sleep', 'if', '!', 'while'}
SHELL_LINE = {'for', 'done', 'break', 'export', 'sleep', 'fi'}  # no program of ours follows
INLINE = re.compile(r'(?:python3? |make [a-z]|visualdl |pytest |pip install |apt-get |'
                    r'(?:train|val|predict|export)\.py -|(?:tools|benchmarks)/\w+\.py)')


class Command(NamedTuple):
    """words: without variables set in front of it and without `env`. where: file:line."""
    words: list
    where: str
    inline: bool = False

    def __str__(self):
        return ' '.join(self.words)

    @property
    def reason(self):
        return next((reason for start, reason in NEEDS.items() if f'{self} '.startswith(
            start if start.endswith(('/', '.')) else f'{start} ')), None)

    @property
    def script(self):
        """(path of the script, its arguments) or None."""
        for i, word in enumerate(self.words):
            if word.startswith('benchmarks.'):  # after -m
                return f'{word.replace(".", "/")}.py', self.words[i + 1:]
            if word.endswith('.py') and not word.startswith('-'):
                return word, self.words[i + 1:]
        return None


def split_words(text, where, inline=False):
    """Commands of shell text: lines continued, comments, loops and `case` left out, `;`, `&&` and `|` split."""
    text = re.sub(r'\bcase\b.*?\besac\b', '', text.replace('\\\n', ' '), flags=re.DOTALL)
    for line in text.splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=';&|')
        lexer.whitespace_split = True
        words = []
        for word in [*lexer, ';']:
            if set(word) <= set(';&|'):
                while words and (words[0] in SHELL - SHELL_LINE or re.fullmatch(r'[A-Za-z_]\w*=.*', words[0])):
                    words = words[1:]
                if words[:1] == ['env']:
                    words = words[3:] if words[1] == '-u' else words[1:]
                if words and words[0] not in SHELL_LINE:
                    yield Command(words, where, inline)
                words = []
            else:
                words.append(word)


def blocks(text):
    """(first line's number, language, content) of every fenced block."""
    for found in re.finditer(r'^```(\w*)\n(.*?)^```$', text, re.MULTILINE | re.DOTALL):
        yield text.count('\n', 0, found.start()) + 2, *found.groups()


def spans(page):
    """(line, text) of every `code` in running text."""
    text = re.sub(r'^```.*?^```$', lambda found: '\n' * found.group().count('\n'), (ROOT / page).read_text(),
                  flags=re.MULTILINE | re.DOTALL)
    for found in re.finditer(r'`([^`]+)`', text):
        yield text.count('\n', 0, found.start()) + 1, ' '.join(found.group(1).split())


def commands(page):
    """All commands of a page, those of running text too."""
    for line, language, content in blocks((ROOT / page).read_text()):
        if language in ('shell', 'sh', 'bash', 'console'):
            yield from split_words(content, f'{page}:{line}')
    for line, text in spans(page):
        if INLINE.match(text):
            text = text if not re.match(r'\w+(/\w+)?\.py', text) else f'python {text}'
            yield from split_words(text, f'{page}:{line}', inline=True)


COMMANDS = [command for page in PAGES for command in commands(page)]


@functools.cache
def module_of(script):
    assert (ROOT / script).is_file(), f'{script}: no such script'
    return importlib.import_module(script.removesuffix('.py').replace('/', '.'))


@functools.cache
def launcher_flags():
    from paddle.distributed.launch.context import args_envs
    return flags_of(args_envs.parse_args)


def flags_of(main, *argv):
    """Flags in a command line's help."""
    printed, before = io.StringIO(), sys.argv
    sys.argv = ['command', '--help']
    try:
        with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
            main(*argv)
    finally:
        sys.argv = before
    return set(re.findall(r'--[\w-]+', printed.getvalue()))


@functools.cache
def script_flags(script):
    main = module_of(script).main
    takes_argv = main.__code__.co_argcount > 0
    return flags_of(main, ['--help']) if takes_argv else flags_of(main)


def scripts():
    return [path.relative_to(ROOT).as_posix() for folder in ('', 'tools', 'benchmarks', 'deploy/python')
            for path in sorted((ROOT / folder).glob('[!_]*.py')) if path.name != 'demo.py']


# ---------------------------------------------------------------- what commands say

@pytest.mark.parametrize('command', COMMANDS, ids=lambda command: f'{command.where} {command}'[:80])
def test_command_names_what_there_is(command, capsys):
    """Scripts, flags, configs and make targets; whatever is not ours must be in NEEDS."""
    if command.words[0] == 'make':
        targets = re.findall(r'^([\w-]+):', (ROOT / 'Makefile').read_text(), re.MULTILINE)
        for word in command.words[1:]:
            assert word in targets, f'{command.where}: make {word}: the Makefile has {", ".join(targets)}'
        return
    if command.script is None or command.words[0] == 'pytest':
        assert command.reason, (f'{command.where}: `{command}`: expected a script of this repository, or a line in '
                                'NEEDS of tests/test_documentation.py that says why it cannot run; found neither')
        for word in command.words[1:] if command.words[0] == 'pytest' else ():
            assert not word.endswith('.py') or (ROOT / word).is_file(), f'{command.where}: {word} does not exist'
        return
    script, arguments = command.script
    before = command.words[:len(command.words) - len(command.script[1]) - 1]
    unknown = {word for word in before if word.startswith('--')} - launcher_flags()
    assert not unknown, f'{command.where}: {unknown} are no flags of paddle.distributed.launch'
    module = module_of(script)
    unknown = {word.partition('=')[0] for word in arguments if word.startswith('--')} - script_flags(script)
    assert not unknown, f'{command.where}: `{command}`: {script} has no {", ".join(unknown)}'
    if hasattr(module, 'parse_args') and not command.inline and '--help' not in arguments:
        try:
            module.parse_args(arguments)
        except SystemExit:
            pytest.fail(f'{command.where}: `{command}`: {capsys.readouterr().err.strip().splitlines()[-1]}')
    for flag, value in itertools.pairwise(arguments):
        if flag == '--config' and value.startswith('configs/'):
            assert (ROOT / value).is_file(), f'{command.where}: {value} does not exist'


def test_a_wrong_command_is_found(capsys):
    """The tests above must fail for what they are there for."""
    text = ('for x in 1 2; do\n  python train.py --no_such_flag \\\n    3 && break  # comment\ndone\nmake nothing\n'
            'curl x | tee y\nA=1 env -u B python tools/nothing.py\n')
    found = list(split_words(text, 'there:1'))
    assert [str(command) for command in found] == ['python train.py --no_such_flag 3', 'make nothing', 'curl x',
                                                   'tee y', 'python tools/nothing.py']
    for command in found:
        with pytest.raises(AssertionError):
            test_command_names_what_there_is(command, capsys)


def test_every_reason_is_needed():
    for start in NEEDS:
        assert any(str(command).startswith(start) for command in COMMANDS), f'NEEDS: no command begins with {start}'


@pytest.mark.parametrize('page', PAGES)
def test_names_in_the_text_exist(page):
    """Flags, files and configs in `code`."""
    known = OTHERS | launcher_flags() | {flag for script in scripts() for flag in script_flags(script)}
    for line, text in spans(page):
        if flag := re.match(r'--\w[\w-]*', text):
            assert flag.group() in known, f'{page}:{line}: no command has a flag {flag.group()}'
        for word in re.findall(r'[\w*./-]+', text):
            if word.split('/')[0] in (*ROOMS, 'docs', '.ci') and '/' in word and not word.startswith('docs/..'):
                assert list(ROOT.glob(word)), f'{page}:{line}: {word} does not exist'
            if re.fullmatch(r'(mscale_ocr|street|toy|nvidia)\w*\.yml', word):
                assert (ROOT / 'configs' / word).is_file(), f'{page}:{line}: configs/{word} does not exist'
            if re.fullmatch(r'(common|training|inference|models|datasets|losses)(\.\w+)+', word) \
                    and not word.endswith(('.md', '.fresh_head')):
                parent, _, name = word.rpartition('.')
                assert (ROOT / f'{word.replace(".", "/")}.py').is_file() or hasattr(
                    importlib.import_module(parent), name), f'{page}:{line}: {word} does not exist'


# ---------------------------------------------------------------- pages

@pytest.mark.parametrize('page', PAGES)
def test_links_lead_somewhere_and_the_first_line_names_the_readers(page):
    text = (ROOT / page).read_text()
    for target in re.findall(r'\]\(([^)#]+)(?:#[^)]*)?\)', text):
        if '://' not in target:
            assert ((ROOT / page).parent / target).is_file(), f'{page}: the link to {target} leads nowhere'
    if page != 'README.md':
        title, empty, first = text.splitlines()[:3]
        assert title.startswith('# ') and not empty and first.startswith('For any'), f'{page}: say for whom it is'


def test_readme_is_short_and_names_every_page():
    text = (ROOT / 'README.md').read_text()
    assert len(text.splitlines()) <= 150
    assert all(f']({page})' in text for page in PAGES if page != 'README.md')
    assert {path.relative_to(ROOT).as_posix() for path in (ROOT / 'docs').glob('*.md')} <= set(PAGES)


def test_table_of_rooms_is_the_one_that_is_enforced():
    rows = re.findall(r'^\| (.*?) \| .*? \| (.*?) \| .*? \|$', (ROOT / 'docs/design.md').read_text(), re.MULTILINE)
    stated = {name: set(re.findall(r'`([\w.]+)`', may)) for names, may in rows for name in re.findall('`(.*?)`', names)}
    assert {name: stated.get(name) for name in MAY_IMPORT} == MAY_IMPORT
    assert set(ROOMS) <= {name.removesuffix('.py') for name in stated}


# ---------------------------------------------------------------- commands that run

def shrunk(config):
    """A config with the same keys whose network, crop and run are tiny."""
    config = {**config, **{key: 2 for key in ('iters', 'batch_size') if key in config}}
    if 'model' in config and 'backbone' in config['model']:
        config['model'] = {**config['model'], 'pretrained': None, 'ocr_mid_channels': 16, 'ocr_key_channels': 8,
                           'attn_channels': 8, 'backbone': {
                               'type': 'HRNet', 'width': 16, 'modules': [1, 1, 1], 'blocks': 1, 'stem': [1, 32]}}
    for transform in config.get('train_dataset', {}).get('transforms', ()):
        if 'crop_size' in transform:
            transform['crop_size'] = [64, 64]
    for loss in config.get('loss', {}).get('types', ()):
        loss.update({'min_K': 100} if 'min_K' in loss else {})
    return config


@pytest.fixture
def sandbox(tmp_path, monkeypatch):
    """A working folder as the documentation supposes it, made of toys."""
    from common.builder import Builder
    from common.config import Config
    from tools import make_toy_cityscapes, prepare_folder

    monkeypatch.setenv('HOME', str(tmp_path / 'home'))
    monkeypatch.chdir(tmp_path)
    for path in (ROOT / 'configs').glob('*.yml'):
        target = tmp_path / 'configs' / path.name
        target.parent.mkdir(exist_ok=True)
        target.write_text(yaml.safe_dump(shrunk(yaml.safe_load(path.read_text()))))
    recipe = tmp_path / 'configs' / prepare_folder.BASE.name
    monkeypatch.setattr(prepare_folder, 'BASE', recipe)
    make_toy_cityscapes.main(['--out', str(tmp_path / 'home/Downloads'), '--as-zips', '--size', '64', '128', '--train',
                              '4', '--val', '2', '--extra', '4', '--test', '1'])
    rng = np.random.default_rng(0)
    for folder, shape, top in (('photos', [64, 96, 3], 256), ('masks', [64, 96], 2),
                               ('street_images', [48, 64, 3], 256)):
        (tmp_path / folder).mkdir()
        for i in range(6):
            cv2.imwrite(f'{folder}/{i}.png', rng.integers(0, top, shape, np.uint8))
    drive = cv2.VideoWriter('drive.mp4', cv2.VideoWriter_fourcc(*'mp4v'), 10, (96, 64))
    for _ in range(3):
        drive.write(rng.integers(0, 256, [64, 96, 3], np.uint8))
    drive.release()
    (tmp_path / 'classes.yml').write_text('0: road\n1: car\n')
    (tmp_path / 'saved_model').mkdir()
    model = Builder(Config(recipe)).model
    fill.weights(model)  # always the same: the check of an export refuses classes that hang by a thread
    paddle.save(model.state_dict(), 'saved_model/model.pdparams')
    return tmp_path


def small(arguments):
    """Arguments of a toy with fewer images than the documentation's."""
    return [*arguments, '--size', '64', '128', '--train', '6', '--val', '2', '--extra', '6', '--test', '1']


def suppose(script, folder):
    """The auto-labels are unpacked for who converts them, and not there for who makes some."""
    labels = folder / 'data/cityscapes/refinement_final'
    if script == 'tools/convert_cityscapes_autolabeling.py' and not labels.is_dir():
        (archive,) = (folder / 'home/Downloads').glob('refinement*.zip')
        shutil.unpack_archive(archive, folder / 'unpacked')
        (found,) = (folder / 'unpacked').rglob('train_extra')
        shutil.copytree(found, labels / 'train_extra')
    if script == 'tools/autolabel.py':
        shutil.rmtree(labels)


def test_commands_run(sandbox, monkeypatch, capfd):
    """Each once, in order, through the script's main. What it leaves is what the next one finds."""
    done = {}
    for command in COMMANDS:
        page = command.where.partition(':')[0]
        if command.inline or command.reason or done.setdefault(str(command), page) != page:
            continue
        script, arguments = command.script
        suppose(script, sandbox)
        arguments = [re.sub('^~', str(sandbox / 'home'), word) for word in arguments]
        arguments = small(arguments) if script.endswith('make_toy_cityscapes.py') else arguments
        with monkeypatch.context() as patch, pytest.raises(SystemExit) as stop:
            patch.setattr(sys, 'argv', [script, *arguments])
            cli.run(module_of(script).main, arguments)
        assert not stop.value.code, f'{command.where}: `{command}`: {capfd.readouterr().err[-1500:]}'
    assert len(done) > 12
    for path in ('data/cityscapes/dataset_report.html', 'data/toy_cityscapes/dataset_report.json',
                 'output/toy/best_model/model.pdparams', 'output/mine/dataset.yml', 'output/unattended/run.json',
                 'data/cityscapes/refinement_final/train_extra/autolabel.json',
                 'saved_model/evaluation_mscale_ocr_cityscapes_autolabel_mapillary_ms_val_flip.json',
                 'output/result/added_prediction/1.png', 'output/result/added_prediction/drive.mp4',
                 'output/submission.zip'):
        assert (sandbox / path).is_file(), f'{path}: expected the commands of the documentation to leave it'
