"""Convert weights between this repository, PaddleSeg, NVIDIA's PyTorch original, HRNet's authors and timm.

    python tools/convert_weights.py cityscapes_ocrnet.HRNet_Mscale.pth model.pdparams
    python tools/convert_weights.py model.pdparams nvidia.safetensors --names nvidia

IN is read without torch and without running anything in it: .pdparams, safetensors, or .pth of any torch.save but the
first ones. OUT is .pdparams or .safetensors. Every tensor is accounted for: what is left over or missing is listed, and
nothing is written where a tensor has no place. The last lines say how the source was trained, and which config follows
that.
"""
import argparse
import os
from pathlib import Path

if __name__ == '__main__':
    from shared import repository
    repository.import_from_root()

import numpy as np

from common import cli
from common.atomic_io import sha256_of, write_atomically
from common.errors import FileError, UserError

SUFFIXES = ('.pdparams', '.safetensors')
MAX_CLASSES = 4096  # a file may announce any number, and the network is built for it
SAME = ("RGB in 0..1, mean 0.485 0.456 0.406, std 0.229 0.224 0.225, which are the recipe's, too; batch norm with "
        'epsilon 1e-5')
NVIDIA = (f"NVIDIA's network: {SAME}; train ids of Cityscapes in the usual order; bilinear with align_corners False; "
          'evaluation at scales 0.5, 1, 2, in any order. Evaluate with configs/nvidia_hrnet_ocr_mscale.yml')
HRNET_OCR = (f"HRNet with OCR of HRNet's authors: {SAME}; train ids of Cityscapes in the usual order; bilinear with "
             'align_corners True, unless trained otherwise: set model.align_corners to True')
IMAGENET = f'HRNet trained on ImageNet: {SAME}'


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = cli.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument('source', metavar='IN', help='weights to read: .pdparams, .safetensors or .pth')
    parser.add_argument('target', metavar='OUT', help='file to write: .pdparams or .safetensors; must not exist')
    parser.add_argument('--names', choices=['paddle', 'nvidia'], default='paddle',
                        help="names of the tensors in OUT: this repository's, or those of NVIDIA's HRNet_Mscale")
    parser.add_argument('--backbone', default='HRNet_W48_NV', help='backbone of the network, as in the config')
    cli.add_debug_flag(parser)
    return parser.parse_args(argv)


def convert(state: dict[str, np.ndarray], wanted: dict[str, list[int]],
            names: str) -> tuple[dict[str, np.ndarray], list[str], list[str], list[str]]:
    """(state dict under the wanted names, names that go into others or are dropped, that have no place, are missing).

    wanted: {name: shape} of the MscaleOCRNet's state dict. Raises ValueError for two entries of one meaning.
    """
    from models import weight_names
    from models.weights import HEAD, IMAGENET_HEAD

    if weight_names.is_torchs(state):
        state = weight_names.from_torch(state, wanted)
    elif not any(name in wanted for name in state):
        state = {f'ocrnet.{name}': value for name, value in state.items()}
    state, dropped = weight_names.without_biases(state, wanted)
    if not any(name.startswith(HEAD) for name in state):
        dropped += [name for name in state if name.startswith(IMAGENET_HEAD)]
        state = {name: value for name, value in state.items() if name not in dropped}
    state = {name: state[name] for name in [*(name for name in wanted if name in state), *(
        name for name in state if name not in wanted)]}  # one order, whatever the source has
    unknown = [name for name, value in state.items() if name not in wanted or list(value.shape) != wanted[name]]
    missing = [name for name in wanted if name not in state]
    if names == 'nvidia' and not unknown:
        state = weight_names.to_torch(state)
    return state, dropped, unknown, missing


def _classes(state: dict[str, np.ndarray], source: str) -> int:
    """The number of classes by the bias of the classifier; Cityscapes' where there is none."""
    bias = next((value for name, value in state.items()
                 if name.split('.')[-2:] == ['cls_head', 'bias']), None)
    if bias is None:
        return 19
    if bias.ndim != 1 or not 1 <= bias.size <= MAX_CLASSES:
        raise UserError(f'{source}: expected a classifier of 1 to {MAX_CLASSES} classes, found a bias of shape '
                        f'{list(bias.shape)}; check what the file is')
    return bias.size


def described(names: list[str]) -> str:
    """How a file with these of torch's names was trained."""
    if not any('ocr_distri_head.' in name for name in names):
        return IMAGENET
    return NVIDIA if any('ocr.ocr_distri_head.' in name for name in names) else HRNET_OCR


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    target = Path(args.target)
    if target.suffix not in SUFFIXES:
        raise UserError(f'{target}: expected a name that ends in {" or ".join(SUFFIXES)}, found '
                        f'{target.suffix or "no suffix"}; choose one')
    if target.exists():
        raise FileError(f'{target}: expected a new file, found one that is there; choose another name or delete it')
    cli.start_paddle()
    from models import hrnet, weight_names
    from models.mscale_ocrnet import MscaleOCRNet
    from models.weights import CLASSIFIERS, read

    known = {backbone.__name__: backbone for backbone in hrnet.BACKBONES}
    if args.backbone not in known:
        raise UserError(f'--backbone: expected one of {", ".join(known)}, found {args.backbone}; correct it')
    state = read(args.source)
    classes = _classes(state, args.source)
    model = MscaleOCRNet(classes, known[args.backbone](), [0])
    wanted = {name: list(value.shape) for name, value in model.state_dict().items()}
    source = "torch's" if weight_names.is_torchs(state) else "Paddle's"
    try:
        result, dropped, unknown, missing = convert(state, wanted, args.names)
    except ValueError as error:
        raise UserError(f'{args.source}: expected every tensor once, found {error}; remove one of them') from error
    print(f'{args.source}: {len(state)} tensors under {source} names; {len(unknown)} have no place in MscaleOCRNet on '
          f'{args.backbone}, {len(missing)} of its {len(wanted)} are missing')
    for what, names in (('taken into a batch norm, or dropped with a head for ImageNet', dropped),
                        ('no place', unknown), ('missing', missing)):
        for name in names[:20]:
            print(f'  {what}: {name}')
        if len(names) > 20:
            print(f'  {what}: ... and {len(names) - 20} more')
    if unknown:
        raise UserError(f'{args.source}: expected tensors of MscaleOCRNet on {args.backbone} with {classes} classes, '
                        f'found {len(unknown)} others, listed above; choose another --backbone. Nothing was written')
    write_atomically(target, encoded(result, target.suffix))
    print(f'{target}: {len(result)} tensors, {os.path.getsize(target) / 1e6:.1f} MB, SHA-256 {sha256_of(target)}')
    if missing:
        parts = 'a backbone alone' if any(name.startswith(CLASSIFIERS) for name in missing) else 'no scale attention'
        print(f'{parts}: usable as model.pretrained, not for evaluation')
    if source == "torch's":
        print(described(list(state)))


def encoded(arrays: dict[str, np.ndarray], suffix: str) -> bytes:
    """The bytes of a file with these arrays."""
    if suffix == '.safetensors':
        from safetensors.numpy import save
        return save({name: np.asarray(array, order='C') for name, array in arrays.items()}, {'format': 'pt'})
    import io

    import paddle
    buffer = io.BytesIO()
    tensors = {name: paddle.to_tensor(array) for name, array in arrays.items()}
    for name, tensor in tensors.items():
        tensor.name = name  # written too; Paddle's own counts the tensors of the process
    paddle.save(tensors, buffer)
    return buffer.getvalue()


if __name__ == '__main__':
    cli.run(main)
