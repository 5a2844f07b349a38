"""The steps of a study: commands whose outcome is recorded, so that what is done is not done again.

Everything is below one folder, `study.runs`: <name>/ holds what a step makes, records/<name>.json its outcome. A record
is written when the step is complete. A step without one is run, which continues a training from its newest checkpoint;
a command that ends with an error ends the study, and the next start tries it again.
"""
import ctypes
import json
import logging
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from common.atomic_io import sha256_of, write_atomically
from common.cli import PR_SET_PDEATHSIG
from common.errors import FileError, UserError

logger = logging.getLogger(__name__)
DATA, RUNS = 'data/street', 'output/street_study'  # as commands are shown in the tables


class Study(NamedTuple):
    """data: the street images in the layout of Cityscapes. runs: the folder of everything that is made."""
    data: Path
    runs: Path

    def record(self, name: str) -> dict[str, Any] | None:
        """The outcome of a step, None if it has none yet. Raises FileError if the file is damaged."""
        path = self.runs / 'records' / f'{name}.json'
        try:
            return json.loads(path.read_text(encoding='utf-8'))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise FileError(f'{path}: expected a record in JSON, found {error}; delete the file, and the step is run '
                            'again') from None

    def records(self) -> dict[str, dict[str, Any]]:
        """All outcomes, by name."""
        names = sorted(path.stem for path in (self.runs / 'records').glob('*.json'))
        return {name: record for name in names if (record := self.record(name))}


@dataclass(frozen=True)
class Step:
    """Something to run. group: the table that it belongs to. needs: names of steps that come first."""
    name: str
    group: str
    needs: tuple[str, ...] = ()

    def commands(self, study: Study) -> list[list[str]]:
        """Arguments of this Python, one list per command."""
        raise NotImplementedError

    def result(self, study: Study) -> dict[str, Any]:
        """Plain numbers and texts, once all commands have ended."""
        raise NotImplementedError


@dataclass(frozen=True)
class Training(Step):
    """A run of train.py. data: folder below runs with other labels or classes. start: step whose weights it starts
    from, with new classification layers. interval: iterations between evaluations."""
    config: str = ''
    iters: int = 0
    seed: int = 0
    interval: int = 0
    opts: tuple[str, ...] = ()
    data: str | None = None
    start: str | None = None

    def commands(self, study: Study) -> list[list[str]]:
        root = study.runs / self.data if self.data else study.data
        opts = [f'{section}.dataset_root={root}' for section in ('train_dataset', 'val_dataset')]
        if self.start:
            opts += [f'model.pretrained={weights_of(study, self.start)}', 'model.fresh_head=True']
        return [['train.py', '--config', self.config, '--do_eval', '--num_workers', '0', '--seed', str(self.seed),
                 '--iters', str(self.iters), '--save_interval', str(self.interval), '--keep_checkpoint_max', '2',
                 '--resume', 'auto', '--save_dir', str(study.runs / self.name), '--opts', *opts, *self.opts]]

    def result(self, study: Study) -> dict[str, Any]:
        folder = study.runs / self.name
        lines = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
        train = [line for line in lines if line['kind'] == 'train']
        steps = [b['iteration'] - a['iteration'] for a, b in zip([{'iteration': 0}, *train], train)]
        scores = {kind: {line['iteration']: line for line in lines if line['kind'] == kind}
                  for kind in ('eval', 'ema_eval')}
        if self.iters not in scores['eval']:
            raise FileError(f'{folder}/metrics.jsonl: expected an evaluation at iteration {self.iters}, found none; '
                            'delete the folder, and it is trained again')
        final = (scores['ema_eval'] or scores['eval'])[self.iters]
        weights = folder / f'iter_{self.iters}' / ('ema_model.pdparams' if scores['ema_eval'] else 'model.pdparams')
        return {'miou': final['miou'], 'accuracy': final['accuracy'], 'iou': final['iou'],
                'plain_miou': scores['eval'][self.iters]['miou'], 'weights': str(weights.relative_to(study.runs)),
                'sha256': sha256_of(weights), 'train_seconds': sum(s * t['batch_cost'] for s, t in zip(steps, train)),
                'curve': {kind: [[i, line['miou']] for i, line in found.items()] for kind, found in scores.items()}}


