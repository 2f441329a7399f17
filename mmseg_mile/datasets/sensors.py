# SPDX-License-Identifier: Apache-2.0
"""Samples of several sensors: one stack of channels for each scene.

A sample is one image of H x W pixels and the channels of all its sensors,
one after the other, so that geometric transforms, batches and sliding
windows treat it as any other image. ``sensor_present`` says by name which
sensors it has; the channels of the others hold zeros that nobody reads.
"""
from __future__ import annotations

import copy
import os.path as osp
import re
from typing import Any, Dict, Iterator, List, Mapping, Sequence, Tuple

import mmcv
import mmengine
import mmengine.fileio as fileio
import numpy as np
from mmcv.transforms import BaseTransform
from mmengine.dataset import Compose

from mmseg.datasets import BaseSegDataset
from mmseg.datasets.transforms import PackSegInputs
from mmseg.registry import DATASETS, TRANSFORMS

_NAME = re.compile(r'\w[\w-]*')


def check_sensor_names(names: Sequence[Any], where: str) -> Tuple[str, ...]:
    """Names of sensors, which also name folders and, joined by +, subsets.

    Raises:
        ValueError: If there is none, or one is no word.
    """
    wrong = [
        name for name in names
        if not isinstance(name, str) or not _NAME.fullmatch(name)
    ]
    if wrong or not names:
        raise ValueError(
            f'{where} must name one or more sensors by letters, digits, "_" '
            f'and "-", got {list(names)}')
    return tuple(names)


@TRANSFORMS.register_module()
class LoadSensors(BaseTransform):
    """Read each sensor with a loader of its own, and stack their channels.

    The first sensor that is there gives the frame; those of another size are
    resized to it. The stack is of 8 bits if all sensors are, or else float32.

    Required Keys:

    - sensor_paths: file of each sensor by its name, None for one that the
      sample lacks

    Added Keys:

    - img: (H, W, sum of the channels)
    - img_shape, ori_shape
    - sensor_present: bool by name, in the order of ``sensors``
    - sensor_channels, sensor_dtypes: by name

    Args:
        sensors (dict[str, dict]): By name, the config of a transform that
            reads ``img_path``, and optionally ``interpolation`` ('nearest'
            for sparse points, 'bilinear' by default), in the order of the
            stack. A loader whose ``num_channels`` says nothing else has 3.

    Raises:
        ValueError: If a name is no word, or, from a call, if a file cannot be
            read or has other channels, or a sample has none of the sensors.
    """

    def __init__(self, sensors: Mapping[str, Mapping[str, Any]]) -> None:
        self.names = check_sensor_names(list(sensors), 'LoadSensors.sensors')
        self.loaders: Dict[str, Any] = {}
        self.interpolation: Dict[str, str] = {}
        for name, given in sensors.items():
            config = dict(given)
            self.interpolation[name] = config.pop('interpolation', 'bilinear')
            self.loaders[name] = TRANSFORMS.build(config)

    def transform(self, results: dict) -> dict:
        """Read the files of ``results['sensor_paths']``."""
        paths = results.get('sensor_paths', {})
        unknown = [name for name in self.names if name not in paths]
        if unknown:
            raise ValueError(
                f'LoadSensors: the dataset has the sensors {list(paths)}, not '
                f'{unknown}: use one such as SensorFolders that declares '
                'them')
        images = {
            name: self._read(name, paths[name])
            for name in self.names if paths[name] is not None
        }
        if not images:
            raise ValueError(f'sample {results.get("img_path")!r} has none of '
                             f'the sensors {list(self.names)}: leave it out '
                             'of the dataset')
        size = next(iter(images.values())).shape[:2]
        exact = all(image.dtype == np.uint8 for image in images.values())
        dtype = np.uint8 if exact else np.float32
        blocks = []
        for name in self.names:
            if name in images:
                block = self._resized(images[name], size, name)
            else:
                block = np.zeros((*size, self._num_channels(name)))
            blocks.append(block.astype(dtype, copy=False))
        results['img'] = np.concatenate(blocks, axis=2)
        results['img_shape'] = results['ori_shape'] = size
        results['sensor_present'] = {n: n in images for n in self.names}
        results['sensor_channels'] = dict(
            zip(self.names, (block.shape[2] for block in blocks)))
        results['sensor_dtypes'] = {n: i.dtype for n, i in images.items()}
        return results

    def _num_channels(self, name: str) -> int:
        return getattr(self.loaders[name], 'num_channels', 3)

    def _read(self, name: str, path: str) -> np.ndarray:
        """(H, W, C) image of a sensor."""
        where = f'sensor {name!r}, file {path!r}'
        try:
            image = self.loaders[name](dict(img_path=path))['img']
        except Exception as error:
            raise ValueError(f'{where}: {type(error).__name__}: '
                             f'{error}') from error
        image = image if image.ndim == 3 else image[:, :, None]
        if image.shape[2] != self._num_channels(name):
            raise ValueError(
                f'{where} was read with {image.shape[2]} channels, its '
                f'{type(self.loaders[name]).__name__} should give '
                f'{self._num_channels(name)}: choose the loader of this '
                'encoding')
        return image

    def _resized(self, image: np.ndarray, size: Tuple[int, int],
                 name: str) -> np.ndarray:
        if image.shape[:2] == size:
            return image
        resized = mmcv.imresize(
            image, size[::-1], interpolation=self.interpolation[name])
        return resized.reshape(*size, image.shape[2])

    def __repr__(self) -> str:
        return f'{type(self).__name__}(sensors={self.loaders})'


