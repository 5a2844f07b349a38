"""`make test-zoo PADDLESEG=/path`: the configs of a checkout of PaddleSeg 2.8 through our command lines, as a table.

    python tests/zoo.py [--paddleseg DIR] [--only FAMILY ...] [--all] [--again] [--docs]

One Cityscapes config of every family (a folder of configs/): two iterations with an evaluation, val.py plain and
mirrored, predict.py, on drawn data. The configs are used as they are, but for what makes them small: the folder of the
data, sizes of crops and images, batch size, iterations, and no pretrained weights, which would need a network. --all
trains every other config for two iterations, on drawn data in its dataset's layout (tests/zoo_data.py).

Paddle is imported once; every command runs in a process forked from there, one after the other. Results are kept in
--out, and what has passed is not run again; --again runs what has not. The exit status is 1 where fewer than NEEDED
families pass, or a config ends in anything but a pass or a refusal of one line.
"""
import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from common import cli  # noqa: E402
from common.atomic_io import write_atomically  # noqa: E402
from common.config_files import read_chain  # noqa: E402
from common.errors import UserError  # noqa: E402

NEEDED = 46
STEPS = ('trains', 'evaluates', 'mirrored', 'predicts')
CROP, IMAGE = [96, 96], [128, 96]  # (w, h)
LIMIT = 900  # seconds for one command
VERSION = 1  # of what is run: results of another version are not kept


# ---------------------------------------------------------------- configs

def configs_of(checkout):
    """{family: [config, relative to configs/]}, every file that is not the base of others by its folder."""
    folder = checkout / 'configs'
    families = {}
    for path in sorted(folder.rglob('*.yml')):
        family = path.relative_to(folder).parts[0]
        if family != '_base_':
            families.setdefault(family, []).append(path.relative_to(folder))
    return families


def resolved(path):
    import paddleseg.cvlibs

    dic = {}
    for _, own in reversed(read_chain(str(path))):
        dic = paddleseg.cvlibs.config.merge_config_dicts(own, dic)
    return dic


def dataset_of(checkout, config):
    """The type of the training data; '' where there is none or the file cannot be read."""
    try:
        return resolved(checkout / 'configs' / config).get('train_dataset', {}).get('type', '')
    except UserError:
        return ''


def small(dic, roots):
    """--opts that make a resolved config small and free of downloads. roots: {section: {key: value}} of the data."""
    opts = {f'{section}.{key}': value for section, keys in roots.items() if section in dic
            for key, value in keys.items()}

    def shrink(keys, value):
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for key, item in items:
            path = (*keys, str(key))
            if key == 'pretrained' and isinstance(item, str):
                opts['.'.join(path)] = 'null'
            elif key == 'crop_size' and isinstance(item, list):
                opts['.'.join(path)] = CROP
            elif key == 'stride' and keys[0] == 'test_config':
                opts['.'.join(path)] = [64, 64]
            elif key == 'target_size':
                opts['.'.join(path)] = IMAGE if len(set(item)) > 1 else [IMAGE[0]] * 2
            elif key in ('short_size', 'long_size'):
                opts['.'.join(path)] = 96
            elif key not in ('loss', 'common_transforms'):
                shrink(path, item)

    shrink((), dic)
    return [f'{key}={value}' for key, value in opts.items()]


# ---------------------------------------------------------------- commands

def forked(main, argv, log, limit):
    """Run a script's main(argv) in a forked process. Returns '' or, in one line, why it did not end with status 0."""
    process = os.fork()
    if process == 0:
        os.setsid()
        with open(log, 'ab', 0) as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        status = 1
        try:
            cli.run(main, argv)
        except SystemExit as stop:
            status = stop.code or 0
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    latest = time.monotonic() + limit
    try:
        while os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            if time.monotonic() > latest:
                return f'not done in {limit} s'
            time.sleep(0.05)
    finally:
        end(process)
        status = os.waitpid(process, 0)[1]
    if os.WIFSIGNALED(status):
        return f'killed by signal {os.WTERMSIG(status)}'
    if status == 0:
        return ''
    lines = [line for line in log.read_text(errors='replace').splitlines()
             if line.startswith(('error: ', 'internal error: '))]
    return lines[-1] if lines else f'status {os.WEXITSTATUS(status)} without a line'