@dataclass(frozen=True)
class Scoring(Step):
    """A run of val.py with the final weights of a training step, which are the averaged ones where there are any."""
    config: str = ''
    weights: str = ''
    flags: tuple[str, ...] = ()
    opts: tuple[str, ...] = ()

    def commands(self, study: Study) -> list[list[str]]:
        return [['val.py', '--config', self.config, '--model_path', str(weights_of(study, self.weights)),
                 '--num_workers', '1', *self.flags, '--opts', f'val_dataset.dataset_root={study.data}', *self.opts]]

    def result(self, study: Study) -> dict[str, Any]:
        weights = weights_of(study, self.weights)
        # val.py names its report by its flags alone: it is that of the command that has just ended.
        report = max(weights.parent.glob('evaluation_*.json'), key=lambda path: path.stat().st_mtime_ns)
        found = json.loads(report.read_text())
        return {'miou': found['miou'], 'accuracy': found['accuracy'], 'sha256': sha256_of(weights),
                'iou': {name: scores['iou'] for name, scores in found['classes'].items()}}


@dataclass(frozen=True)
class AutoLabels(Step):
    """Labels of the extra images by the network of a training step, in a dataset folder of their own."""
    config: str = ''
    teacher: str = ''
    flags: tuple[str, ...] = ()

    def commands(self, study: Study) -> list[list[str]]:
        root = study.runs / self.name
        for name in ('leftImg8bit', 'gtFine', 'leftImg8bit_trainextra'):
            link(study.data / name, root / name)
        return [['tools/autolabel.py', '--config', self.config, '--model_path', str(weights_of(study, self.teacher)),
                 '--image_dir', str(root / 'leftImg8bit_trainextra/leftImg8bit/train_extra'), '--save_dir',
                 str(root / 'refinement_final/train_extra'), '--num_workers', '1', '--aug_pred', '--flip_horizontal',
                 '--ground_truth', str(study.data / 'refinement_final/train_extra'), *self.flags],
                ['tools/convert_cityscapes_autolabeling.py', '--dataset_root', str(root), '--num_workers', '1']]

    def result(self, study: Study) -> dict[str, Any]:
        return json.loads((study.runs / self.name / 'refinement_final/train_extra/autolabel.json').read_text())


def weights_of(study: Study, name: str) -> Path:
    """The final weights of a training step."""
    record = study.record(name)
    if record is None:
        raise UserError(f'{study.runs}/records/{name}.json: expected the record of a training, found none; run the '
                        'study without --only first')
    return study.runs / record['result']['weights']


def link(source: Path, target: Path) -> None:
    """A symbolic link, unless it is there."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.is_symlink():
        target.symlink_to(source.resolve())


def shown(study: Study, commands: Sequence[Sequence[str]]) -> list[str]:
    """Commands as one would type them, with the usual folders."""
    return [shlex.join(['python', *words]).replace(str(study.runs), RUNS).replace(str(study.data), DATA)
            for words in commands]


def run(study: Study, steps: Sequence[Step], only: Sequence[str] = ()) -> int:
    """Run what has no record, of these groups and steps and what they need; returns how many steps were run.

    Raises UserError if a command fails, or if a record was made with other commands than today's.
    """
    count = 0
    for step in selected(steps, only):
        commands = step.commands(study)
        record = study.record(step.name)
        if record is None:
            logger.info('%s', step.name)
            start = time.time()
            for words in commands:
                call(words)
            content = {'name': step.name, 'group': step.group, 'commands': shown(study, commands),
                       'threads': os.environ.get('OMP_NUM_THREADS'), 'seconds': time.time() - start,
                       'result': step.result(study)}
            write_atomically(study.runs / 'records' / f'{step.name}.json', json.dumps(content, indent=1).encode())
            count += 1
        elif record['commands'] != shown(study, commands):
            raise UserError(f'{study.runs}/records/{step.name}.json: expected the outcome of {shown(study, commands)}, '
                            f'found that of {record["commands"]}; delete it and the folder {step.name} to run it again')
    return count


def selected(steps: Sequence[Step], only: Sequence[str]) -> list[Step]:
    """The steps of these groups or names (all without any) and those that they need, in their order."""
    by_name: Mapping[str, Step] = {step.name: step for step in steps}
    wanted: set[str] = set()

    def want(name: str) -> None:
        wanted.add(name)
        for other in by_name[name].needs:
            want(other)

    for step in steps:
        if not only or step.group in only or step.name in only:
            want(step.name)
    return [step for step in steps if step.name in wanted]


def call(words: Sequence[str]) -> None:
    """Run a script of this repository; UserError if it fails. It ends with this process, however that ends."""
    def die_with(parent: int = os.getpid()) -> None:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the line above
            os._exit(1)

    status = subprocess.run([sys.executable, *words], preexec_fn=die_with if sys.platform == 'linux' else None,
                            check=False).returncode
    if status:
        raise UserError(f'{shlex.join(["python", *words])}: expected exit status 0, found {status}; see its last '
                        'lines, and start the study again: it continues there')
