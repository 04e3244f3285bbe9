from __future__ import annotations

import pytest
import torch

from unveil.gaussian.denoiser import Denoiser
from unveil.gaussian.level import Level
from unveil.gaussian.preconditioning import PRECONDITIONINGS, EDMPreconditioning, IDDPMPreconditioning, VPPreconditioning


def noise_levels(arrays, name):
    """What the reference evaluated at: its iDDPM wrapper rounds to its own float32 table, which is off by up to 5e-4."""
    used = arrays[f"outputs.{name}.sigma_used"]
    if name != "iddpm":
        return used
    # it rounds what is nearest to 0 to 0, a level with step -1, at which nothing was trained: ours stays at the last one
    ours = IDDPMPreconditioning().nearest(arrays["inputs.sigma"])
    torch.testing.assert_close(ours[1:], used[1:], rtol=1e-3, atol=0)
    assert used[0] == 0 and ours[0] == IDDPMPreconditioning().levels[-2]
    return ours


@pytest.mark.parametrize("name", PRECONDITIONINGS)
def test_golden_table_1(golden, name):
    """EDM's four wrappers. The reference computes in float32: 2e-6; its VP time loses digits to cancellation: 1e-3 absolute."""
    arrays, _ = golden("edm_precond")
    rows = slice(1, None) if name == "iddpm" else slice(None)
    scalings = PRECONDITIONINGS[name](0.5).scalings(noise_levels(arrays, name))
    for ours, theirs in zip(scalings, ("c_skip", "c_out", "c_in", "c_noise"), strict=True):
        expected = arrays[f"outputs.{name}.{theirs}"].double()
        if theirs == "c_noise" and name in ("vp", "iddpm"):
            torch.testing.assert_close(ours[rows], expected[rows], rtol=0, atol=1e-3 if name == "vp" else 0)
        else:
            torch.testing.assert_close(ours[rows], expected[rows], rtol=1e-3 if name == "iddpm" else 2e-6, atol=2e-6)


@pytest.mark.parametrize("name", PRECONDITIONINGS)
def test_golden_denoised(golden, name):
    """D of the whole wrapper around a fixed output."""
    arrays, _ = golden("edm_precond")
    n = noise_levels(arrays, name)
    denoiser = Denoiser(lambda x, noise: arrays["inputs.F"], "F", preconditioning=name)
    denoised = denoiser(arrays["inputs.x"], Level(torch.ones_like(n), n))
    expected = arrays[f"outputs.{name}.D_x"].double()
    rows = slice(1, None) if name == "iddpm" else slice(None)
    tolerance = (1e-3 if name == "iddpm" else 5e-6) * float(expected.abs().max())
    torch.testing.assert_close(denoised[rows], expected[rows], rtol=0, atol=tolerance)


def test_golden_iddpm_levels(golden):
    """u_j; the reference sums them up in float32."""
    arrays, config = golden("edm_precond")
    levels = IDDPMPreconditioning(config["iddpm"]["M"], config["iddpm"]["C_1"], config["iddpm"]["C_2"]).levels
    torch.testing.assert_close(levels, arrays["outputs.iddpm.u"].double(), rtol=1e-3, atol=0)
    # the sheet's values, in float64
    torch.testing.assert_close(levels[[0, 1, 999, 1000]], torch.tensor([20291.0, 641.7, 0.006425, 0.0]).double(), rtol=1e-4, atol=0)
    assert bool((levels.diff() < 0).all())


@pytest.mark.parametrize("count", [18, 40])
def test_golden_iddpm_grid(golden, count):
    """EDM's iDDPM grid in float64: u at evenly spaced indices from the first level up to 81. Here our table has all its digits."""
    arrays, _ = golden("edm_samplers")
    levels = IDDPMPreconditioning().levels[:-1]
    kept = levels[levels <= 81]
    kept = kept[kept >= 0.002]
    index = (torch.arange(count, dtype=torch.float64) * (len(kept) - 1) / (count - 1)).round().long()
    torch.testing.assert_close(kept[index], arrays[f"outputs.sigma_steps.iddpm_N{count}"], rtol=1e-12, atol=0)


def test_edm_scalings_make_unit_variance():
    """Network input, and training target (EDM, appendix B.6), for data of standard deviation sigma_data."""
    n, s = torch.logspace(-3, 3, 25, dtype=torch.float64), 0.7
    skip, out, into, _ = EDMPreconditioning(s).scalings(n)
    torch.testing.assert_close(into.square() * (n.square() + s**2), torch.ones_like(n), rtol=1e-14, atol=0)
    target_variance = ((1 - skip).square() * s**2 + (skip * n).square()) / out.square()
    torch.testing.assert_close(target_variance, torch.ones_like(n), rtol=1e-9, atol=0)


def test_vp_time_is_that_of_its_path():
    kind = VPPreconditioning()
    t = torch.tensor([1e-8, 1e-5, 0.5, 1.0], dtype=torch.float64)
    torch.testing.assert_close(kind.scalings(kind.path.n(t)).noise, 999 * t, rtol=1e-12, atol=0)


def test_iddpm_steps_take_the_nearest_level():
    kind = IDDPMPreconditioning()
    index = torch.tensor([[0, 500], [998, 999]])
    n = kind.levels[index]
    assert torch.equal(kind.index(n), index) and torch.equal(kind.index(n * 1.0001), index)
    assert torch.equal(kind.scalings(n).noise, 999.0 - index)
    assert kind.index(torch.tensor([0.0])).item() == 999