def end(process):
    """Kill what is left of a process and its children; a process that has ended is no matter."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process, signal.SIGKILL)


def run_config(path, opts, image, work, limit, steps):
    """{step: '' or why not} of one config, up to the first that fails; what it wrote is deleted, but the log."""
    import predict
    import train
    import val

    run, log = work / 'run', work / 'log.txt'
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    common, weights = ['--config', str(path)], ['--model_path', str(run / 'iter_2/model.pdparams')]
    opts = ['--opts', *opts]
    commands = {
        'trains': (train.main, [*common, '--iters', '2', '--batch_size', '2', '--save_dir', str(run), '--do_eval',
                                '--num_workers', '0', '--log_iters', '1', *opts]),
        'evaluates': (val.main, [*common, *weights, '--num_workers', '0', *opts]),
        'mirrored': (val.main, [*common, *weights, '--num_workers', '0', '--aug_eval', '--flip_horizontal', *opts]),
        'predicts': (predict.main, [*common, *weights, '--image_path', str(image), '--save_dir', str(work / 'pictures'),
                                    '--num_workers', '0', *opts])}
    found = {}
    for step in steps:
        main, argv = commands[step]
        found[step] = forked(main, argv, log, limit) or missing(step, run, work / 'pictures')
        if found[step]:
            break
    for folder in (run, work / 'pictures'):
        shutil.rmtree(folder, ignore_errors=True)
    return found


def missing(step, run, pictures):
    """What a command that ended well should have left and has not."""
    there = {'trains': run / 'iter_2/model.pdparams', 'predicts': pictures / 'pseudo_color_prediction'}
    if step in there:
        return '' if there[step].exists() else f'{there[step].name} is missing'
    reports = list((run / 'iter_2').glob('evaluation_*.json'))
    return '' if len(reports) > (step == 'mirrored') else 'its evaluation is missing'


# ---------------------------------------------------------------- the table

def passed(result):
    return not any(result['steps'].values())


def reason(result):
    """Why it did not pass, without paths, in one line."""
    text = next((value for value in result['steps'].values() if value), '')
    text = re.sub(r'/\S*/(?=[^/\s]+)', '', text.removeprefix('error: '))
    return text.removeprefix(f'{Path(result["config"]).name}: ')


def refused(result):
    return any(value.startswith('error: ') for value in result['steps'].values())


def row(result, steps):
    marks = ['yes' if result['steps'].get(step) == '' else 'no' for step in steps]
    return (f'| {result["family"]} | `{Path(result["config"]).stem}` | {" | ".join(marks)} | '
            f'{reason(result).replace("|", "/")} |')


def table(results, steps):
    head = f'| family | config | {" | ".join(steps)} | |'
    return '\n'.join([head, '|---' * (len(steps) + 3) + '|', *(row(result, steps) for result in results)])


def counts(results):
    """A table of how many configs of each dataset train, and those that do not, with the reason."""
    datasets = {}
    for result in results:
        datasets.setdefault(result['dataset'] or '-', []).append(result)
    lines = ['| dataset | configs | train | refused |', '|---|---|---|---|']
    for name, found in sorted(datasets.items(), key=lambda item: -len(item[1])):
        lines.append(f'| {name} | {len(found)} | {sum(map(passed, found))} | {sum(map(refused, found))} |')
    lines += ['', *(f'- `{result["config"]}`: {reason(result)}' for result in results if not passed(result))]
    return '\n'.join(lines)


def write_between(page, name, text):
    """Replace what stands between <!-- name --> and <!-- /name --> in a page."""
    start, end = f'<!-- {name} -->', f'<!-- /{name} -->'
    before, _, rest = page.read_text().partition(start)
    page.write_text(f'{before}{start}\n{text}\n{end}{rest.partition(end)[2]}')


# ---------------------------------------------------------------- the run

def parse_args(argv):
    parser = cli.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--paddleseg', default=os.environ.get('PADDLESEG'), help='checkout; default: $PADDLESEG')
    parser.add_argument('--out', help='folder of the results; default: output/zoo_<version of Paddle>')
    parser.add_argument('--only', nargs='+', default=[], metavar='FAMILY', help='these only')
    parser.add_argument('--all', action='store_true', help='train every other config, too')
    parser.add_argument('--again', action='store_true', help='run again what has not passed')
    parser.add_argument('--limit', type=int, default=LIMIT, help=f'seconds for one command (default: {LIMIT})')
    parser.add_argument('--docs', action='store_true', help='write the tables into docs/paddleseg.md')
    return parser.parse_args(argv)


def main(argv):
    args = parse_args(argv)
    if not args.paddleseg:
        print('skipped: the zoo of PaddleSeg: PADDLESEG is not set; make test-zoo PADDLESEG=/path/to/PaddleSeg '
              '(tag v2.8.0)')
        return 0
    checkout = Path(args.paddleseg).resolve()
    if not (checkout / 'configs/_base_').is_dir():
        print(f'error: {checkout}: expected a checkout of PaddleSeg 2.8, found no configs/_base_', file=sys.stderr)
        return 1
    cli.load_paddle()
    import paddle

    from tests import zoo_data

    out = Path(args.out or ROOT / f'output/zoo_{paddle.__version__}').resolve()
    first, rest = [], []
    for family, configs in configs_of(checkout).items():
        cityscapes = [config for config in configs if dataset_of(checkout, config) == 'Cityscapes']
        first += [(family, config) for config in cityscapes[:1]]
        rest += [(family, config) for config in configs if config not in cityscapes[:1]]
    families = {family for family, _ in first + rest}
    if unknown := set(args.only) - families:
        print(f'error: --only {" ".join(sorted(unknown))}: expected families ({", ".join(sorted(families))})',
              file=sys.stderr)
        return 1
    if args.only:
        first, rest = ([(family, config) for family, config in part if family in args.only] for part in (first, rest))
    data = zoo_data.Data(out / 'data_{}x{}'.format(*zoo_data.SIZE))
    results = run_all(first, STEPS, args, checkout, out, data)
    good = sum(map(passed, results))
    summary = f'Paddle {paddle.__version__}: {good} of {len(results)} families pass.'
    print(f'\n{table(results, STEPS)}\n\n{summary}')
    others = run_all(rest, STEPS[:1], args, checkout, out, data) if args.all else []
    if others:
        print(f'\n{counts(others)}\n')
    if args.docs and not args.only:
        page = ROOT / 'docs/paddleseg.md'
        write_between(page, 'zoo', f'{summary}\n\n{table(results, STEPS)}')
        if others:
            write_between(page, 'other configs', counts(others))
    broken = [result for result in [*results, *others] if not passed(result) and not refused(result)]
    for result in broken:
        print(f'{result["config"]}: {reason(result)}')
    return int(bool(broken) or (not args.only and good < NEEDED))


def run_all(configs, steps, args, checkout, out, data):
    results = []
    for number, (family, config) in enumerate(configs, 1):
        kept = out / 'results' / f'{"__".join(config.with_suffix("").parts)}.json'
        result = json.loads(kept.read_text()) if kept.exists() else None
        if result is None or result['version'] != VERSION or (args.again and not passed(result)):
            start = time.monotonic()
            try:
                dic = resolved(checkout / 'configs' / config)
                roots, image = data.of(dic)
                opts = small(dic, roots)
            except UserError:  # the commands say the same
                dic, opts, image = {}, [], ''
            found = run_config(checkout / 'configs' / config, opts, image, out / 'work' / kept.stem, args.limit, steps)
            result = {'version': VERSION, 'family': family, 'config': str(config), 'steps': found,
                      'dataset': dic.get('train_dataset', {}).get('type', ''), 'seconds': time.monotonic() - start}
            write_atomically(kept, (json.dumps(result, indent=1) + '\n').encode())
            outcome = 'passes' if passed(result) else reason(result)
            print(f'{number}/{len(configs)} {result["seconds"]:5.0f} s  {outcome}  ({config})', flush=True)
        results.append(result)
    return results


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
