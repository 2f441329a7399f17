# SPDX-License-Identifier: Apache-2.0
"""A web page and an endpoint that predict uploaded images."""
from __future__ import annotations

import base64
from typing import Any, Dict, List, Optional, Sequence, Tuple

import cv2
import gradio
from PIL import Image

from .inferencer import MILEInferencer
from .predictions import Prediction

MAX_PIXELS = 50_000_000
# Of a picture; not the one that shares it with a web site.
BUTTONS: Any = ['download', 'fullscreen']
# Seconds between two looks for old uploads, and the age at which they go.
CLEAN_UP = (600, 3600)
ABOUT = """# What do the experts see?
Drop an image: its label map, the expert that drew it, and why that one. It
stays on the machine that runs this page, and is deleted within the hour."""


def build_page(inferencer: MILEInferencer) -> gradio.Blocks:
    """A page around an inferencer, ready to ``launch``.

    Images are predicted one after another. The endpoint ``/predict`` takes a
    file and, if it is to be forced, the name of an expert; it answers
    :func:`prediction_document`. Nothing is loaded from, or told to, other
    machines.

    Args:
        inferencer (MILEInferencer): Predicts.

    Example:
        >>> client = gradio_client.Client('http://127.0.0.1:8000/')
        >>> file = gradio_client.handle_file('image.jpg')
        >>> client.predict(file, api_name='/predict')['expert']
    """

    def show(path: Optional[str], expert: str) -> Tuple[Any, ...]:
        if path is None:
            return None, '', [], None
        found = _predict(inferencer, path, expert)
        words = f'## {found.title}\n\n{found.note}'
        return (inferencer.overlay(found), words, _rows(found),
                Image.fromarray(found.labels))

    def predict(image: gradio.FileData, expert: str = '') -> dict:
        return prediction_document(
            _predict(inferencer,
                     dict(image)['path'], expert))

    one_at_a_time: Dict[str, Any] = dict(
        concurrency_id='model', concurrency_limit=1)
    names = inferencer.expert_names
    with gradio.Blocks(
            title=f'Library of {len(names)} experts',
            analytics_enabled=False,
            delete_cache=CLEAN_UP) as page:
        inputs, outputs = _components(names, inferencer.expert)
        gradio.on([each.change for each in inputs],
                  show,
                  inputs,
                  outputs,
                  api_visibility='private',
                  **one_at_a_time)
        gradio.api(predict, api_name='predict', **one_at_a_time)
    return page


def _components(names: Sequence[str],
                forced: Optional[str]) -> Tuple[List, List]:
    """Inputs and outputs of the page.

    Args:
        names (Sequence[str]): Experts to choose from.
        forced (str, optional): Expert that the server was told to force.
    """
    gate = f'as the server was told: {forced}' if forced else (
        'the gate chooses')
    gradio.Markdown(ABOUT)
    with gradio.Row():
        with gradio.Column():
            # as it is: other modes would be written anew, in eight bits
            image = gradio.Image(
                label='Image',
                type='filepath',
                image_mode=None,
                sources=['upload', 'clipboard'])
            expert = gradio.Dropdown([(gate, ''), *names],
                                     value='',
                                     label='Expert')
            words = gradio.Markdown()
            table = gradio.Dataframe(
                headers=['expert', 'distance', 'weight'],
                label='Distance to each expert, the nearest first')
        with gradio.Column():
            overlay = gradio.Image(
                label='Label map', format='png', buttons=BUTTONS)
            with gradio.Accordion('Label map to save', open=False):
                labels = gradio.Image(
                    label='Indices of the classes',
                    format='png',
                    buttons=BUTTONS)
    return [image, expert], [overlay, words, table, labels]


def prediction_document(prediction: Prediction) -> Dict[str, Any]:
    """Prediction as plain JSON values.

    Returns:
        dict: That of :meth:`Prediction.record`, and ``labels``: the label
        map as a PNG in base64, whose values are indices into ``classes``,
        16 bit of more than 255 classes.
    """
    _, content = cv2.imencode('.png', prediction.labels)
    labels = base64.b64encode(content.tobytes()).decode('ascii')
    return dict(prediction.record(), labels=labels)


def _predict(inferencer: MILEInferencer, path: str, expert: str) -> Prediction:
    """Prediction of an upload; its sender hears why there is none."""
    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(
                    f'the image has more than {MAX_PIXELS // 10**6} million '
                    'pixels: make it smaller first')
        found, = inferencer.stream(path, expert=expert or None)
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise gradio.Error(str(error), print_exception=False) from error
    return found


def _rows(prediction: Prediction) -> List[List[Any]]:
    """Experts whose distance is known, the nearest first."""
    return [[name, f'{distance:.3g}',
             _per_cent(prediction.mixture.get(name))]
            for name, distance in prediction.nearest()]


def _per_cent(weight: Optional[float]) -> str:
    return f'{100 * weight:.0f} %' if weight else ''
