"""The great circle between two latents."""

from __future__ import annotations

import math

import pytest
import torch

from unveil.gaussian.interpolation import slerp

G = torch.Generator().manual_seed(0)
A, B = (torch.randn(3, 2, 4, dtype=torch.float64, generator=G) for _ in range(2))


def angle(a, b):
    a, b = a.flatten(1), b.flatten(1)
    return torch.acos(((a * b).sum(1) / a.norm(dim=1) / b.norm(dim=1)).clamp(-1, 1))


def test_it_begins_and_ends_where_it_should():
    torch.testing.assert_close(slerp(A, B, 0.0), A)
    torch.testing.assert_close(slerp(A, B, 1.0), B)


def test_it_turns_evenly_and_keeps_the_norm():
    scale = A.flatten(1).norm(dim=1)[:, None, None]
    a, b = A / scale, B / B.flatten(1).norm(dim=1)[:, None, None]
    for share in (0.25, 0.5, 0.9):
        between = slerp(a, b, share)
        torch.testing.assert_close(between.flatten(1).norm(dim=1), torch.ones(3, dtype=torch.float64))
        torch.testing.assert_close(angle(a, between), share * angle(a, b))


def test_a_share_per_sample():
    shares = torch.tensor([0.0, 0.5, 1.0])
    found = slerp(A, B, shares)
    for row, share in enumerate(shares.tolist()):
        torch.testing.assert_close(found[row], slerp(A, B, share)[row])


def test_what_points_the_same_way_is_joined_by_a_line():
    torch.testing.assert_close(slerp(A, 2.0 * A, 0.25), 1.25 * A)
    torch.testing.assert_close(slerp(A, A * (1 + 1e-12), 0.5), A)


def test_the_middle_of_independent_latents_is_a_latent():
    """Of 10,000 dimensions: its norm is that of the prior, where the straight line's is shorter by sqrt(2)."""
    a, b = (torch.randn(1, 10_000, generator=G) for _ in range(2))
    middle = slerp(a, b, 0.5)
    assert middle.dtype == torch.float32 and middle.std().item() == pytest.approx(1.0, abs=0.03)
    assert (0.5 * (a + b)).std().item() == pytest.approx(math.sqrt(0.5), abs=0.03)


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="one shape"):
        slerp(A, B[:2], 0.5)
