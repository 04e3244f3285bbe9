from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from unveil.data.png import magnified, png, tiled


@pytest.mark.parametrize("channels", [1, 3])
def test_another_reader_sees_the_same_pixels(channels: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, channels), dtype=np.uint8)
    found = np.asarray(Image.open(io.BytesIO(png(pixels))))
    assert np.array_equal(found.reshape(5, 7, channels), pixels)


def test_tiles_stand_in_reading_order() -> None:
    images = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 3, 1), np.uint8)
    sheet = tiled(images, 3)
    assert sheet.shape == (5, 11, 1)
    assert sheet[0, :, 0].tolist() == [0, 0, 0, 128, 1, 1, 1, 128, 2, 2, 2]
    assert sheet[3, :, 0].tolist() == [3, 3, 3, 128, 4, 4, 4, 128, 128, 128, 128] and (sheet[2] == 128).all()


def test_small_pictures_are_magnified_by_a_whole_number_and_large_ones_left_alone() -> None:
    small = np.arange(2 * 3, dtype=np.uint8).reshape(2, 3, 1)
    large = magnified(small, 10)
    assert large.shape == (6, 9, 1)
    np.testing.assert_array_equal(large[::3, ::3], small)
    np.testing.assert_array_equal(large[2::3, 2::3], small)
    assert magnified(np.zeros((600, 4, 3), np.uint8)).shape == (600, 4, 3)
