"""The checks of tools/check_machine.py as assertions, on a GPU; `make test-gpu`. Without one, all are skipped."""
import paddle
import pytest

from tools import check_machine
from tools.machine import checks
from tools.machine.rows import FAILED, NOT_RUN, Row, Settings

NEEDS = 'needs a CUDA GPU and a Paddle built with CUDA'


def gpus() -> int:
    return paddle.device.cuda.device_count() if paddle.is_compiled_with_cuda() else 0


pytestmark = pytest.mark.skipif(gpus() == 0, reason=NEEDS)


@pytest.fixture(scope='module')
def facts(tmp_path_factory):
    return check_machine.find_facts(str(tmp_path_factory.mktemp('facts')))


@pytest.fixture(scope='module')
def settings(tmp_path_factory) -> Settings:
    """The recipe's network and crop; the folder is shared, because checks leave files for those after them."""
    found = Settings('gpu', 'recipe', (1024, 2048), gpus=gpus(), folder=str(tmp_path_factory.mktemp('gpu')))
    found.save()
    return found


def rows_of(name: str, settings: Settings, facts) -> list[Row]:
    if reason := checks.unfit(name, settings, facts):
        pytest.skip(reason)
    rows = checks.run(name, settings)
    assert rows, f'{name}: expected rows, found none'
    return rows


@pytest.mark.parametrize('name', checks.NAMES)
def test_check(name, settings, facts):
    rows = rows_of(name, settings, facts)
    for row in rows:
        print(row)
    failed = [f'{row.name}: expected {row.expected}, found {row.found} {row.reason}' for row in rows
              if row.status == FAILED]
    assert not failed, '\n'.join(failed)
    if all(row.status == NOT_RUN for row in rows):
        pytest.skip(rows[-1].reason)
