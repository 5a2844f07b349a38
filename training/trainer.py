"""The training loop. PaddleSeg's flags, log line and checkpoint layout; its own loop does not run on Paddle 3."""
import itertools
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from common.errors import UserError
from datasets.sampling import EpochStream
from training import checkpoint, run_log
from training.ema import EMA
from training.gradient_step import GradientStep, freeze_batch_norm, refuse_single_values, running_statistics
from training.loader import HANG_SECONDS, training_batches
from training.signals import StopRequest

logger = logging.getLogger(__name__)

MAX_SKIPPED = 10  # steps in a row that --on_nan skip drops before it gives up


class Trainer:
    """Trains a model; its progress is in `state`, a dict of plain numbers that is saved with each checkpoint.

    dataset: (epoch, index) -> {'img', 'label'}. losses: {'types', 'coef'} as PaddleSeg builds it. batch_size: images
    per process and micro-batch. save_dir: folder of checkpoints, or None to save nothing. evaluate: called as
    evaluate(model in evaluation mode) -> inference.evaluator result, every save_interval iterations and at the end; the
    best model is kept beside the checkpoints. run_log: a training.run_log.RunLog, on the main process only.
    on_nan: 'stop', or 'skip' to drop steps whose loss or gradient is not finite. options: those of the config.
    """

    def __init__(self, model: paddle.nn.Layer, dataset: Any, losses: Mapping[str, Any],
                 optimizer: paddle.optimizer.Optimizer, *, iters: int, batch_size: int,
                 save_dir: str | os.PathLike | None, seed: int = 0, accum_steps: int = 1, precision: str = 'fp32',
                 num_workers: int = 0, log_iters: int = 10, save_interval: int = 1000, keep_checkpoint_max: int = 5,
                 evaluate: Callable[[paddle.nn.Layer], dict[str, Any]] | None = None,
                 run_log: run_log.RunLog | None = None, on_nan: str = 'stop',
                 options: Mapping[str, Any] | None = None) -> None:
        options = options or {}
        self.model, self.dataset, self.optimizer = model, dataset, optimizer
        self.iters, self.batch_size, self.accum_steps, self.num_workers = iters, batch_size, accum_steps, num_workers
        self.save_dir, self.save_interval, self.keep_max = save_dir, save_interval, keep_checkpoint_max
        self.seed, self.log_iters, self.on_nan = seed, log_iters, on_nan
        self.loader_timeout = options.get('loader_timeout', HANG_SECONDS)
        self.evaluate, self.run_log, self.early_stop = evaluate, run_log, options.get('early_stop')
        self.rank, self.world_size = paddle.distributed.get_rank(), paddle.distributed.get_world_size()
        self.images_per_step = batch_size * accum_steps * self.world_size
        if options.get('freeze_batch_norm'):
            freeze_batch_norm(model)
        if batch_size == 1:
            refuse_single_values(model)
        self.gradient_step = GradientStep(model, losses, optimizer, precision)
        self.ema = EMA(model, options['ema']) if options.get('ema') else None
        self.state: dict[str, Any] = {
            'iteration': 0, 'seed': seed, 'images_per_step': self.images_per_step, 'best_miou': -1.0,
            'best_iteration': -1, 'best_ema_miou': -1.0, 'evaluated': True, 'skipped': 0, 'log': None}

    # ---------------------------------------------------------------- resuming

    def resume(self, folder: str | os.PathLike) -> None:
        """Continue from a checkpoint; UserError if its run read the data in another order."""
        found = checkpoint.resume(folder, self.model, self.optimizer, self.ema, self.gradient_step.scaler)
        for key, flag in (('seed', '--seed'), ('images_per_step', '--batch_size x --accum_steps x processes')):
            if found.get(key, self.state[key]) != self.state[key]:
                raise UserError(f'{flag}: expected {found[key]}, with which {folder} was made, found '
                                 f'{self.state[key]}; the order of the data depends on it: continue with the same')
        if found['iteration'] > self.iters:
            raise UserError(f'--resume_model {folder}: expected a checkpoint of at most {self.iters} iterations, '
                             f'found {found["iteration"]}; raise --iters to train on')
        self.state.update({key: value for key, value in found.items() if key != 'sha256'})
        logger.info('continue from %s', folder)

    # ---------------------------------------------------------------- the loop

    def run(self) -> int | None:
        """Train to the end. Returns None, or the exit status after a signal (the step is finished and saved first).

        Raises UserError if loss or gradient is not finite, and the errors of the loader and the checkpoints.
        """
        state, start = self.state, self.state['iteration']
        self._announce(start)
        meter = run_log.Meter(self.images_per_step, state['log'])
        stream = EpochStream(self.dataset, self.batch_size, self.iters * self.accum_steps, start * self.accum_steps,
                             self.rank, self.world_size, self.seed)
        self.model.train()
        with StopRequest() as stop, logging_redirect_tqdm(), self._bar(start) as bar:
            if not state['evaluated']:  # killed between saving and evaluation
                self._make_up_for_evaluation()
            batches = training_batches(self.dataset, stream, self.num_workers, self.loader_timeout)
            meter.restart()
            for iteration in range(start + 1, self.iters + 1):
                if self._early_stop():
                    break
                micro_batches = list(itertools.islice(batches, self.accum_steps))
                meter.data_arrived()
                lr = self.optimizer.get_lr()
                names, values, stopping = self._step(iteration, micro_batches, stop)
                state['iteration'] = iteration
                meter.step_done(names, values)
                bar.update()
                if iteration % self.log_iters == 0 or iteration == self.iters:
                    self._log(iteration, lr, meter.summary(self.iters - iteration))
                if iteration % self.save_interval == 0 or iteration == self.iters or stopping:
                    state['log'] = meter.sums()
                    self._save_and_evaluate(stopping)
                    meter.restart()
                if stopping:
                    logger.info('stopped by signal %d after iteration %d; continue with --resume auto', stop.signum,
                                iteration)
                    return stop.status or 143
            batches.close()
        return None

    def _latest(self) -> Path | None:
        return checkpoint.latest(self.save_dir) if self.save_dir else None

    def _announce(self, start: int) -> None:
        logger.info('train: iterations %d to %d, batch %d x %d accumulated x %d process(es) = %d images per step, %d '
                    'images per epoch', start, self.iters, self.batch_size, self.accum_steps, self.world_size,
                    self.images_per_step, len(self.dataset))
        if self.batch_size * (self.world_size if paddle.get_device() != 'cpu' else 1) == 1:
            logger.warning('batch norm sees one image at a time: its running statistics, and with them the evaluation, '
                           'may be far off; use --batch_size 2 or more, several GPUs, or options.freeze_batch_norm')

    def _bar(self, start: int) -> tqdm:
        return tqdm(total=self.iters, initial=start, desc='train', unit='iter', disable=True if self.rank else None)

    def _step(self, iteration: int, micro_batches: list[dict[str, paddle.Tensor]],
              stop: StopRequest) -> tuple[tuple[str, ...], paddle.Tensor, bool]:
        """One gradient step; returns (names and values as GradientStep.backward, whether all processes stop after it).

        It reads from the device once, whether the step is broken and whether to stop; in fp16 a second time, see
        GradientStep.step.
        """
        paddle.seed(_step_seed(self.seed, iteration, self.rank))
        statistics = running_statistics(self.model) if self.on_nan == 'skip' else []
        before = [value.clone() for value in statistics]
        names, values = self.gradient_step.backward(micro_batches)
        losses, broken, stopping = self._of_all_processes(values[0], self.gradient_step.not_finite(values),
                                                          stop.signum > 0)
        if broken:
            self._not_finite(iteration, micro_batches, losses)
            self.gradient_step.drop()
            for statistic, value in zip(statistics, before):  # batch norm has averaged in the bad batch
                statistic.set_value(value)
        else:
            self.state['skipped'] = 0
            self.gradient_step.step()
            if self.ema:
                self.ema.update(iteration)
        self.optimizer._learning_rate.step()
        return names, values, stopping

    def _not_finite(self, iteration: int, batches: list[dict[str, paddle.Tensor]], losses: np.ndarray) -> None:
        """Log a dropped step, or raise UserError with the files of the broken batches, or with labels out of range.

        losses: of all processes.
        """
        self.gradient_step.check_labels(batches)
        text = f'iteration {iteration}: expected a finite loss and gradient, found {self._broken(iteration, losses)}'
        self.state['skipped'] += 1
        if self.on_nan == 'skip' and self.state['skipped'] < MAX_SKIPPED:
            logger.warning('%s; step dropped (%d in a row)', text, self.state['skipped'])
            return
        good = self._latest()
        tried = f' {MAX_SKIPPED} times in a row' if self.on_nan == 'skip' else ''
        raise UserError(f'{text}{tried}; last good checkpoint: {good or "none"}; look at these files, lower '
                                 'the learning rate, or drop such steps with --on_nan skip')

    def _broken(self, iteration: int, losses: np.ndarray) -> str:
        """Whose loss is not finite, and the files of their batches. Gradients arrive as the mean over the processes, in
        which one that is not finite cannot be traced: then all are named."""
        ranks = np.flatnonzero(~np.isfinite(losses))
        gradient = '' if len(ranks) else ' and a gradient that is not finite'
        names = []
        for rank in ranks if len(ranks) else range(self.world_size):
            files = ', '.join(str(path) for sample in self._samples(iteration, rank) for path in self._files(*sample))
            process = f' of process {rank}' if self.world_size > 1 else ''
            names.append(f'loss {losses[rank]:g}{process}{gradient} with the batch {files}')
        return ' and '.join(names)

    def _samples(self, iteration: int, rank: int) -> list[tuple[int, int]]:
        """(epoch, index) of every sample that a process sees in an iteration."""
        stream = EpochStream(self.dataset, self.batch_size, iteration * self.accum_steps,
                             (iteration - 1) * self.accum_steps, rank, self.world_size, self.seed)
        return [sample for batch in stream for sample in batch]

    def _files(self, epoch: int, index: int) -> Sequence[str | None]:
        return self.dataset.files(epoch, index)[:1] if hasattr(self.dataset, 'files') else [f'sample {index}']

    def _of_all_processes(self, loss: paddle.Tensor, broken: paddle.Tensor,
                          stopping: bool) -> tuple[np.ndarray, bool, bool]:
        """(loss of each process, whether one is broken, whether one stops): they stop, drop and fail together.

        One exchange and one read; a single process reads its loss only if it is broken.
        """
        if self.world_size == 1:
            failed = bool(broken)
            return np.array([float(loss)] if failed else [0.0]), failed, stopping
        table = paddle.zeros([3, self.world_size], 'float32')
        table[:, self.rank] = paddle.stack([loss.astype('float32'), broken.astype('float32'),
                                            paddle.full([], float(stopping))])
        paddle.distributed.all_reduce(table)  # the sum: a value that is not finite stays in its place
        losses, failures, stops = table.numpy()
        return losses, bool(failures.any()), bool(stops.any())

    # ---------------------------------------------------------------- log, save, evaluate

    def _log(self, iteration: int, lr: float, log: Mapping[str, Any]) -> None:
        epoch = (iteration * self.images_per_step - 1) // len(self.dataset) + 1
        logger.info('%s', run_log.log_line(epoch, iteration, self.iters, lr, log))
        if self.run_log:
            self.run_log.train(iteration, epoch, lr, log)

    def _save_and_evaluate(self, stopping: bool) -> None:
        """The checkpoint comes first: after a kill during the evaluation, the resumed run repeats it."""
        due = self.evaluate is not None and not (stopping and self.state['iteration'] % self.save_interval
                                                 and self.state['iteration'] != self.iters)
        self.state['evaluated'] = not due
        folder = None
        if self.save_dir:
            if self.rank == 0:
                folder = checkpoint.save(self.save_dir, self.state['iteration'], self.model, self.optimizer, self.state,
                                         self.keep_max, self.ema, self.gradient_step.scaler)
                logger.info('saved %s', folder)
            self._wait_for_all()
        if due and not stopping:
            self._evaluate(folder)

    def _make_up_for_evaluation(self) -> None:
        """The evaluation that a kill has prevented; only a line in the log if the run continues without evaluations."""
        if self.evaluate:
            self._evaluate(self._latest())
        else:
            logger.info('the evaluation of iteration %d is skipped: it was interrupted, and this run has no --do_eval',
                        self.state['iteration'])

    def _evaluate(self, folder: Path | None) -> None:
        state, iteration = self.state, self.state['iteration']
        if self.world_size > 1:
            for statistic in running_statistics(self.model):  # without SyncBatchNorm every process has its own
                paddle.distributed.broadcast(statistic, 0)
        miou = self._score('', 'best_model', checkpoint.WEIGHTS)
        if miou > state['best_miou']:
            state.update(best_miou=miou, best_iteration=iteration)
        logger.info('[EVAL] The model with the best validation mIoU (%.4f) was saved at iter %d.', state['best_miou'],
                    state['best_iteration'])
        if self.ema:
            with self.ema.applied():
                miou = self._score('ema_', 'ema_best_model', checkpoint.EMA)
            state['best_ema_miou'] = max(miou, state['best_ema_miou'])
        state['evaluated'] = True
        if self.rank == 0 and folder:
            checkpoint.update_state(folder, **{key: state[key] for key in (
                'best_miou', 'best_iteration', 'best_ema_miou', 'evaluated')})
        self._wait_for_all()

    def _score(self, prefix: str, folder: str, name: str) -> float:
        """mIoU of the model with its current weights, which are saved if it is the best one with this prefix."""
        assert self.evaluate is not None  # else nothing calls this
        self.model.eval()
        result = self.evaluate(self.model)
        self.model.train()
        logger.info('[EVAL] iter: %d, %smIoU: %.4f, accuracy: %.4f', self.state['iteration'], prefix, result['miou'],
                    result['accuracy'])
        best = self.state['best_ema_miou' if prefix else 'best_miou']
        if result['miou'] > best and self.rank == 0 and self.save_dir:
            checkpoint.save_best(self.save_dir, self.model, folder, name)
        if self.run_log:
            self.run_log.evaluation(self.state['iteration'], result, prefix)
            self.run_log.images(self.state['iteration'], result.get('pictures', ()))
        return result['miou']

    def _early_stop(self) -> bool:
        """Whether the score has not improved for `early_stop` evaluations."""
        since = self.state['iteration'] - self.state['best_iteration']
        if not self.early_stop or self.state['best_iteration'] < 0 or since < self.early_stop * self.save_interval:
            return False
        logger.info('early stop: no better mIoU in %d evaluations since iteration %d', self.early_stop,
                    self.state['best_iteration'])
        return True

    def _wait_for_all(self) -> None:
        if self.world_size > 1:
            paddle.distributed.barrier()


def _step_seed(seed: int, iteration: int, rank: int) -> int:
    """Distinct for every (iteration, rank) of a run: the state of the random generator need not be saved."""
    return (seed * 1_000_003 + iteration) * 4099 + rank
