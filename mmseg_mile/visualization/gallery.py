# SPDX-License-Identifier: Apache-2.0
"""Evaluated images: kept on disk while a row lasts, drawn at its end."""
from __future__ import annotations

import io
import json
import math
import os
from dataclasses import dataclass, field
from logging import Logger
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

import cv2
import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image

from mmseg.structures import SegDataSample
from mmseg_mile.evaluation.domain_iou import DomainIoU
from mmseg_mile.evaluation.routing_log import image_name
from mmseg_mile.structures import Task
from .overlay import (MAX_JPEG_SIZE, OOD_COLOUR, UNLABELLED, Colour,
                      choose_class_colours, class_shares, paint_labels,
                      read_image_for_display)
from .plots import (LETTERS, OUT, RIGHT, STYLE, WRONG, add_title, new_figure,
                    short_name)

# Width of a kept picture in pixels; more would not show in the gallery.
MAX_WIDTH = 640
# What no photograph at this size loses visibly.
JPEG_QUALITY = 90
# Inches.
PICTURE, CAPTION, LEGEND_LINE = 2.7, 0.3, 0.2
FACTS = ('task', 'number', 'file', 'expert', 'ood', 'miou', 'oracle_miou')
TITLES = dict(
    image='Image',
    truth='Ground truth',
    prediction='Prediction',
    oracle='By its own expert')


class LabelMap(NamedTuple):
    """Label map of an image and its label space.

    Args:
        labels (np.ndarray): (H, W) indices, 255 where there is none.
        classes (Sequence[str]): Their names.
        palette (Sequence): One RGB triple per class.
    """
    labels: np.ndarray
    classes: Sequence[str]
    palette: Sequence[Sequence[int]]


@dataclass(frozen=True)
class Panel:
    """One evaluated image with its label maps and its routing.

    Args:
        task (str): Name of the image's task.
        number (int): Its place in the task's evaluation.
        file (str): The image file, as the routing log names it.
        expert (str, optional): Chosen expert; None where there are none.
        ood (bool, optional): Whether the gate found the image
            out-of-distribution; None where it does not say.
        miou (float): mIoU of this image in per cent; NaN if its truth holds
            no class.
        oracle_miou (float): The same with the task's own expert; NaN where
            there is none.
        image (np.ndarray): (H, W, 3) uint8 RGB.
        maps (dict[str, LabelMap]): 'truth', 'prediction', and 'oracle',
            what the task's own expert predicts, where that is another one.
    """
    task: str
    number: int
    file: str
    expert: Optional[str]
    ood: Optional[bool]
    miou: float
    oracle_miou: float
    image: np.ndarray = field(repr=False)
    maps: Dict[str, LabelMap] = field(repr=False)

    @property
    def routing_cost(self) -> float:
        """float: Points of mIoU lost to the routing; NaN if unknown."""
        return self.oracle_miou - self.miou


def make_panel(task: Task,
               number: int,
               sample: SegDataSample,
               logger: Logger,
               oracle: Optional[SegDataSample] = None,
               data_root: str = '') -> Panel:
    """The image, ground truth and predictions of one data sample.

    An image that cannot be shown, such as an array file, is left grey: a
    picture is no reason to end a training.

    Args:
        task (Task): That the image belongs to.
        number (int): Its place in the task's evaluation.
        sample (SegDataSample): As routed.
        logger (Logger): Hears of an image that cannot be shown.
        oracle (SegDataSample, optional): The prediction of the task's own
            expert; ``sample`` itself where that was chosen. Defaults to
            None.
        data_root (str): The file is named relative to it where it lies
            below. Defaults to ''.
    """
    truth = _truth(sample)
    maps = dict(
        truth=LabelMap(truth, task.classes, task.palette),
        prediction=_prediction(task, sample))
    if oracle is not None and oracle is not sample:
        maps['oracle'] = _prediction(task, oracle)
    try:
        image = _read_image(sample, truth.shape)
    except (OSError, ValueError) as error:
        logger.warning(f'an image is left out of the pictures: {error}')
        image = np.full((*truth.shape, 3), 128, np.uint8)
    # The score is that of the full size; only what is shown shrinks.
    return Panel(
        task.name, number, image_name(sample.img_path, data_root),
        sample.get('expert'), sample.get('ood'), image_miou(task, sample),
        math.nan if oracle is None else image_miou(task, oracle),
        _shrink(image, cv2.INTER_AREA), {
            name:
            each._replace(labels=_shrink(each.labels, cv2.INTER_NEAREST))
            for name, each in maps.items()
        })


