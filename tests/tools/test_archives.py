"""What is refused of an archive before anything is written, and what is taken from a good one."""
import bz2
import io
import stat
import tracemalloc
import zipfile

import pytest

from common.errors import FileError
from tools.cityscapes.archives import AUTO, EXTRA, FINE, IMAGES, MAX_MEMBER, find_archives, open_archive
from tools.cityscapes.unpacking import read

PHOTO = 'leftImg8bit/train/aachen/aachen_000000_000019_leftImg8bit.png'


def write_zip(path, members, compression=zipfile.ZIP_DEFLATED):
    """members: [(name or ZipInfo, bytes)]"""
    with zipfile.ZipFile(path, 'w', compression) as file:
        for name, data in members:
            file.writestr(name, data)
    return path


def special(name, mode):
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    return info


def patch_directory(path, offset, data):
    """Overwrites bytes of the last entry of the central directory."""
    content = bytearray(path.read_bytes())
    start = content.rindex(b'PK\x01\x02') + offset
    content[start:start + len(data)] = data
    path.write_bytes(content)


def refusal(path, kind=IMAGES):
    with pytest.raises((ValueError, OSError)) as info:
        open_archive(path, kind)
    text = str(info.value)
    assert '\n' not in text and str(path) in text
    return text


@pytest.mark.parametrize('name, found', [
    ('/etc/cron.d/x', 'whose path leaves it'), ('leftImg8bit/../../x.png', 'whose path leaves it'),
    ('C:/x.png', 'whose path leaves it'), ('c:x', 'whose path leaves it'), ('a\\..\\x.png', 'whose path leaves it'),
    ('leftImg8bit/train/./x_leftImg8bit.png', 'whose path leaves it'),
    (special('leftImg8bit/train/aachen', stat.S_IFLNK | 0o777), 'that is a symbolic link'),
    (special('leftImg8bit/pipe', stat.S_IFIFO | 0o666), 'that is no file')])
def test_members_that_could_write_elsewhere(tmp_path, name, found):
    path = write_zip(tmp_path / IMAGES.name, [(PHOTO, b'photo'), (name, b'/etc')])
    text = refusal(path)
    assert found in text and repr(getattr(name, 'filename', name)) in text and 'nothing was unpacked' in text


def test_bombs(tmp_path):
    path = write_zip(tmp_path / IMAGES.name, [(PHOTO, bytes(3 << 20))])
    assert 'that expands without end (3' in refusal(path) and f'to {3 << 20})' in refusal(path)
    # Small labels may be packed as they like, large polygons to a twentieth.
    polygons = b''.join(b'%07d' % i + bytes(193) for i in range(10000))
    members = [(PHOTO, bytes(1 << 20)), (PHOTO.replace('19_', '20_'), polygons)]
    assert len(open_archive(write_zip(path, members), IMAGES).members) == 2
    write_zip(path, [(PHOTO, b'photo')])
    patch_directory(path, 24, (MAX_MEMBER + 1).to_bytes(4, 'little'))
    assert 'expands without end' in refusal(path)


def test_overlapping_members(tmp_path):
    path = write_zip(tmp_path / IMAGES.name, [(PHOTO, b'photo')], zipfile.ZIP_STORED)
    patch_directory(path, 20, (1000).to_bytes(4, 'little'))
    assert 'directory does not fit' in refusal(path)


def test_reading_ends_at_the_declared_size(tmp_path):
    """64 MB of zeros that call themselves 1000 bytes: an error, without making them."""
    path = write_zip(tmp_path / IMAGES.name, [(PHOTO, bytes(64 << 20))])
    patch_directory(path, 24, (1000).to_bytes(4, 'little'))
    member, = open_archive(path, IMAGES).members
    tracemalloc.start()
    with pytest.raises(ValueError, match=rf"{path}: member '{PHOTO}': expected 1000 bytes with the checksum.*again"):
        read(member)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20


def test_a_member_shorter_than_declared(tmp_path):
    path = write_zip(tmp_path / IMAGES.name, [(PHOTO, b'photo')])
    patch_directory(path, 24, (1000).to_bytes(4, 'little'))
    with pytest.raises(ValueError, match='expected 1000 bytes'):
        read(*open_archive(path, IMAGES).members)


def test_passwords_and_unusual_packing(tmp_path):
    path = write_zip(tmp_path / IMAGES.name, [(PHOTO, b'photo')])
    patch_directory(path, 8, b'\x01\x00')
    assert 'that is protected by a password' in refusal(path)
    write_zip(path, [(PHOTO, bz2.compress(b'photo'))], zipfile.ZIP_BZIP2)
    assert 'packed by method 12' in refusal(path)


