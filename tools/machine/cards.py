"""Which batch and precision fit a GPU that is not there: check_machine.py --card, from tools.machine.memory_trace.
"""
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from common.errors import UserError
from tools.machine import checks
from tools.machine.advice import BATCHES, CONTEXT_GB, SHARE
from tools.machine.rows import GB, PASSED, Settings

SIZES = (192, 384), (256, 512)  # (H, W) of the steps; at smaller ones, padding has a part in the coarsest branch
WORKSPACE_GB = 0.5  # that cuDNN may take for a convolution, Paddle's FLAGS_conv_workspace_size_limit
WORDS = {'memory': 'step', 'memory recompute': 'step with --recompute', 'memory inference': 'inference'}


@dataclass(frozen=True)
class Need:
    """Bytes of a configuration: fixed + images * each."""
    flags: str
    fixed: float
    each: float

    def peak_gb(self, images: int) -> float:
        return (self.fixed + images * self.each) / GB

    def batch_for(self, room_gb: float) -> int:
        """The largest of BATCHES that fits; 0 if none does."""
        return next((batch for batch in BATCHES if self.peak_gb(batch) <= room_gb), 0)


def room_gb(card_gb: float) -> float:
    """What Paddle can give to tensors of a card's memory, in GiB."""
    return card_gb * SHARE - CONTEXT_GB - WORKSPACE_GB


def training_needs(plain: Sequence[dict[str, float]], recompute: Sequence[dict[str, float]],
                   pixels: Sequence[int], crop: int) -> list[Need]:
    """Of each precision, without and with recomputation. plain, recompute: what was traced at these numbers of pixels.

    crop: pixels. A step takes most either in the losses, beside what is kept for the backward pass, or in the network's
    backward pass. In fp16 and bf16, what is kept is a mix of 16 and 32 bits, and so is the rest of the network; losses
    are as in fp32. Recomputation keeps less, in the same mix.
    """
    fixed, kept, mixed = (_line(plain, key, pixels) for key in ('fixed', 'kept', 'kept_mixed'))
    base, rounded, share = fixed[0], plain[-1]['rounded'], mixed[1] / kept[1]
    needs = []
    losses = _line(plain, 'losses', pixels)[1] - kept[1]  # what they take by themselves
    for found, flag in ((plain, ''), (recompute, ' --recompute')):
        network, beside = (_line(found, key, pixels)[1] for key in ('network', 'losses'))
        needs += [Need(f'--precision fp32{flag}', base, crop * max(network, beside)),
                  Need(f'--precision fp16 or bf16{flag}', base + rounded,
                       crop * max(share * network, share * (beside - losses) + losses))]
    return needs


def _line(found: Sequence[dict[str, float]], key: str, pixels: Sequence[int]) -> tuple[float, float]:
    """(constant, per pixel) of the line through two values."""
    slope = (found[1][key] - found[0][key]) / (pixels[1] - pixels[0])
    return found[0][key] - slope * pixels[0], slope


def trace(settings: Settings, say: Callable[[str], None]) -> dict[str, list[dict[str, float]]]:
    """{check: its data at each of SIZES}, each in a process of its own. UserError if one fails."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in WORDS}
    for name in WORDS:
        for height, width in SIZES:
            say(f'traced: {WORDS[name]}, {height}x{width}')
            replace(settings, size=(height, width), device='cpu').save()
            row = checks.run(name, replace(settings, device='cpu'))[-1]
            if row.status != PASSED:
                raise UserError(f'--card: expected a {WORDS[name]} at {height}x{width} to run here, found: '
                                f'{row.reason}; see python tools/check_machine.py')
            found[name].append(row.data)
    return found


def lines(settings: Settings, found: dict[str, list[dict[str, float]]], cards: Sequence[float]) -> list[str]:
    """The tables for cards of so many GB."""
    pixels = [height * width for height, width in SIZES]
    height, width = settings.size
    needs = training_needs(found['memory'], found['memory recompute'], pixels, height * width)
    result = [_row('GiB of one training step; images per GPU:', [f'{batch}' for batch in reversed(BATCHES)])]
    result += [_row(need.flags, [f'{need.peak_gb(batch):.1f}' for batch in reversed(BATCHES)]) for need in needs]
    rooms = list(map(room_gb, cards))
    result += ['', _row('largest batch on a card of', [f'{card:g} GB' for card in cards])]
    result += [_row(need.flags, [str(need.batch_for(room) or '-') for room in rooms]) for need in needs]
    result += ['', _row('inference in fp32, GiB of one image, and whether it fits', [])]
    for form, key in (('each scale at once', 'peak'), ('in strips', 'peak_strips')):
        gb = Need(form, *_line(found['memory inference'], key, pixels)).peak_gb(height * width)
        result.append(_row(f'{form}: {gb:.1f}', ['yes' if gb <= room else '-' for room in rooms]))
    return result


def _row(name: str, cells: Sequence[str]) -> str:
    return f'{name:44}' + ''.join(f'{cell:>8}' for cell in cells)
