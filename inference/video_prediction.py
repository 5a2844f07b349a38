"""An overlay video of a video, predicted in segments, so that a run that was interrupted continues."""
from __future__ import annotations

import contextlib
import io
import itertools
import logging
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from tqdm import tqdm

from common.atomic_io import FolderLock, write_atomically
from common.errors import UserError
from inference import maps, pictures, run_settings, video
from inference.prefetch import prefetch
from inference.processes import gather
from inference.segmenter import Segmenter

logger = logging.getLogger('predict')

SEGMENT = 50  # frames of a segment, about: what an interruption costs


class Smoothing:
    """Exponential moving average of the logits over the predicted frames: alpha * average + (1 - alpha) * logits.

    alpha: in [0, 1); 0 is no smoothing. Moving things leave a trail, and a cut in the film takes about 1 / (1 - alpha)
    frames to be forgotten.
    """

    def __init__(self, alpha: float) -> None:
        if not 0 <= alpha < 1:
            raise UserError(f'--temporal_smoothing: expected at least 0 and less than 1, found {alpha}; correct it')
        self.alpha = alpha
        self.average: np.ndarray = np.zeros(0, np.float32)

    def __call__(self, logits: paddle.Tensor) -> paddle.Tensor:
        """float32 (1, K, H, W) -> the average with the frames before, which becomes the new one."""
        if not self.alpha:
            return logits
        new = logits.numpy()
        if self.average.size:
            new = np.float32(self.alpha) * self.average + np.float32(1 - self.alpha) * new
        self.average = new
        return paddle.to_tensor(new)


class VideoPrediction:
    """A video as added_prediction/<name>.mp4 in save_dir, with the same size, times and sound.

    every: predict one frame of so many; the others are shown with the prediction of the one before. smoothing: alpha of
    Smoothing. Segments wait in the folder <name>.mp4.parts; a run that was interrupted continues after the last one,
    with the same `settings`. Several processes share the segments, unless the logits are smoothed.
    """

    def __init__(self, path: str | os.PathLike, save_dir: str | os.PathLike, every: int, smoothing: float,
                 settings: Mapping[str, Any], skip_existing: bool = False) -> None:
        if every < 1:
            raise UserError(f'--every: expected at least 1, found {every}; correct it')
        self.video, self.every, self.smoothing = video.Video(path), every, Smoothing(smoothing)
        self.length = every * max(1, SEGMENT // every)
        self.out = Path(save_dir) / 'added_prediction' / f'{Path(path).stem}.mp4'
        self.parts = self.out.with_name(f'{self.out.name}.parts')
        self.is_done = skip_existing and self.out.is_file()
        self.settings = {**settings, 'video_bytes': os.path.getsize(path), 'every': every, 'smoothing': smoothing,
                         'segment': self.length}

    def run(self, segmenter: Segmenter, num_workers: int) -> tuple[list[str], str]:
        """([], a line that says what was done). UserError for a video without a frame."""
        if self.is_done:
            return [], f'{self.out} is there already'
        rank, processes = paddle.distributed.get_rank(), paddle.distributed.get_world_size()
        if self.smoothing.alpha:
            rank, processes = (0, 1) if rank == 0 else (1, 1)  # the main process alone: one frame needs the last
        main = paddle.distributed.get_rank() == 0
        with FolderLock(self.parts, '--save_dir') if main else contextlib.nullcontext():
            if main:
                run_settings.keep(self.parts, self.settings, f'--image_path {self.video.path}')
            gather(None)
            frames = self._predict(segmenter, num_workers, rank, processes, main)
            gather(None)
            if main:
                self._finish(frames)
        gather(None)
        return [], f'predicted {frames} frames; video in {self.out}'

    def _predict(self, segmenter: Segmenter, num_workers: int, rank: int, processes: int, main: bool) -> int:
        """Write this process's segments that are not there yet. Returns the number of frames of the whole video."""
        count = 0
        with tqdm(total=self.video.frames, desc='predict', unit='frame', disable=None if main else True) as bar:
            numbered = itertools.groupby(enumerate(self.video), key=lambda item: item[0] // self.length)
            for segment, frames in numbered:
                path = self._segment(segment)
                if path.is_file() or segment % processes != rank:
                    skipped = sum(1 for _ in frames)
                    if not bar.disable:
                        bar.initial += skipped  # they say nothing about the time that is left
                    bar.update(skipped)
                    count += skipped
                    continue
                self._recall(segment)
                for _ in self._write(path, segmenter, frames, num_workers, segment + 1):
                    bar.update(1)
                    count += 1
            bar.total = count
        return count

    def _write(self, path: Path, segmenter: Segmenter, frames: Iterable[tuple[int, tuple[int, Any]]],
               num_workers: int, following: int) -> Iterator[None]:
        """Predict and write a segment, frame by frame."""
        def load(item: tuple[int, tuple[int, Any]]) -> tuple[np.ndarray, Any]:
            image = video.picture(item[1][1])
            return segmenter.load_bgr(image) if item[0] % self.every == 0 else (image, None)

        writer = video.SegmentWriter(path, self.video.rate)
        try:
            for (index, (time, _)), loaded, error in prefetch(load, frames, num_workers):
                if error is not None:
                    raise error
                image, sample = loaded
                if sample is not None:
                    logits = self.smoothing(segmenter.predictor.original_logits(sample))
                    try:
                        maps.check_finite(logits)
                    except UserError as fault:
                        raise UserError(f'{self.video.path}: frame {index}: {fault}') from fault
                    train_ids = logits.argmax(axis=1)[0].numpy().astype(np.uint8)
                writer.add(time, pictures.overlay(image, train_ids, segmenter.colors))
                yield
            if self.smoothing.alpha:  # before the segment: what follows a segment can always be continued
                buffer = io.BytesIO()
                np.save(buffer, self.smoothing.average)
                write_atomically(self._average(following), buffer.getvalue())
            writer.close()
            self._average(following - 1).unlink(missing_ok=True)
        finally:
            writer.discard()

    def _recall(self, segment: int) -> None:
        """Continue the average of the segment before, of this or an earlier run."""
        if self.smoothing.alpha and segment:
            self.smoothing.average = np.load(self._average(segment))

    def _finish(self, frames: int) -> None:
        segments = [self._segment(i) for i in range(-(-frames // self.length))]
        if not segments:
            raise UserError(f'{self.video.path}: expected at least one frame, found none that can be decoded; copy it '
                            'again')
        silent = video.join(self.out, segments, self.video)
        if self.video.fault:
            logger.warning('%s: %s; %s has the %d frames that are there', self.video.path, self.video.fault, self.out,
                           frames)
        if silent:
            logger.warning('%s; %s has none', silent, self.out)
        shutil.rmtree(self.parts)

    def _segment(self, index: int) -> Path:
        return self.parts / f'{index:06}.mp4'

    def _average(self, index: int) -> Path:
        return self.parts / f'{index:06}.npy'
