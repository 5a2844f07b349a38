"""The training loop. PaddleSeg's flags, log line and checkpoint layout; its own loop does not run on Paddle 3."""
import logging
import math
import time

import paddle
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from engine import checkpoint, registry
from engine.loader import training_batches

logger = logging.getLogger(__name__)


def train(model, dataset, losses, optimizer, *, iters, batch_size, save_dir, seed=0, num_workers=0, log_iters=10,
          save_interval=1000, keep_checkpoint_max=5, evaluate=None, use_vdl=False, resumed=None):
    """Train `model` from iteration resumed['iteration'] (0 when resumed is None) to `iters`.

    dataset: (epoch, index) -> {'img', 'label'}. losses: {'types', 'coef'} as PaddleSeg builds it. batch_size: per
    process. evaluate: called as evaluate(model in evaluation mode) -> engine.evaluator result, every save_interval
    iterations and at the end; the best model is kept beside the checkpoints. Dropout and data order depend on
    (seed, iteration) alone, so a resumed run continues as the uninterrupted one would have.
    Raises FloatingPointError when the loss is not finite.
    """
    rank, world_size = paddle.distributed.get_rank(), paddle.distributed.get_world_size()
    state = {'iteration': 0, 'best_miou': -1.0, 'best_iteration': -1, **(resumed or {})}
    start = state['iteration']
    parallel = paddle.DataParallel(model) if world_size > 1 else model
    stream = registry.EpochStream(dataset, batch_size, iters, start, rank, world_size, seed)
    writer = _scalar_writer(save_dir) if use_vdl and rank == 0 else None
    meter = _Meter(batch_size * world_size)
    logger.info('train: iterations %d to %d, batch %d x %d process(es) = %d images, %d images per epoch',
                start, iters, batch_size, world_size, batch_size * world_size, len(dataset))
    if batch_size * (world_size if paddle.get_device() != 'cpu' else 1) == 1:
        logger.warning('batch norm sees one image per step: its running statistics, and with them the evaluation, may '
                       'be far off; use --batch_size 2 or more, or several GPUs')

    model.train()
    with logging_redirect_tqdm(), tqdm(total=iters, initial=start, desc='train', unit='iter',
                                       disable=True if rank else None) as bar:
        for iteration, batch in enumerate(training_batches(dataset, stream, num_workers), start + 1):
            # ---------------------------------------------------------------- one step
            meter.data_arrived()
            paddle.seed(_step_seed(seed, iteration, rank))
            total, parts = registry.weighted_losses(parallel(batch['img']), batch['label'], losses)
            total.backward()
            optimizer.step()
            optimizer.clear_grad()
            lr = optimizer.get_lr()
            optimizer._learning_rate.step()
            value = float(total)
            if not math.isfinite(value):
                raise FloatingPointError(f'the loss is {value} at iteration {iteration}; lower the learning rate')
            meter.step_done(value, {name: float(part) for name, part in parts.items()})
            bar.update()

            # ---------------------------------------------------------------- log
            if iteration % log_iters == 0 or iteration == iters:
                log = meter.summary(iters - iteration)
                epoch = (iteration * batch_size * world_size - 1) // len(dataset) + 1
                logger.info('[TRAIN] epoch: %d, iter: %d/%d, loss: %.4f, lr: %.6f, batch_cost: %.4f, '
                            'reader_cost: %.5f, ips: %.4f samples/sec | ETA %s', epoch, iteration, iters,
                            log['loss'], lr, log['batch_cost'], log['reader_cost'], log['ips'], log['eta'])
                if writer:
                    for name in ('loss', 'batch_cost', 'reader_cost', 'ips'):
                        writer.add_scalar(f'Train/{name}', log[name], iteration)
                    for name, part in log['parts'].items():
                        writer.add_scalar(f'Train/{name}', part, iteration)
                    writer.add_scalar('Train/lr', lr, iteration)

            # ---------------------------------------------------------------- evaluate and save
            if iteration % save_interval == 0 or iteration == iters:
                if evaluate is not None:
                    _evaluate(evaluate, model, iteration, state, save_dir, writer, rank)
                if rank == 0:
                    folder = checkpoint.save(save_dir, iteration, model, optimizer, state, keep_checkpoint_max)
                    logger.info('saved %s', folder)
                if world_size > 1:
                    paddle.distributed.barrier()
                meter.restart()
    if writer:
        writer.close()
    return state


def _evaluate(evaluate, model, iteration, state, save_dir, writer, rank):
    if paddle.distributed.get_world_size() > 1:
        for statistics in model.buffers():  # without SyncBatchNorm (on CPUs) every process has its own
            paddle.distributed.broadcast(statistics, 0)
    model.eval()
    result = evaluate(model)
    model.train()
    logger.info('[EVAL] iter: %d, mIoU: %.4f, accuracy: %.4f', iteration, result['miou'], result['accuracy'])
    if result['miou'] > state['best_miou']:
        state.update(best_miou=result['miou'], best_iteration=iteration)
        if rank == 0:
            checkpoint.save_best(save_dir, model)
    logger.info('[EVAL] The model with the best validation mIoU (%.4f) was saved at iter %d.',
                state['best_miou'], state['best_iteration'])
    if writer:
        writer.add_scalar('Evaluate/mIoU', result['miou'], iteration)
        writer.add_scalar('Evaluate/Acc', result['accuracy'], iteration)


def _step_seed(seed, iteration, rank):
    """Distinct for every (iteration, rank) of a run: the state of the random generator need not be saved."""
    return (seed * 1_000_003 + iteration) * 4099 + rank


def _scalar_writer(save_dir):
    from visualdl import LogWriter  # takes a second and a dozen packages; only for those who ask for curves

    return LogWriter(str(save_dir))


class _Meter:
    """Averages since the last log line: loss and its parts, seconds per iteration, seconds spent waiting for data."""

    def __init__(self, images_per_step):
        self._images = images_per_step
        self._clear()
        self.restart()

    def _clear(self):
        self._steps, self._loss, self._parts, self._batch, self._reader = 0, 0.0, {}, 0.0, 0.0

    def restart(self):
        """Do not count what happened since the last step (evaluation, saving)."""
        self._mark = time.perf_counter()

    def data_arrived(self):
        self._waited = time.perf_counter() - self._mark

    def step_done(self, loss, parts):
        now = time.perf_counter()
        self._steps += 1
        self._loss += loss
        self._batch += now - self._mark
        self._reader += self._waited
        self._mark = now
        for name, value in parts.items():
            self._parts[name] = self._parts.get(name, 0.0) + value

    def summary(self, steps_left):
        n = self._steps
        batch = self._batch / n
        seconds = int(batch * steps_left)
        log = {'loss': self._loss / n, 'parts': {name: value / n for name, value in self._parts.items()},
               'batch_cost': batch, 'reader_cost': self._reader / n, 'ips': self._images / batch,
               'eta': f'{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}'}
        self._clear()
        return log
