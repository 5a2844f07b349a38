"""Made-up data for tests/zoo.py, in the folder layout of each of PaddleSeg's datasets; see that dataset's class.

Cityscapes is drawn by tools/make_toy_cityscapes.py. Images of the others are noise around the colour of their labels,
which are blocks of all classes.
"""
import cv2
import numpy as np

SIZE = (96, 128)  # (H, W) of an image
IMAGES = 2  # of every split
CLASSES = {'ADE20K': 150, 'PascalVOC': 21, 'PascalContext': 60, 'COCOStuff': 171}
# Where each of the datasets of a list file has its lists, by mode, and what separates the two names.
LISTS = {'OpticDiscSeg': ('{}_list.txt', ' '), 'PPHumanSeg14K': ('{}.txt', ' '), 'CHASEDB1': ('{}_list.txt', ' '),
         'DRIVE': ('{}_list.txt', ' '), 'HRF': ('{}_list.txt', ' '), 'STARE': ('{}_list.txt', ' '),
         'MiniDeepGlobeRoadExtraction': ('{}.txt', '|')}


class Data:
    """Datasets in a folder, each made when it is first asked for."""

    def __init__(self, folder):
        self.folder = folder

    def of(self, dic):
        """({section: {key: value to override}}, an image) for the datasets of a resolved config."""
        roots, image = {}, ''
        for section in ('train_dataset', 'val_dataset'):
            if section in dic:
                roots[section], found = self._section(dic[section])
                image = image or found
        return roots, image

    def _section(self, cfg):
        name = cfg['type']
        make = getattr(self, f'_{name.lower()}', None)
        if name == 'Dataset':
            return self._lists_of(cfg)
        root = self.folder / name.lower()
        if name in LISTS:
            return {'dataset_root': str(root)}, self._listed(root, 2, *LISTS[name])
        return make(root) if make else ({'dataset_root': str(root)}, '')

    def _cityscapes(self, root):
        from tools import convert_cityscapes
        from tools.make_toy_cityscapes import make_toy

        root = self.folder / 'cityscapes'
        if make_toy(root, SIZE, IMAGES, IMAGES, 0, seed=3):
            convert_cityscapes.main(['--cityscapes_path', str(root), '--num_workers', '1'])
        return {'dataset_root': str(root)}, next((root / 'leftImg8bit/val').rglob('*.png'))

    def _lists_of(self, cfg):
        classes = cfg.get('num_classes', 2)
        root = self.folder / f'lists_{classes}'
        image = self._listed(root, classes, '{}.txt', ' ')
        mode = cfg.get('mode', 'train')
        return {'dataset_root': str(root), f'{mode}_path': str(root / f'{mode}.txt')}, image

    def _listed(self, root, classes, lists, separator):
        """images/*.jpg, labels/*.png and one list for each mode."""
        for split in ('train', 'val', 'test'):
            names = [f'{split}{i}' for i in range(IMAGES)]
            for name in names:
                write(root / 'images' / f'{name}.jpg', root / 'labels' / f'{name}.png', classes)
            (root / lists.format(split)).write_text(''.join(
                f'images/{name}.jpg{separator}labels/{name}.png\n' for name in names))
        return root / 'images/val0.jpg'

    def _ade20k(self, root):
        for split in ('training', 'validation'):
            for i in range(IMAGES):
                write(root / f'images/{split}/{i}.jpg', root / f'annotations/{split}/{i}.png', CLASSES['ADE20K'], 1)
        return {'dataset_root': str(root)}, root / 'images/validation/0.jpg'

    def _pascalvoc(self, root):
        base = root / 'VOC2012'
        for split in ('train', 'val', 'aug'):
            names = [f'{split}{i}' for i in range(IMAGES)]
            labels = 'SegmentationClassAug' if split == 'aug' else 'SegmentationClass'
            for name in names:
                write(base / f'JPEGImages/{name}.jpg', base / f'{labels}/{name}.png', CLASSES['PascalVOC'])
            path = base / f'ImageSets/Segmentation/{split}.txt'
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text('\n'.join(names) + '\n')
        return {'dataset_root': str(root)}, base / 'JPEGImages/val0.jpg'

    def _eg1800(self, root):
        for split in ('train', 'test'):
            names = [f'{split}{i}.png' for i in range(IMAGES)]
            for name in names:
                write(root / 'Images' / name, root / 'Labels' / name, 2)
            (root / f'eg1800_{split}.txt').write_text('\n'.join(names) + '\n')
        return {'dataset_root': str(root)}, root / 'Images/test0.png'

    def _supervisely(self, root):
        for split in ('train', 'test'):
            lines = []
            for i in range(IMAGES):
                write(root / f'faces/img/{split}{i}.png', root / f'faces/ann/{split}{i}.png', 2)
                lines.append(f'{root.name}/faces/img/{split}{i}.png\n')
            (root / f'supervisely_face_{split}_easy.txt').write_text(''.join(lines))
        return {'dataset_root': str(root)}, root / 'faces/img/test0.png'

    def _pssldataset(self, root):
        lines = []
        for i in range(IMAGES):
            name = f'train/n01440764/n01440764_{i}.JPEG'
            write(root / 'imagenet' / name, root / 'unused.png', 2)
            path = root / 'pssl' / f'{name}_eiseg.npz'
            path.parent.mkdir(parents=True, exist_ok=True)
            np.savez(path, blocks(2, 0).astype(np.int64))
            lines.append(f'{name}_eiseg.npz\n')
        (root / 'pssl/train.txt').write_text(''.join(lines))
        (root / 'pssl/imagenet_lsvrc_2015_synsets.txt').write_text('n01440764\n')
        return {'imagenet_root': str(root / 'imagenet'), 'pssl_root': str(root / 'pssl')}, ''


def blocks(classes, first):
    """uint8 labels (H, W): blocks of first .. first + classes - 1."""
    rows, columns = np.indices(SIZE) // 8
    return ((rows * 7 + columns * 3) % classes + first).astype(np.uint8)


def write(image, label, classes, first=0):
    if image.exists():
        return
    for path in (image, label):
        path.parent.mkdir(parents=True, exist_ok=True)
    ids = blocks(classes, first)
    noise = np.random.default_rng(len(image.name)).integers(0, 60, (*SIZE, 3))
    cv2.imwrite(str(label), ids)
    cv2.imwrite(str(image), np.uint8((ids[..., None] * np.array([37, 91, 151])) % 190 + noise))