def sensor_slices(results: Mapping[str, Any]) -> Iterator[Tuple[str, slice]]:
    """The sensors of a stack that are present, with their channels."""
    start = 0
    for name, channels in results['sensor_channels'].items():
        if results['sensor_present'][name]:
            yield name, slice(start, start + channels)
        start += channels


@TRANSFORMS.register_module()
class OnSensors(BaseTransform):
    """Photometric transforms on the channels of some sensors.

    Each sensor gets them by itself, in the depth that its file has, so that
    ``PhotoMetricDistortion`` meets an 8-bit image of three channels. Values
    that mean a distance or a temperature are better left alone.

    Modified Keys:

    - img

    Args:
        sensors (Sequence[str]): Names of the sensors; absent ones are skipped.
        transforms (list[dict]): Configs of transforms that keep the size.

    Raises:
        ValueError: From a call, if the sample has no such sensor, or a
            transform changes the shape.
    """

    def __init__(self, sensors: Sequence[str],
                 transforms: List[Dict[str, Any]]) -> None:
        self.sensors = check_sensor_names(sensors, 'OnSensors.sensors')
        self.transforms = Compose(transforms)

    def transform(self, results: dict) -> dict:
        """Change ``results['img']``."""
        known = results.get('sensor_channels', {})
        unknown = [name for name in self.sensors if name not in known]
        if unknown:
            raise ValueError(f'OnSensors: the sample has the sensors '
                             f'{list(known)}, not {unknown}: put LoadSensors '
                             'before it, or correct the names')
        for name, channels in sensor_slices(results):
            if name in self.sensors:
                self._change(results, name, channels)
        return results

    def _change(self, results: dict, name: str, channels: slice) -> None:
        stack = results['img']
        dtype = results['sensor_dtypes'][name]
        block = stack[:, :, channels]
        if np.issubdtype(dtype, np.integer):
            block = block.round()
        changed = self.transforms(
            dict(
                img=np.ascontiguousarray(block, dtype),
                img_shape=block.shape[:2]))['img']
        if changed.shape != block.shape:
            raise ValueError(
                f'OnSensors: {self.transforms} turned sensor {name!r} from '
                f'{block.shape} into {changed.shape}: transforms that change '
                'the geometry stand beside it, for all sensors at once')
        if not np.can_cast(changed.dtype, stack.dtype):
            stack = stack.astype(np.float32)
        stack[:, :, channels] = changed
        results['img'] = stack

    def __repr__(self) -> str:
        return (f'{type(self).__name__}(sensors={self.sensors}, '
                f'transforms={self.transforms})')


@TRANSFORMS.register_module()
class DropSensors(BaseTransform):
    """Mark sensors as absent at random, for training.

    Modified Keys:

    - img: zeros in the channels of a dropped sensor
    - sensor_present

    Args:
        prob (float): Probability by which each present sensor is dropped.
        keep (int): Sensors that stay whatever is drawn. Defaults to 1.

    Raises:
        ValueError: If ``prob`` is no probability, or ``keep`` is below 1.
    """

    def __init__(self, prob: float, keep: int = 1) -> None:
        if not 0 <= prob <= 1 or keep < 1:
            raise ValueError('DropSensors needs 0 <= prob <= 1 and keep >= 1, '
                             f'got prob={prob} and keep={keep}')
        self.prob = prob
        self.keep = keep

    def transform(self, results: dict) -> dict:
        """Draw by numpy's generator, which the data loader seeds."""
        present = list(sensor_slices(results))
        order = np.random.permutation(len(present))
        dropped = [
            present[index] for index in order[self.keep:]
            if np.random.random() < self.prob
        ]
        flags = dict(results['sensor_present'])
        for name, channels in dropped:
            flags[name] = False
            results['img'][:, :, channels] = 0
        results['sensor_present'] = flags
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}(prob={self.prob}, keep={self.keep})'


@TRANSFORMS.register_module()
class PackSensorInputs(PackSegInputs):
    """mmseg's ``PackSegInputs``, which also keeps ``sensor_present``.

    Args:
        meta_keys (Sequence[str]): Further keys to keep, beside the default
            ones of ``PackSegInputs``. Defaults to ().
    """

    def __init__(self, meta_keys: Sequence[str] = ()) -> None:
        super().__init__()
        default: Tuple[str, ...] = vars(self)['meta_keys']
        self.meta_keys = (*default, 'sensor_present', *meta_keys)


