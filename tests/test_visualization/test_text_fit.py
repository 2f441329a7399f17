# SPDX-License-Identifier: Apache-2.0
import pytest

from mmseg_mile.visualization.text_fit import fit_text, text_inches


def test_width_grows_with_text_size_and_weight() -> None:
    plain = text_inches('night', 9)

    assert text_inches('nightnight', 9) > 1.8 * plain
    assert text_inches('night', 18) == pytest.approx(2 * plain, rel=0.02)
    assert text_inches('night', 9, bold=True) > plain


def test_text_that_fits_stays() -> None:
    assert fit_text('night', 1, 9) == 'night'


def test_long_text_is_cut_to_the_room() -> None:
    cut = fit_text('W' * 40, 1, 9)

    assert cut.endswith('\u2026')
    assert 0.8 < text_inches(cut, 9) <= 1
