from __future__ import annotations

import pytest
import torch

from unveil.nn.packed import Packed


def test_positions_restart_and_split_inverts_packing() -> None:
    sequences = [torch.tensor([5, 6, 7]), torch.tensor([8]), torch.tensor([9, 10])]
    batch = Packed.of(sequences, sample_ids=[40, 41, 42])
    assert batch.positions_T.tolist() == [0, 1, 2, 0, 0, 1]
    assert batch.cu_seqlens.tolist() == [0, 3, 4, 6] and batch.cu_seqlens.dtype == torch.int32
    assert batch.sequence_T.tolist() == [0, 0, 0, 1, 2, 2]
    assert all(torch.equal(a, b) for a, b in zip(batch.split(), sequences, strict=True))


def test_repeated_tail_entries_add_no_sequence() -> None:
    batch = Packed.of([torch.tensor([1, 2]), torch.tensor([3])])
    padded = Packed(batch.tokens_T, torch.tensor([0, 2, 3, 3, 3], dtype=torch.int32), 2, batch.positions_T, batch.sample_ids_N)
    assert padded.lengths == [2, 1]
    assert torch.equal(padded.sequence_T, batch.sequence_T)


@pytest.mark.parametrize("sequences", [[], [torch.tensor([1]), torch.tensor([], dtype=torch.int64)]])
def test_nothing_to_pack_is_refused(sequences: list[torch.Tensor]) -> None:
    with pytest.raises(ValueError, match="at least one sequence"):
        Packed.of(sequences)
