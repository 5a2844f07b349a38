"""What is run: short runs that compare settings, the long run, and what each idea of the recipe is worth."""
from dataclasses import dataclass
from typing import NamedTuple

from benchmarks.street.steps import AutoLabels, Scoring, Step, Study, Training, link
from common.atomic_io import write_atomically

CONFIG, PROBE = 'configs/street_small_360x480.yml', 'benchmarks/street/probe.yml'
BUDGET, LONG, PROBE_ITERS = 800, 8000, 200  # iterations of a comparison, of the long run, of a short run
TEACHER = 2 * BUDGET  # of the teacher of the short runs
MIN_K = 1126  # of the config
SEEDS = (0, 1)
COEF = 'loss.coef=[1,0.4,0.05,0.05]'
CROSS_ENTROPY = ('loss.types=[{type: CrossEntropyLoss}]', COEF)

# ---------------------------------------------------------------- short runs: what a first run from scratch needs


class Probe(NamedTuple):
    """text: what differs from the config, for the table. iters: where the number of images per step differs, too."""
    text: str
    opts: tuple[str, ...] = ()
    iters: int = PROBE_ITERS
    seeds: tuple[int, ...] = SEEDS[:1]


PROBES = {
    'recipe': Probe("dice and bootstrapped cross entropy, the recipe's losses", seeds=SEEDS),
    'cross-entropy': Probe('cross entropy alone', CROSS_ENTROPY, seeds=SEEDS),
    'bootstrapped': Probe('bootstrapped cross entropy alone', (
        'loss.types=[{type: BootstrappedCrossEntropyLoss, min_K: 448, loss_th: 0.05}]', COEF)),
    'all-pixels': Probe('`min_K` of all pixels', tuple(f'loss.types.{i}.min_K=8960' for i in range(4, 8))),
    'sgd-as-before': Probe('SGD, 0.03, without warm-up', (
        'optimizer={type: sgd, momentum: 0.9, weight_decay: 0.0001}', 'lr_scheduler.learning_rate=0.03',
        'lr_scheduler.warmup_iters=0')),
    'lr-0.006': Probe('AdamW at 0.006 instead of 0.002', ('lr_scheduler.learning_rate=0.006',), seeds=SEEDS),
    'batch-2': Probe('2 images per step, twice as many steps', ('batch_size=2',), 2 * PROBE_ITERS),
    'scales-supervised': Probe('coefficient 0.4 instead of 0.05 for each scale alone',
                               ('loss.coef=[1,0.4,0.4,0.4,1,0.4,0.4,0.4]',)),
    'plain-colours': Probe('colours not changed', tuple(
        f'train_dataset.transforms.3.{name}_prob=0' for name in ('brightness', 'contrast', 'saturation'))),
    'auto-labels': Probe('an equal share of the extra images', ('train_dataset.coarse_multiple=1',)),
    'class-uniform': Probe('`class_uniform` 0.5', ('train_dataset.class_uniform=0.5',)),
}


# ---------------------------------------------------------------- four classes of the same images

# Label ids of Cityscapes by their categories; objects belong to what is built.
CATEGORIES = {'void': range(7), 'flat': range(7, 11), 'built': range(11, 21), 'natural': range(21, 24),
              'moving': range(24, 34)}
MAPPING = ''.join(f'{label_id}: {name}\n' for name, label_ids in CATEGORIES.items() for label_id in label_ids)


@dataclass(frozen=True)
class FourClasses(Step):
    """The images with four classes instead of eleven, made by tools/prepare_folder.py."""

    def commands(self, study: Study) -> list[list[str]]:
        source = study.runs / f'{self.name}_source'
        lists: dict[str, list[str]] = {'train': [], 'val': []}
        for split, names in lists.items():
            for label in sorted((study.data / 'gtFine' / split).glob('*/*_gtFine_labelIds.png')):
                stem = label.name.removesuffix('_gtFine_labelIds.png')
                image = study.data / 'leftImg8bit' / split / label.parent.name / f'{stem}_leftImg8bit.png'
                link(image, source / 'images' / f'{stem}.png')
                link(label, source / 'masks' / f'{stem}.png')
                names.append(stem)
        for split, names in lists.items():
            write_atomically(source / f'{split}.txt', '\n'.join(names).encode() + b'\n')
        write_atomically(source / 'classes.yml', MAPPING.encode())
        return [['tools/prepare_folder.py', '--images', str(source / 'images'), '--masks', str(source / 'masks'),
                 '--mapping', str(source / 'classes.yml'), '--lists', str(source / 'train.txt'),
                 str(source / 'val.txt'), '--out', str(study.runs / self.name), '--num_workers', '1']]

    def result(self, study: Study) -> dict[str, str]:
        return {'description': (study.runs / self.name / 'dataset.yml').read_text()}


# ---------------------------------------------------------------- everything, in the order in which it is run

