from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from unveil.training import precision


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A run sets its threads for the process; and no test of this room depends on how fast the machine is."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(precision, "matmul_rate", lambda m, n, k, dtype, device, threads: 1e9)
    yield
    torch.set_num_threads(threads)
