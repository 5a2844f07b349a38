"""Which exceptions a user can correct."""
import errno

import pytest

from common.errors import FileError, UserError, is_expected


@pytest.mark.parametrize('error, expected', [
    (UserError('a flag'), True), (FileError('a folder'), True), (OSError(errno.ENOSPC, 'disk full'), True),
    (OSError('image file is truncated'), False), (ValueError('from a library'), False), (KeyError('a defect'), False)])
def test_expected_errors(error, expected):
    assert is_expected(error) is expected