@pytest.mark.parametrize('content, found', [
    (b'', 'found an empty file'),
    (b'<!DOCTYPE html><html><head><title>Google Drive - Virus scan warning</title>', 'found a web page of 75 bytes'),
    (b'\n <HTML>log in', 'Google Drive asks to confirm'),
    (b'Rar!....', 'found 8 bytes that are no zip archive')])
def test_what_is_no_archive(tmp_path, content, found):
    path = tmp_path / AUTO.name
    path.write_bytes(content)
    text = refusal(path, AUTO)
    assert 'expected a whole zip archive' in text and found in text
    assert 'download refinement_final_v0.zip from https://drive.google.com/' in text


def photos(count):
    data = io.BytesIO(bytes(range(256)) * 16)
    return [(PHOTO.replace('000000', f'{i:06d}'), data.getvalue()) for i in range(count)]


def test_truncated_and_damaged_archives(tmp_path):
    path = write_zip(tmp_path / IMAGES.name, photos(20), zipfile.ZIP_STORED)
    whole = path.read_bytes()
    path.write_bytes(whole[:50000])
    text = refusal(path)
    assert 'found one of 50000 bytes that is truncated or damaged' in text
    assert 'download leftImg8bit_trainvaltest.zip (11 GB) from https://www.cityscapes-dataset.com' in text
    path.write_bytes(whole[:20000] + whole[40000:])
    assert 'truncated or damaged' in refusal(path)
    path.write_bytes(whole[20000:])
    assert 'truncated or damaged' in refusal(path)
    path.unlink()
    path.mkdir()
    assert 'found a folder' in refusal(path)


def test_the_wrong_archive_under_the_right_name(tmp_path):
    extra = 'leftImg8bit/train_extra/bad-honnef/bad-honnef_000000_000000_leftImg8bit.png'
    path = write_zip(tmp_path / IMAGES.name, [(extra, b'x')])
    assert ('expected the images of train, val and test, found the images of train_extra (those of '
            'leftImg8bit_trainextra.zip); give it that name') in refusal(path)
    path = write_zip(tmp_path / FINE.name, [('gtCoarse/train/a/a_gtCoarse_labelIds.png', b'x'), ('README', b'x')])
    assert "expected the fine labels, found 2 other files ('gtCoarse/train/a/a_gtCoarse_labelIds.png', 'README')" \
        in refusal(path, FINE)


def targets(archive):
    return {member.target: read(member) for member in archive.members}


def test_tmp_and_what_is_there_twice_are_left_out(tmp_path):
    label = 'refinement_final/train_extra/{}/x_000000_000000_leftImg8bit.png'
    with pytest.warns(UserWarning, match='Duplicate name'):
        path = write_zip(tmp_path / AUTO.name, [
            ('refinement_final/', b''), (label.format('ulm'), b'1'), (label.format('tmp'), b'2'),
            ('refinement_final/tmp/deep/y_leftImg8bit.png', b'3'), (label.format('ulm'), b'4'),
            (label.format('mainz'), b'5')])
    archive = open_archive(path, AUTO)
    assert targets(archive) == {'convert_autolabelled/ulm/x_000000_000000_leftImg8bit.png': b'1',
                                'convert_autolabelled/mainz/x_000000_000000_leftImg8bit.png': b'5'}
    assert archive.notes == [
        f"{AUTO.name}: '{label.format('tmp')}' and 1 more in a folder tmp, which is no city, left out",
        f"{AUTO.name}: '{label.format('ulm')}' that is there before under the same name, left out"]


def test_names_in_other_scripts(tmp_path):
    name = EXTRA.name
    photo = 'leftImg8bit/train_extra/{0}/{0}_000000_000000_leftImg8bit.png'
    path = write_zip(tmp_path / name, [(photo.format('köln'), b'1'), (photo.format('東京'), b'2')])
    expected = {f'leftImg8bit_trainextra/{photo.format(city)}': data for city, data in (('köln', b'1'), ('東京', b'2'))}
    assert targets(open_archive(path, EXTRA)) == expected
    # As macOS' archiver has it: UTF-8 without the flag.
    content = path.read_bytes()
    for magic, offset in ((b'PK\x03\x04', 6), (b'PK\x01\x02', 8)):
        start = -1
        while (start := content.find(magic, start + 1)) >= 0:
            content = content[:start + offset] + b'\0\0' + content[start + offset + 2:]
    path.write_bytes(content)
    assert targets(open_archive(path, EXTRA)) == expected


def test_folder_of_archives(tmp_path):
    with pytest.raises(FileError, match='--zips .*nowhere: expected a folder.*found nothing'):
        find_archives(tmp_path / 'nowhere')
    assert find_archives(tmp_path) == []
    write_zip(tmp_path / IMAGES.name, photos(1))
    write_zip(tmp_path / 'other.zip', [('x', b'y')])
    assert [archive.kind for archive in find_archives(tmp_path)] == [IMAGES]
