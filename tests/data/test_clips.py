from __future__ import annotations

import pytest
import torch

from unveil.data.clips import Clips

PRESENT, FUTURE = torch.tensor([1, 0]), torch.tensor([[0, -1], [2, 1]])


def test_windows_lie_end_to_end_and_come_apart_again() -> None:
    windows = [torch.randn(3, 4), torch.randn(5, 4)]
    batch = Clips.of(windows, PRESENT, FUTURE, sample_ids=[7, 9])
    assert batch.size == 8 and batch.lengths == [3, 5] and batch.max_seqlen == 5 and batch.unit == "chunks"
    assert batch.cu_seqlens.tolist() == [0, 3, 8] and batch.cu_seqlens.dtype == torch.int32
    for i, part in enumerate(batch.split()):
        assert torch.equal(part.features_TF, windows[i]) and part.lengths == [len(windows[i])] and part.max_seqlen == len(windows[i])
        assert part.present_N.tolist() == [PRESENT[i]] and part.future_NK.tolist() == [FUTURE[i].tolist()]
        assert part.sample_ids_N.tolist() == [(7, 9)[i]]


def test_all_tensors_move() -> None:
    moved = Clips.of([torch.randn(3, 4)], PRESENT[:1], FUTURE[:1]).to("meta")
    assert {t.device.type for t in vars(moved).values() if isinstance(t, torch.Tensor)} == {"meta"} and moved.max_seqlen == 3


@pytest.mark.parametrize("windows", [[], [torch.randn(2, 4), torch.randn(0, 4)]], ids=["none", "an empty one"])
def test_there_is_no_empty_window(windows: list[torch.Tensor]) -> None:
    with pytest.raises(ValueError, match="no empty ones"):
        Clips.of(windows, PRESENT, FUTURE)
