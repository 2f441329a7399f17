# SPDX-License-Identifier: Apache-2.0
"""Models are built here without a Runner, which would set the scope."""
import pytest
from mmengine.registry import init_default_scope


@pytest.fixture(autouse=True)
def mmseg_scope():
    init_default_scope('mmseg')
