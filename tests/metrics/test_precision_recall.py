from __future__ import annotations

import numpy as np
import pytest

from unveil.metrics import precision_recall as module
from unveil.metrics.precision_recall import precision_recall


def plain(manifold: np.ndarray, points: np.ndarray, k: int) -> float:
    radii = [sorted(np.linalg.norm(m - manifold, axis=1))[k] for m in manifold]
    return float(np.mean([any(np.linalg.norm(p - m) <= r for m, r in zip(manifold, radii, strict=True)) for p in points]))


def test_it_is_the_definition_written_out(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    real, made = rng.standard_normal((40, 3)), 0.6 * rng.standard_normal((30, 3)) + 0.4
    monkeypatch.setattr(module, "CHUNK", 7)
    found = precision_recall(real, made)
    assert found == (plain(real, made, 3), plain(made, real, 3))


def test_they_tell_fidelity_from_coverage() -> None:
    rng = np.random.default_rng(1)
    real = np.concatenate([rng.standard_normal((300, 2)), rng.standard_normal((300, 2)) + 20])
    one_mode = rng.standard_normal((600, 2))
    found = precision_recall(real, one_mode)
    assert found.precision > 0.9 and found.recall < 0.55
    noise = precision_recall(real, rng.uniform(-40, 60, (600, 2)))
    assert noise.precision < 0.1 and noise.recall > 0.9
    assert precision_recall(real, real) == (1, 1)
    with pytest.raises(ValueError, match="neighbours"):
        precision_recall(real, real[:3])
