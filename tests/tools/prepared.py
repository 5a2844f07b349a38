"""What the tests of tools/prepare_cityscapes.py share; their fixtures are in conftest.py."""
import zipfile
from pathlib import Path

import numpy as np

from tests.tools.label_images import by_formula, read
from tools.prepare_cityscapes import main

IMAGES, FINE = 'leftImg8bit_trainvaltest.zip', 'gtFine_trainvaltest.zip'
EXTRA, AUTO = 'leftImg8bit_trainextra.zip', 'refinement_final_v0.zip'


def run(root, zips, workers=1):
    return main(['--zips', str(zips), '--dataset_root', str(root), '--num_workers', str(workers)])


def files(root):
    return {path.relative_to(root).as_posix(): path for path in Path(root).rglob('*')
            if path.is_file() and path.name not in ('.lock', 'toy_cityscapes.json')}


def check_tree(root, drawn, without=()):
    """All that is published of the drawn tree, and nothing else."""
    expected = set()
    for name, source in files(drawn).items():
        instances = name.startswith('gtFine/val/') and name.endswith('instanceIds.png')
        if name.startswith('leftImg8bit') or name == 'dataset.yml' or name.endswith('labelIds.png') or instances:
            expected.add(name)
            if name not in without:
                assert (root / name).read_bytes() == source.read_bytes()
        train_ids = (name.replace('labelIds', 'labelTrainIds') if name.endswith('labelIds.png') else
                     name.replace('refinement_final/train_extra', 'convert_autolabelled'))
        if train_ids != name:
            expected.add(train_ids)
            if train_ids not in without:
                np.testing.assert_array_equal(read(root / train_ids), by_formula(read(source)))
    assert set(files(root)) == expected - set(without)
    assert len(expected) == 8 + 2 * 8 + 2 * 5 + 1 + 2


def rewrite(path, change):
    """Writes an archive anew; change: (name, data) -> [(name, data)]."""
    with zipfile.ZipFile(path) as file:
        members = [(info.filename, file.read(info)) for info in file.infolist()]
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as file:
        for name, data in members:
            for new_name, new_data in change(name, data):
                file.writestr(new_name, new_data)


def errors(capsys):
    return [line for line in capsys.readouterr().err.splitlines() if line]
