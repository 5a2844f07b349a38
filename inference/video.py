"""Video files through PyAV: reading frame by frame, encoding in segments, joining these with the sound.

Times are the file's own, so that a variable frame rate stays as it is. A rotation that the file states is applied to
the frames. Nothing here holds more than a few frames.
"""
from __future__ import annotations  # PyAV is imported when a video is there

import heapq
import json
import math
import os
import secrets
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from common.atomic_io import write_atomically, written_beside
from common.errors import FileError, UserError

if TYPE_CHECKING:
    import av

SUFFIXES = ('.mp4', '.m4v', '.mov', '.avi', '.mkv', '.webm', '.mpg', '.mpeg', '.ts', '.mts', '.wmv', '.flv')
CODECS = ('libx264', 'mpeg4')  # the first that this FFmpeg has
# No frames that refer to later ones: each packet is the frame of its place, so that `join` can give it its time.
OPTIONS = {'libx264': {'crf': '20', 'preset': 'veryfast', 'bf': '0'}, 'mpeg4': {'qscale': '3', 'bf': '0'}}
BT709 = 1  # of FFmpeg's color spaces, transfers and primaries
SLACK = 0.5  # seconds that a whole video may be shorter than its header says


def is_video(path: str | os.PathLike) -> bool:
    """Whether a path has the name of a video."""
    return Path(path).suffix.lower() in SUFFIXES and not os.path.isdir(path)


def library() -> Any:
    """PyAV; UserError if it is not installed."""
    try:
        import av
    except ImportError as error:
        raise UserError('--image_path: expected the package av (PyAV) for a video, found none; pip install av') \
            from error
    av.logging.set_level(av.logging.PANIC)  # FFmpeg's own words, many a frame
    return av


