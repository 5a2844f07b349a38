"""Videos: same frames, times and sound; continued after an interruption; what is broken yields what it has."""
import logging
import struct
import sys
import weakref
from fractions import Fraction

import av
import numpy as np
import pytest

import predict
from common.errors import UserError
from inference import Segmenter, pictures, video, video_prediction
from inference.predictor import Predictor
from inference.video_prediction import Smoothing, VideoPrediction
from tests.conftest import run_script as run
from tests.training.test_distributed import launch

SIZE = (48, 64)


@pytest.fixture(scope='module')
def segmenter(tiny):
    return Segmenter(*tiny, backend='paddle')


def drawn(i, size=SIZE):
    """uint8 (H, W, 3) RGB: soft shapes that move, so that compression loses little."""
    y, x = np.mgrid[:size[0], :size[1]] / 12
    return np.stack([127 + 120 * np.sin(x + i / 3), 127 + 120 * np.cos(y - i / 4), 60 + 20 * np.sin(x * y / 9)],
                    axis=2).astype(np.uint8)


def make(path, times=range(10), size=SIZE, sound=None, **options):
    """A video at 10 frames per second, with the times of its frames in tenths of a second."""
    with av.open(str(path), 'w', options=options) as out:
        stream = out.add_stream('libx264', rate=10, options={'crf': '8'})
        stream.height, stream.width, stream.pix_fmt = *size, 'yuv420p' if size[0] % 2 == 0 else 'yuv444p'
        stream.codec_context.time_base = Fraction(1, 10)
        tone = out.add_stream(sound, rate=32000) if sound else None
        for i, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(drawn(i, size))
            frame.pts, frame.time_base = time, Fraction(1, 10)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
        if tone:
            wave = (8000 * np.sin(np.arange(32000 * len(times) // 10) / 3)).astype(np.int16)
            frame = av.AudioFrame.from_ndarray(wave[None], format='s16', layout='mono')
            frame.sample_rate = 32000
            fifo = av.AudioResampler(format=tone.codec_context.format, layout='mono', rate=32000,
                                     frame_size=tone.codec_context.frame_size or 1024)
            for part in [*fifo.resample(frame), *fifo.resample(None)]:
                out.mux(tone.encode(part))
            out.mux(tone.encode(None))
    return path


def read(path):
    """([seconds], [RGB frames], {kind: codec}) of a video."""
    with av.open(str(path)) as file:
        codecs = {stream.type: stream.codec.canonical_name for stream in file.streams}
        frames = list(file.decode(video=0))
        images = [frame.to_ndarray(format='rgb24') for frame in frames]
        return [round(frame.time, 3) for frame in frames], images, codecs


def overlaid(source, folder, segmenter, every=1, smoothing=0.0):
    job = VideoPrediction(source, folder, every, smoothing, {})
    job.run(segmenter, 1)
    assert [path.name for path in job.out.parent.iterdir()] == [job.out.name], 'the segments must be gone'
    return job.out


@pytest.fixture(autouse=True)
def short_segments(monkeypatch):
    monkeypatch.setattr(video_prediction, 'SEGMENT', 4)


def test_the_video_of_the_overlays(segmenter, tmp_path):
    source = make(tmp_path / 'drive.mp4', sound='aac')
    times, frames, codecs = read(overlaid(source, tmp_path / 'out', segmenter))
    source_times, source_frames, _ = read(source)
    assert times == source_times == [i / 10 for i in range(10)] and codecs == {'video': 'h264', 'audio': 'aac'}
    seen = set()
    for found, original in zip(frames, source_frames, strict=True):
        expected = pictures.overlay(original, segmenter(original).classes, segmenter.colors[:, ::-1])
        # Lossy twice, chroma at half the resolution: off at edges, not on average.
        assert np.abs(found.astype(float) - expected).mean() < 6
        assert np.abs(found.astype(float).mean((0, 1)) - expected.mean((0, 1))).max() < 3, 'the colours must be right'
        seen |= set(np.unique(segmenter(original).classes))
    assert len(seen) > 1


def sound_of(path):
    with av.open(str(path)) as file:
        return np.concatenate([frame.to_ndarray().ravel() for frame in file.decode(audio=0)])


@pytest.mark.parametrize('suffix,codec,kept', [('.mp4', 'aac', 'aac'), ('.mkv', 'ac3', 'ac3'),
                                               ('.mov', 'pcm_s16le', 'aac')])
def test_sound_is_kept(segmenter, tmp_path, suffix, codec, kept):
    source = make(tmp_path / f'drive{suffix}', sound=codec)
    out = overlaid(source, tmp_path / 'out', segmenter, every=5)
    assert out.name == 'drive.mp4' and read(out)[2] == {'video': 'h264', 'audio': kept}
    before, after = sound_of(source), sound_of(out)
    if codec == kept:
        # The same packets. (Matroska has the codec's first samples, which hold nothing, cut off; MP4 has not.)
        np.testing.assert_array_equal(before[2048:], after[-len(before):][2048:])
    else:
        assert abs(len(after) - len(before)) <= 2048 and np.abs(after).max() > 0.15


def count_predictions(monkeypatch, stop=None):
    """The number of each predicted frame; `stop`: interrupted at that one."""
    found = []
    whole = Predictor.original_logits

    def counted(predictor, sample):
        if len(found) == stop:
            raise KeyboardInterrupt
        found.append(len(found))
        return whole(predictor, sample)

    monkeypatch.setattr(Predictor, 'original_logits', counted)  # of the object, it would end up in copies of it
    return found


@pytest.mark.parametrize('smoothing', [0.0, 0.7])
def test_an_interrupted_video_continues(segmenter, tmp_path, smoothing):
    source = make(tmp_path / 'drive.mp4')
    expected = read(overlaid(source, tmp_path / 'whole', segmenter, smoothing=smoothing))
    job = VideoPrediction(source, tmp_path / 'out', 1, smoothing, {})
    with pytest.MonkeyPatch.context() as patch:
        count_predictions(patch, stop=6)
        with pytest.raises(KeyboardInterrupt):
            job.run(segmenter, 1)
    assert not job.out.exists() and [path.name for path in job.parts.glob('*.mp4')] == ['000000.mp4']
    with pytest.MonkeyPatch.context() as patch:
        again = count_predictions(patch)
        found = read(overlaid(source, tmp_path / 'out', segmenter, smoothing=smoothing))
    assert len(again) == 6, 'the first segment of four must not be predicted again'
    assert found[0] == expected[0]
    for one, other in zip(found[1], expected[1], strict=True):
        np.testing.assert_array_equal(one, other)


def test_only_with_the_settings_it_was_begun_with(segmenter, tmp_path, monkeypatch):
    source = make(tmp_path / 'drive.mp4')
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        count_predictions(patch, stop=6)
        VideoPrediction(source, tmp_path / 'out', 1, 0.0, {}).run(segmenter, 0)
    with pytest.raises(UserError, match=r'expected to continue it with the settings .* smoothing: 0.0, now 0.5'):
        VideoPrediction(source, tmp_path / 'out', 1, 0.5, {}).run(segmenter, 0)


def test_every_third_frame(segmenter, tmp_path, monkeypatch):
    source = make(tmp_path / 'drive.mp4')
    predicted = count_predictions(monkeypatch)
    times, frames, _ = read(overlaid(source, tmp_path / 'out', segmenter, every=3))
    assert len(predicted) == 4 and len(times) == 10
    originals = read(source)[1]
    for i in (3, 4, 5):  # over their own pictures
        expected = pictures.overlay(originals[i], segmenter(originals[3]).classes, segmenter.colors[:, ::-1])
        assert np.abs(frames[i].astype(float) - expected).mean() < 6


def test_times_that_vary_stay(segmenter, tmp_path):
    times = [0, 1, 2, 5, 6, 10, 20, 21]
    source = make(tmp_path / 'drive.mkv', times)
    assert read(overlaid(source, tmp_path / 'out', segmenter))[0] == [time / 10 for time in times]


def test_a_turned_video_is_upright(segmenter, tmp_path):
    source = make(tmp_path / 'drive.mp4', range(3))
    data = bytearray(source.read_bytes())
    place = data.index(b'tkhd') + 4 + 40
    one = 1 << 16
    assert struct.unpack('>9i', data[place:place + 36]) == (one, 0, 0, 0, one, 0, 0, 0, 1 << 30)
    data[place:place + 36] = struct.pack('>9i', 0, one, 0, -one, 0, 0, 0, 0, 1 << 30)  # as a phone held upright
    source.write_bytes(data)
    found = read(overlaid(source, tmp_path / 'out', segmenter))[1]
    upright = np.rot90(drawn(0), -1)  # (x, y) -> (-y, x): clockwise
    expected = pictures.overlay(np.ascontiguousarray(upright), segmenter(np.ascontiguousarray(upright)).classes,
                                segmenter.colors[:, ::-1])
    assert found[0].shape == (64, 48, 3) and np.abs(found[0].astype(float) - expected).mean() < 8


@pytest.mark.parametrize('count', [1, 4, 5])
def test_a_video_of_one_frame_and_one_at_a_border(segmenter, tmp_path, count):
    times, frames, _ = read(overlaid(make(tmp_path / 'drive.mp4', range(count)), tmp_path / 'out', segmenter))
    assert len(times) == len(frames) == count


def test_odd_sizes_grow_by_a_pixel(segmenter, tmp_path):
    found = read(overlaid(make(tmp_path / 'drive.mkv', range(2), (37, 51)), tmp_path / 'out', segmenter))[1]
    assert found[0].shape == (38, 52, 3)


def test_no_more_than_a_few_frames_exist_at_once(segmenter, tmp_path, monkeypatch):
    alive, most, whole = weakref.WeakValueDictionary(), [0], video.picture

    def watched(frame):
        image = whole(frame)
        alive[len(most)] = image
        most.append(len(alive))
        return image

    monkeypatch.setattr(video, 'picture', watched)
    overlaid(make(tmp_path / 'drive.mp4', range(30)), tmp_path / 'out', segmenter, every=4)
    assert len(most) == 31 and max(most) <= 5


@pytest.fixture
def cut(tmp_path):
    """A video whose second half is missing, as after a copy that was interrupted."""
    source = make(tmp_path / 'cut.mp4', range(40), sound='aac', movflags='faststart')
    data = source.read_bytes()
    source.write_bytes(data[:len(data) * 6 // 10])
    return source


def test_a_truncated_video_yields_what_it_has(segmenter, cut, tmp_path, caplog):
    with caplog.at_level(logging.WARNING, logger='predict'):
        out = overlaid(cut, tmp_path / 'out', segmenter, every=4)
    line, = [record.getMessage() for record in caplog.records]
    times, _, codecs = read(out)
    assert 10 < len(times) < 36 and set(times) <= {i / 10 for i in range(36)} and 'audio' in codecs
    assert line.startswith(f'{cut}: expected 4.') and line.endswith(f'has the {len(times)} frames that are there')


def test_frames_that_cannot_be_decoded_are_told(segmenter, tmp_path, caplog):
    source = make(tmp_path / 'drive.mp4', range(20))
    with av.open(str(source)) as file:
        packet = [packet for packet in file.demux(video=0) if packet.size][10]
        place, size = packet.pos, packet.size
    data = bytearray(source.read_bytes())
    data[place:place + size] = b'\xff' * size
    source.write_bytes(data)
    with caplog.at_level(logging.WARNING, logger='predict'):
        out = overlaid(source, tmp_path / 'out', segmenter, every=4)
    assert len(read(out)[0]) >= 10
    assert len(caplog.records) == 1 and 'cannot be decoded' in caplog.text


@pytest.mark.parametrize('what,text', [
    ('text', 'expected a video, found 15 bytes that FFmpeg cannot open'),
    ('without an index', r'expected a video, found \d+ bytes that FFmpeg cannot open'),
    ('sound', 'expected a video, found a file without pictures'),
    ('nothing', 'expected a video, found nothing')])
def test_what_is_no_video(tmp_path, what, text):
    path = tmp_path / 'drive.mp4'
    if what == 'text':
        path.write_text('this is a text.')
    elif what == 'without an index':
        data = make(path).read_bytes()
        path.write_bytes(data[:len(data) // 2])
    elif what == 'sound':
        with av.open(str(path), 'w') as out:
            tone = out.add_stream('aac', rate=32000, layout='mono')
            frame = av.AudioFrame.from_ndarray(np.zeros([1, 1024], np.float32), format='fltp', layout='mono')
            frame.sample_rate = 32000
            out.mux(tone.encode(frame))
            out.mux(tone.encode(None))
    with pytest.raises(UserError, match=text):
        VideoPrediction(path, tmp_path / 'out', 1, 0.0, {})
    assert not (tmp_path / 'out').exists()


def test_logits_that_are_not_finite_name_the_frame(segmenter, tmp_path, monkeypatch):
    source, whole = make(tmp_path / 'drive.mp4'), Predictor.original_logits
    calls = []
    monkeypatch.setattr(Predictor, 'original_logits', lambda predictor, sample: whole(predictor, sample) * (
        float('nan') if calls.append(0) or len(calls) == 7 else 1))
    with pytest.raises(UserError, match=r'drive.mp4: frame 6: expected finite logits, found NaN'):
        VideoPrediction(source, tmp_path / 'out', 1, 0.0, {}).run(segmenter, 1)


def test_smoothing_is_an_exponential_average():
    rng = np.random.default_rng(0)
    logits = rng.standard_normal([6, 1, 3, 4, 5]).astype(np.float32)
    smooth, expected = Smoothing(0.75), logits[0].astype(np.float64)
    import paddle
    for i, given in enumerate(logits):
        expected = 0.75 * expected + 0.25 * given if i else expected
        # three roundings in each of six steps, of numbers below 4
        np.testing.assert_allclose(smooth(paddle.to_tensor(given)).numpy(), expected, atol=6 * 3 * 4 * 2**-24)
    same = paddle.to_tensor(logits[0])
    assert Smoothing(0.0)(same) is same


@pytest.mark.parametrize('every,alpha,text', [(0, 0.0, '--every: expected at least 1, found 0'),
                                              (1, 1.0, '--temporal_smoothing: expected at least 0 and less than 1'),
                                              (1, float('nan'), '--temporal_smoothing: expected at least 0')])
def test_settings_that_make_no_sense(tmp_path, every, alpha, text):
    with pytest.raises(UserError, match=text):
        VideoPrediction(make(tmp_path / 'drive.mp4'), tmp_path / 'out', every, alpha, {})


def test_without_the_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'av', None)
    with pytest.raises(UserError, match=r'expected the package av \(PyAV\) for a video, found none; pip install av'):
        video.Video(tmp_path / 'drive.mp4')


def test_predict_writes_a_video_and_two_processes_share_it(tiny, tmp_path, monkeypatch):
    config, weights = tiny
    source = make(tmp_path / 'drive.mp4', range(120), (32, 32))  # segments of 50
    arguments = ['--config', config, '--model_path', weights, '--image_path', source, '--every', '25', '--backend',
                 'paddle', '--save_dir']
    monkeypatch.setattr(video_prediction, 'SEGMENT', 50)
    assert run(predict.main, *arguments, tmp_path / 'one') is None
    launch(2, tmp_path / 'logs', 'predict.py', *arguments, tmp_path / 'two')
    one, two = (read(tmp_path / name / 'added_prediction/drive.mp4') for name in ('one', 'two'))
    assert len(one[0]) == 120 and one[0] == two[0]
    np.testing.assert_array_equal(one[1], two[1])
    before = (tmp_path / 'one/added_prediction/drive.mp4').stat().st_mtime_ns
    assert run(predict.main, *arguments, tmp_path / 'one', '--skip_existing') is None
    assert (tmp_path / 'one/added_prediction/drive.mp4').stat().st_mtime_ns == before