def image_miou(task: Task, sample: SegDataSample) -> float:
    """mIoU of one image in per cent; NaN if its truth holds no class."""
    predicted = _prediction(task, sample)
    score = DomainIoU(task.classes)
    score.update(predicted.labels, predicted.classes, _truth(sample))
    return score.miou()


def _read_image(sample: SegDataSample, shape: Tuple[int, ...]) -> np.ndarray:
    """The part and size of the image on disk that the labels cover."""
    image = read_image_for_display(sample.img_path)
    # CropColumns notes the columns that it kept, per key of the sample
    columns = sample.get('cropped_columns', {}).get('img')
    if image.shape[:2] != shape and columns is not None:
        image = image[:, columns[0]:columns[1]]
    if image.shape[:2] != shape:
        image = cv2.resize(image, shape[::-1], interpolation=cv2.INTER_AREA)
    return image


def _truth(sample: SegDataSample) -> np.ndarray:
    return sample.gt_sem_seg.data[0].cpu().numpy().astype(np.int16)


def _prediction(task: Task, sample: SegDataSample) -> LabelMap:
    """Labels and their label space, that of the expert."""
    labels = sample.pred_sem_seg.data[0].cpu().numpy().astype(np.int16)
    return LabelMap(labels, tuple(sample.get('classes') or task.classes),
                    sample.get('palette') or task.palette)


def _shrink(picture: np.ndarray, interpolation: int) -> np.ndarray:
    high, wide = picture.shape[:2]
    times = min(MAX_WIDTH / wide, MAX_JPEG_SIZE / high)
    if times >= 1:
        return picture
    size = [max(1, int(n * times)) for n in (wide, high)]
    return cv2.resize(picture, size, interpolation=interpolation)


# -- on disk --------------------------------------------------------------


def panel_path(folder: Path, panel: Panel) -> Path:
    """File of a panel; by their names, those of a task are in order."""
    return folder / panel.task / f'{panel.number:06d}.npz'


def write_panel(folder: Path, panel: Panel) -> Path:
    """Write a panel to its file; a crash leaves no half of one."""
    facts = {key: getattr(panel, key) for key in FACTS}
    facts['spaces'] = {name: each[1:] for name, each in panel.maps.items()}
    arrays: Any = {name: each.labels for name, each in panel.maps.items()}
    image, content = io.BytesIO(), io.BytesIO()
    Image.fromarray(panel.image).save(image, 'JPEG', quality=JPEG_QUALITY)
    arrays['image'] = np.frombuffer(image.getvalue(), np.uint8)
    np.savez_compressed(content, facts=json.dumps(facts), **arrays)
    path = panel_path(folder, panel)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix('.partial')
    partial.write_bytes(content.getvalue())
    os.replace(partial, path)
    return path


def read_panels(folder: Path,
                tasks: Sequence[str],
                logger: Optional[Logger] = None) -> List[Panel]:
    """All panels in a folder, in the order of the tasks.

    Args:
        folder (Path): May be missing.
        tasks (Sequence[str]): Of the stream.
        logger (Logger, optional): Hears of a broken file, which is left
            out: a picture is no reason to end a training. Defaults to None:
            it is an error.

    Raises:
        ValueError: If a file is broken; names it.
    """
    found = []
    for path in (p for t in tasks for p in sorted((folder / t).glob('*.npz'))):
        try:
            found.append(_read_panel(path))
        # what numpy and zipfile raise depends on where a file is broken
        except Exception as error:
            problem = (f'{path} is no whole picture ({error}): restore the '
                       'file, or remove it to go on without it')
            if logger is None:
                raise ValueError(problem) from error
            logger.warning(problem)
    return found