@DATASETS.register_module()
class SensorFolders(BaseSegDataset):
    """Frames of several sensors in folders of their own.

    ::

        dict(type='SensorFolders',
             data_root='robot',
             sensors=dict(rgb='colour/{}.jpg', thermal='ir/{}_t.png'),
             labels='labels/{}.png',
             ann_file='lists/train.txt',
             metainfo=dict(classes=('ground', 'plant')))

    ``{}`` stands for the name of a frame, which may have folders in it. The
    first sensor is the reference: labels lie in its frame.

    Args:
        data_root (str): Folder that all paths start from.
        sensors (dict[str, str]): Path of each sensor's files, with ``{}``.
        labels (str): Path of the label maps, with ``{}``.
        ann_file (str): Text file with the name of one frame a line. Defaults
            to '': every frame that has a label.
        allow_missing (bool): Whether a frame may lack some of its sensors.
            Defaults to False.
        **kwargs: Other arguments of mmseg's ``BaseSegDataset``.

    Raises:
        ValueError: If a path has no ``{}``, a list or a folder is missing,
            no frame is found, or a frame lacks its label or a sensor.
    """
    #: Where the data come from, and how they lie, for error messages.
    SOURCE = ''
    LAYOUT = ''

    def __init__(self,
                 data_root: str,
                 sensors: Mapping[str, str],
                 labels: str,
                 ann_file: str = '',
                 allow_missing: bool = False,
                 **kwargs: Any) -> None:
        check_sensor_names(list(sensors), 'SensorFolders.sensors')
        for name, path in dict(sensors, labels=labels).items():
            if path.count('{}') != 1:
                raise ValueError(
                    f'{type(self).__name__}: the path of {name!r} must have '
                    "one {} where the name of a frame stands, such as "
                    f"'{name}/{{}}.png', got {path!r}")
        self.sensors = dict(sensors)
        self.labels = labels
        self.allow_missing = allow_missing
        super().__init__(
            data_root=data_root,
            ann_file=ann_file,
            data_prefix=dict(),
            **kwargs)
        self._metainfo['sensors'] = tuple(sensors)

    def load_data_list(self) -> List[dict]:
        """One entry for each frame, with the files of its sensors."""
        files = {
            name: self._files(name, path)
            for name, path in self.sensors.items()
        }
        labels = self._files('labels', self.labels)
        names = self.frame_names(labels)
        if not names:
            raise self.data_error('found no frame')
        return [self._entry(name, files, labels) for name in names]

    def frame_names(self, labels: Mapping[str, str]) -> List[str]:
        """Frames to use, in their order.

        Args:
            labels (Mapping[str, str]): Label maps by the name of the frame.
        """
        if not self.ann_file:
            return sorted(labels)
        if not fileio.exists(self.ann_file, backend_args=self.backend_args):
            raise self.data_error(f'there is no list {self.ann_file!r}; '
                                  'leave ann_file out to use every frame')
        lines = mmengine.list_from_file(
            self.ann_file,
            encoding='utf-8-sig',
            backend_args=self.backend_args)
        return [name for name in map(self.name_in_list, lines) if name]

    def name_in_list(self, line: str) -> str:
        """The name of the frame in a line of ``ann_file``; '' for none."""
        return line.strip()

    def _entry(self, name: str, files: Mapping[str, Mapping[str, str]],
               labels: Mapping[str, str]) -> Dict[str, Any]:
        paths = {sensor: files[sensor].get(name) for sensor in self.sensors}
        lost = [sensor for sensor, path in paths.items() if path is None]
        if name not in labels:
            raise self.data_error(f'frame {name!r} has no label, which would '
                                  f'be {self.labels.format(name)!r}')
        if lost and (not self.allow_missing or len(lost) == len(paths)):
            raise self.data_error(
                f'frame {name!r} lacks the sensors {lost}, for example '
                f'{self.sensors[lost[0]].format(name)!r}. Leave it out by '
                'ann_file, or say allow_missing=True, which needs one sensor '
                'at least')
        return dict(
            img_path=next(path for path in paths.values() if path),
            sensor_paths=copy.copy(paths),
            seg_map_path=labels[name],
            label_map=self.label_map,
            reduce_zero_label=self.reduce_zero_label,
            seg_fields=[])

    def _files(self, name: str, path: str) -> Dict[str, str]:
        """Files that a path with {} stands for, by the name of the frame."""
        start, end = path.split('{}')
        folder = osp.join(self.data_root, osp.dirname(start))
        if not fileio.isdir(folder, backend_args=self.backend_args):
            raise self.data_error(f'the folder {folder!r} of {name!r} is '
                                  'missing')
        head = osp.basename(start)
        return {
            file[len(head):len(file) - len(end)]: osp.join(folder, file)
            for file in fileio.list_dir_or_file(
                folder,
                list_dir=False,
                suffix=end or None,
                recursive=True,
                backend_args=self.backend_args) if file.startswith(head)
        }

    def data_error(self, problem: str) -> ValueError:
        """An error that says what is wrong, and how the data must lie."""
        layout = self.LAYOUT.splitlines() or [
            *self.sensors.values(), self.labels
        ]
        lines = [
            f'{type(self).__name__}: {problem}.',
            f'Expected below data_root={self.data_root!r}:',
            *('    ' + line for line in layout)
        ]
        if self.SOURCE:
            lines.append(f'Where to get the data: {self.SOURCE}')
        return ValueError('\n'.join(lines))
