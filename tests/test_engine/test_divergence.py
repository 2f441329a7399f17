# SPDX-License-Identifier: Apache-2.0
"""What a user reads when a training is lost."""
from __future__ import annotations

from mmseg_mile.engine.snapshot import diverged


def test_message_says_what_when_and_how_to_go_on():
    error = diverged('the loss is nan', 40)
    assert isinstance(error, FloatingPointError)
    text = str(error)
    assert text.startswith('the loss is nan at iteration 40 of this task.')
    for word in ('are kept', 'optimizer.lr', 'clip_grad', '--resume',
                 "changed_settings=['optim_wrapper']"):
        assert word in text
