from __future__ import annotations

import numpy as np
import torch

from unveil.data.images import Images, batch_of, levels, normalised


def test_levels_and_values_are_inverse() -> None:
    pixels = np.arange(256, dtype=np.uint8).reshape(2, 16, 8, 1)
    x = normalised(pixels)
    assert x.shape == (2, 1, 16, 8) and x.dtype == np.float32
    assert x.min() == -1 and x.max() == 1
    assert np.array_equal(levels(torch.from_numpy(x)).numpy()[:, 0], pixels[..., 0])
    assert levels(torch.tensor([-1.4, 1.2])).tolist() == [0, 255]


def test_a_batch_splits_into_its_images_and_moves_whole() -> None:
    x = [np.full((1, 2, 2), i, np.float32) for i in range(3)]
    batch = batch_of(x, [7, 8, 9], [1, 0, 1], [np.full(4, i) for i in range(3)])
    assert batch.size == 3 and [one.sample_ids_N.tolist() for one in batch.split()] == [[7], [8], [9]]
    for i, one in enumerate(batch.split()):
        assert one.labels_N is not None and one.augmentation_NA is not None
        assert (one.x_NCHW == i).all() and one.labels_N.tolist() == [[1, 0, 1][i]] and (one.augmentation_NA == i).all()
    moved = Images(batch.x_NCHW, batch.sample_ids_N).to("meta")
    assert moved.x_NCHW.is_meta and moved.sample_ids_N.is_meta and moved.labels_N is None