SCALES: dict[str, tuple[str, tuple[str, ...]]] = {  # name: (n_scales, --scales of the test-time augmentation)
    '1.0 alone': ('[1.0]', ()),
    'mean of 0.5, 1, 2': ('[1.0]', ('0.5', '1', '2')),
    'attention at 0.5, 1': ('[0.5,1.0]', ()),
    'attention at 0.5, 1, 2': ('[0.5,1.0,2.0]', ()),
    'attention at 0.5, 1, 1.5, 2, 2.5': ('[0.5,1.0,1.5,2.0,2.5]', ()),
}
IDEAS: dict[str, tuple[str, tuple[str, ...]]] = {  # name: (text, what differs from the config)
    'base': ('dice and bootstrapped cross entropy, as in the config', ()),
    'bootstrapped': ('bootstrapped cross entropy alone', (
        f'loss.types=[{{type: BootstrappedCrossEntropyLoss, min_K: {MIN_K}, loss_th: 0.05}}]', COEF)),
    'cross-entropy': ('cross entropy alone', CROSS_ENTROPY),
    'class-uniform': ('`class_uniform` 0.5', ('train_dataset.class_uniform=0.5',)),
}
THRESHOLDS: dict[str, tuple[str, ...]] = {
    '0.9': (), '0.5': ('--threshold', '0.5'), 'budget': ('--class_budget', '0.2')}
SCORED = ('base-seed0', 'main')  # the weights whose scales and precisions are compared
PRECISIONS = ('fp32', 'bf16', 'int8')  # of inference


def steps() -> list[Step]:
    """All steps, those that others need before them."""
    found: list[Step] = [Training(f'probe-{name}-seed{seed}', 'probes', (), PROBE, probe.iters, seed, probe.iters // 2,
                                  probe.opts) for name, probe in PROBES.items() for seed in probe.seeds]
    ideas = [Training(f'{name}-seed{seed}', 'ideas', (), CONFIG, BUDGET, seed, BUDGET // 5, opts)
             for seed in SEEDS for name, (_, opts) in IDEAS.items()]
    # class_uniform helped in the short runs, and costs no time.
    main = Training('main', 'main', (), CONFIG, LONG, 0, LONG // 40, ('train_dataset.class_uniform=0.5',))
    for training in (ideas[0], main):  # SCORED
        found += [training, *_scores(training.name)]
    found += ideas[1:]
    coarse = ('train_dataset.coarse_multiple=1',)
    for threshold, flags in THRESHOLDS.items():
        found.append(AutoLabels(f'labels-{threshold}', 'labels', ('main',), CONFIG, 'main', flags))
    found += [Training(f'student-{threshold}-seed{seed}', 'labels', (f'labels-{threshold}',), CONFIG, BUDGET, seed,
                       BUDGET // 10, coarse, data=f'labels-{threshold}') for seed in SEEDS for threshold in THRESHOLDS]
    found.append(Training('teacher', 'students', (), CONFIG, TEACHER, 0, TEACHER // 12, main.opts))
    for threshold, flags in THRESHOLDS.items():
        found.append(AutoLabels(f'teacher-{threshold}', 'students', ('teacher',), CONFIG, 'teacher', flags))
    for seed in SEEDS:
        found += [Training(f'short-{threshold}-{iters}-seed{seed}', 'students', (f'teacher-{threshold}',), PROBE, iters,
                           seed, iters // 2, coarse, data=f'teacher-{threshold}')
                  for iters in (PROBE_ITERS, 2 * PROBE_ITERS) for threshold in THRESHOLDS]
        for name, iters, opts in (('none', PROBE_ITERS, ()), ('none', 2 * PROBE_ITERS, ()),
                                  ('truth', PROBE_ITERS, coarse)):
            found.append(Training(f'short-{name}-{iters}-seed{seed}', 'students', (), PROBE, iters, seed, iters // 2,
                                  opts))
    found.append(FourClasses('four-classes', 'finetune'))
    for seed in SEEDS:
        for name, start in (('scratch', None), ('finetuned', 'main')):
            needs = ('four-classes', *((start,) if start else ()))
            # One step at next to no learning rate: the score of what the run starts with.
            for iters, opts in ((1, ('lr_scheduler.learning_rate=1.0e-12',)), (50, ()), (200, ())):
                found.append(Training(f'{name}-{iters}-seed{seed}', 'finetune', needs, CONFIG, iters, seed, iters, opts,
                                      data='four-classes', start=start))
    return found


def _scores(weights: str) -> list[Step]:
    """Scales and precisions with the weights of a training."""
    found: list[Step] = []
    for name, (n_scales, scales) in SCALES.items():
        for flip in (False, True):
            flags = (*(('--aug_eval',) if scales or flip else ()), *(('--scales', *scales) if scales else ()),
                     *(('--flip_horizontal',) if flip else ()))
            found.append(Scoring(score_name(weights, name, flip), 'scales', (weights,), CONFIG, weights, flags,
                                 (f'model.n_scales={n_scales}',)))
    return found + [Scoring(f'precision-{weights}-{precision}', 'precision', (weights,), CONFIG, weights,
                            ('--precision', precision)) for precision in PRECISIONS]


def score_name(weights: str, scales: str, flip: bool) -> str:
    """The name of a score's record."""
    return f'scales-{weights}-{scales.replace(",", "").replace(" ", "-")}{"-flip" if flip else ""}'
