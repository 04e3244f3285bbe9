from __future__ import annotations

import torch

import unveil.gaussian as gaussian
from unveil.gaussian import DDPM, EDM, Denoiser, heun, karras, to_output


def test_public_names_exist():
    assert all(hasattr(gaussian, name) for name in gaussian.__all__)


def test_parts_work_alone():
    """The example of the package: one's own network and path, a solver and a grid; no recipe and no trainer."""
    path, data = DDPM("cosine"), gaussian.Gaussian(torch.full((3, 4, 4), 0.7), 0.01)

    def network(x, t):
        return to_output("eps", x.double(), data.denoise(x.double(), path.level(t)), path, t).float()

    images = heun(Denoiser(network, predicts="eps", path=path), karras(EDM(), steps=18), shape=(16, 3, 4, 4), seeds=range(16))
    assert images.shape == (16, 3, 4, 4)
    assert abs(float(images.mean()) - 0.7) < 0.02 and abs(float(images.std()) - 0.1) < 0.02