def _read_panel(path: Path) -> Panel:
    with np.load(path) as file:
        facts = json.loads(str(file['facts']))
        maps = {
            name: LabelMap(file[name], *space)
            for name, space in facts.pop('spaces').items()
        }
        image = np.array(Image.open(io.BytesIO(file['image'].tobytes())))
    return Panel(**facts, image=image, maps=maps)


# -- drawn ----------------------------------------------------------------


@rc_context({**STYLE, 'axes.labelsize': 9, 'axes.linewidth': 0.5})
def plot_gallery(panels: Sequence[Panel],
                 title: str,
                 with_oracle: bool = False) -> Figure:
    """One row per panel and a legend of the classes that occur.

    Colours follow class names, so that one class looks the same in every
    picture, whichever task or expert it comes from. Under a prediction
    stands the expert, green where it is the image's own task and red where
    it is not.

    Args:
        panels (Sequence[Panel]): In the order of the rows.
        title (str): Over the figure.
        with_oracle (bool): Whether a column shows what the task's own
            expert predicts, and a caption the points that were lost.
            Defaults to False.
    """
    columns = list(TITLES)[:3 + with_oracle]
    # of all truths first: their colours are those of the datasets
    maps = [p.maps[c] for c in columns for p in panels if c in p.maps]
    colours = choose_class_colours(each[1:] for each in maps)
    heights = [PICTURE * p.image.shape[0] / p.image.shape[1] for p in panels]
    handles = _legend(maps, colours)
    width = 0.4 + len(columns) * PICTURE
    longest = max(len(str(handle.get_label())) for handle in handles)
    per_line = int(width / (0.6 + longest / LETTERS))
    figure = new_figure(
        width, 0.8 + sum(heights) + CAPTION * len(panels) +
        LEGEND_LINE * -(-len(handles) // per_line))
    grid = figure.subplots(
        len(panels),
        len(columns),
        squeeze=False,
        gridspec_kw=dict(height_ratios=heights))
    for row, panel in zip(grid, panels):
        for axes, column in zip(row, columns):
            _draw_picture(axes, panel, column, colours, with_oracle)
        row[0].set_ylabel(short_name(panel.task, 16))
    for axes, column in zip(grid[0], columns):
        axes.set_title(TITLES[column])
    figure.legend(
        handles=handles,
        loc='outside lower center',
        ncols=per_line,
        handlelength=1.2,
        columnspacing=1.4)
    add_title(figure, title)
    return figure


def _draw_picture(axes: Axes, panel: Panel, column: str,
                  colours: Dict[str, Colour], with_oracle: bool) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    picture = panel.image
    if column in panel.maps:
        labels, classes, _ = panel.maps[column]
        picture = paint_labels(labels, classes, colours)
    axes.imshow(picture, aspect='auto', interpolation='antialiased')
    text, colour = _caption(panel, column, with_oracle)
    axes.set_xlabel(text, color=colour, labelpad=2)


def _caption(panel: Panel, column: str, with_oracle: bool) -> Tuple[str, str]:
    """Words below a picture, and their colour."""
    if column == 'truth':
        return '', 'black'
    if column == 'image':
        words = [OUT] if panel.ood else []
        if with_oracle:
            words.append(f'{panel.routing_cost:.1f} points lost')
        return ', '.join(words), OOD_COLOUR
    routed = column == 'prediction'
    miou = panel.miou if routed else panel.oracle_miou
    words = [] if math.isnan(miou) else [f'mIoU {miou:.1f}']
    expert = panel.expert if routed else panel.task
    if expert is None:
        return ', '.join(words), '0.25'
    right = expert == panel.task
    words.insert(0, f'{"✓" if right else "✗"} {short_name(expert)}')
    return ', '.join(words), RIGHT if right else WRONG


def _legend(maps: Sequence[LabelMap], colours: Dict[str,
                                                    Colour]) -> List[Patch]:
    """Colours of the classes that occur."""
    occurring = {
        name
        for each in maps
        for name in class_shares(each.labels, each.classes)
    }
    named = {**colours, 'no label': UNLABELLED}
    return [
        Patch(fc=[part / 255 for part in colour], ec='0.3', lw=0.5,
              label=short_name(name, 16))
        for name, colour in named.items() if name in occurring
    ]  # yapf: disable