class Video:
    """A video to read once: iterate for (time in units of `time_base`, av.VideoFrame).

    rate: mean frames per second. frames: their number, estimated from the header. duration: seconds in the header, or
    0. After the iteration, fault: '' or what shows that the file was cut off or damaged.
    Raises UserError for a file that FFmpeg cannot open, and one without pictures.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path, self._av = Path(path), library()
        if not self.path.is_file():
            raise FileError(f'--image_path {path}: expected a video, found nothing; check the path')
        try:
            self._container = self._av.open(str(path))
        except self._av.FFmpegError as error:
            raise UserError(f'{path}: expected a video, found {os.path.getsize(path)} bytes that FFmpeg cannot open '
                            f'({error.strerror}); copy it again') from error
        if not self._container.streams.video:
            raise UserError(f'{path}: expected a video, found a file without pictures; check the path')
        self._stream = stream = self._container.streams.video[0]
        stream.thread_type = 'AUTO'
        self.rate = Fraction(stream.average_rate or stream.guessed_rate or 25)
        self.time_base: Fraction = stream.time_base
        self.duration = (self._container.duration or 0) / 1e6
        self.frames = stream.frames or max(1, round(self.duration * self.rate))
        self.fault = ''

    def __iter__(self) -> Iterator[tuple[int, av.VideoFrame]]:
        last: int | None = None
        start, end, damaged = math.inf, 0.0, 0
        step = max(1, round(1 / (self.rate * self.time_base)))
        for packet in self._packets():
            if packet.pts is not None:
                time = float(packet.pts * packet.time_base)
                start = min(start, time)
                end = max(end, time + float((packet.duration or 0) * packet.time_base))
            if packet.stream is not self._stream:
                continue
            try:
                frames = packet.decode()
            except self._av.FFmpegError:
                damaged += 1
                continue
            for frame in frames:
                pts = frame.pts
                if last is not None and (pts is None or pts <= last):  # times must rise
                    pts = last + (step if pts is None else 1)
                last = pts or 0
                yield last, frame
        found = max(end - start, 0.0)
        if found < self.duration - max(SLACK, float(2 / self.rate)):
            self.fault = f'expected {self.duration:.1f} s, found {found:.1f} s'
        elif damaged:
            self.fault = f'expected frames, found {damaged} that cannot be decoded'

    def _packets(self) -> Iterator[av.Packet]:
        packets = self._container.demux()
        while True:
            try:
                packet = next(packets, None)
            except self._av.FFmpegError:  # the file ends within a packet
                return
            if packet is None:
                return
            yield packet

    def close(self) -> None:
        self._container.close()


def picture(frame: av.VideoFrame) -> np.ndarray:
    """uint8 (H, W, 3) BGR, upright."""
    return np.ascontiguousarray(np.rot90(frame.to_ndarray(format='bgr24'), round(frame.rotation / 90) % 4))


class SegmentWriter:
    """A piece of a video, <path>.mp4, with the times of its frames beside it; both are there when it is whole."""

    def __init__(self, path: Path, rate: Fraction) -> None:
        self._path, self._rate, self._times = path, rate, list[int]()
        self._temporary = path.with_name(f'.{path.name}.{secrets.token_hex(4)}')
        self._container: Any = None

    def add(self, time: int, image: np.ndarray) -> None:
        """time: as of Video. image: uint8 (H, W, 3) BGR; an odd side grows by a pixel, as 4:2:0 needs."""
        av = library()
        image = cv2.copyMakeBorder(image, 0, image.shape[0] % 2, 0, image.shape[1] % 2, cv2.BORDER_REPLICATE)
        if self._container is None:
            codec = next(name for name in CODECS if name in av.codecs_available)
            self._container = av.open(str(self._temporary), 'w', format='mp4')
            self._stream = self._container.add_stream(codec, rate=self._rate, options=OPTIONS[codec])
            self._stream.height, self._stream.width = image.shape[:2]
            self._stream.pix_fmt = 'yuv420p'
            context = self._stream.codec_context
            context.colorspace = context.color_primaries = context.color_trc = BT709
        frame = av.VideoFrame.from_ndarray(image, format='bgr24').reformat(format='yuv420p', dst_colorspace='ITU709')
        frame.pts = len(self._times)
        frame.time_base = 1 / self._rate
        self._times.append(time)
        self._container.mux(self._stream.encode(frame))

    def close(self) -> None:
        self._container.mux(self._stream.encode(None))
        self._container.close()
        write_atomically(self._path.with_suffix('.json'), json.dumps(self._times).encode())
        os.replace(self._temporary, self._path)

    def discard(self) -> None:
        if self._container is not None:
            self._container.close()
        self._temporary.unlink(missing_ok=True)


def join(path: str | os.PathLike, segments: Sequence[Path], source: Video) -> str:
    """Write the segments one after the other into a video, atomically, with the times and the sound of `source`.

    Sound that MP4 can hold is copied, other sound becomes AAC. Returns '' or why there is none.
    """
    av, silent = library(), ''
    with written_beside(path) as temporary, av.open(str(source.path)) as sound, \
            av.open(str(temporary), 'w', format='mp4', options={'movflags': 'faststart'}) as out:
        with av.open(str(segments[0])) as first:
            stream = out.add_stream_from_template(first.streams.video[0])
        stream.time_base = source.time_base
        streams: list[Iterator[Any]] = [_pictures(segments, stream, source)]
        for track in sound.streams.audio[:1]:
            try:
                streams.append(_sound(sound, track, out))
            except (av.FFmpegError, ValueError) as error:
                silent = f'{source.path}: expected sound that MP4 can hold, found {track.codec.name} ({error})'
        for packet in heapq.merge(*streams, key=lambda packet: float((packet.dts or 0) * packet.time_base)):
            out.mux_one(packet)
    return silent


def _pictures(segments: Sequence[Path], stream: Any, source: Video) -> Iterator[Any]:
    """The packets of all segments with the times of their frames."""
    step = max(1, round(1 / (source.rate * source.time_base)))
    av = library()
    for path in segments:
        times = json.loads(path.with_suffix('.json').read_bytes())
        with av.open(str(path)) as container:
            packets = (packet for packet in container.demux(video=0) if packet.dts is not None)
            for i, (packet, time) in enumerate(zip(packets, times, strict=True)):
                packet.time_base = source.time_base
                packet.pts = packet.dts = time
                packet.duration = times[i + 1] - time if i + 1 < len(times) else step
                packet.stream = stream
                yield packet


def _sound(container: Any, track: Any, out: Any) -> Iterator[Any]:
    """The packets of a track of sound, for a stream that is added to `out` here, before the first one is asked for."""
    av = library()
    if track.codec.canonical_name in out.supported_codecs and not track.codec.canonical_name.startswith('pcm'):
        copied = out.add_stream_from_template(track)

        def packets() -> Iterator[Any]:
            for packet in container.demux(track):
                if packet.dts is not None:
                    packet.stream = copied
                    yield packet
    else:
        encoder = out.add_stream('aac', rate=track.rate)
        encoder.layout = track.layout
        resampler = av.AudioResampler(format='fltp', layout=track.layout, rate=track.rate)

        def packets() -> Iterator[Any]:
            for frame in container.decode(track):
                for each in resampler.resample(frame):
                    yield from encoder.encode(each)
            yield from encoder.encode(None)
    return _until_damaged(packets())


def _until_damaged(packets: Iterator[Any]) -> Iterator[Any]:
    try:
        yield from packets
    except library().FFmpegError:  # the file was cut off; its pictures say so already
        return
