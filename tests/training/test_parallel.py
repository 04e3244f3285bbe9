from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.training.toy import ToyLoader, expert_trainer, recipe, trainer
from unveil.training import checkpoint
from unveil.training.parallel import World

RANK = """
import json, sys
from pathlib import Path
import torch
from tests.training.toy import ToyLoader, expert_trainer, recipe, trainer
from unveil.training import parallel
from unveil.training.parallel import World
parallel.BUCKET = 1000
torch.set_num_threads(1)
world = World.join()
assert world.any(world.rank == 1) and not world.any(False)
assert float(world.sum_gradients([], torch.tensor(world.rank + 1.0))) == 3.0
assert world.gather([world.rank, "x"]) == [0, "x", 1, "x"]
directory = Path(sys.argv[1])
loader = ToyLoader(world.rank, world.size, bad=(5,))
run = trainer(directory, recipe(packs=2, save_every=2, log_every=1, steps=int(sys.argv[2])), loader)
run.fit(resume=True)
setup = recipe(packs=2, log_every=2, steps=5, dtype="float64", save_every=5)
expert_trainer(directory / "experts", setup, ToyLoader(world.rank, world.size)).fit()
from unveil.training import budget
calls = []
count = budget.measured_steps(0.01 * (1 + world.rank), lambda: calls.append(world.any(False)), world)
counts = world.gather([len(calls)])
assert counts[0] == counts[1]
import torch.distributed as dist
dist.destroy_process_group()
"""


def two_ranks(directory: Path, steps: int) -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    shared = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", RANK, str(directory), str(steps)]
    root = Path(__file__).resolve().parents[2]
    ranks = [subprocess.Popen(command, cwd=root, env={**shared, "RANK": str(r)}, stderr=subprocess.PIPE, text=True) for r in range(2)]
    errors = [p.communicate(timeout=120)[1] for p in ranks]
    assert [p.returncode for p in ranks] == [0, 0], errors


def test_two_ranks_train_as_one_and_resume(tmp_path: Path) -> None:
    """The same packs with the same noise in the same steps; one of them is not finite, and both know its samples."""
    one, two = tmp_path / "one", tmp_path / "two"
    trainer(one, recipe(packs=2, save_every=2, log_every=1, steps=6), ToyLoader(bad=(5,))).fit()
    two_ranks(two, 6)
    rows, others = ([json.loads(line) for line in (d / "metrics.jsonl").read_text().splitlines()] for d in (one, two))
    assert [r.keys() for r in rows] == [r.keys() for r in others]
    for row, other in zip(rows, others, strict=True):
        for name, value in row.items():
            assert other[name] == pytest.approx(value, rel=1e-5, abs=1e-7), (row["step"], name)
    assert [row["skipped_samples"] for row in rows if "skipped_samples" in row] == [[50, 51, 52, 53]]
    assert checkpoint.steps(two / "checkpoints") == [4, 6]
    state, host = checkpoint.load(two / "checkpoints" / "step-00000006", World(1, 2))
    assert host["loader"] == {"pack": 13}
    _experts_of_two_ranks_are_those_of_one(tmp_path)
    single = checkpoint.load(one / "checkpoints" / "step-00000006", World())[0]
    for name, tensor in single.items():
        torch.testing.assert_close(state[name], tensor, rtol=1e-4, atol=1e-6)


def _experts_of_two_ranks_are_those_of_one(home: Path) -> None:
    """Counts of all ranks in every row, and biases moved by them."""
    expert_trainer(home / "experts", recipe(packs=2, log_every=2, steps=5, dtype="float64", save_every=5)).fit()
    folders = home / "experts", home / "two" / "experts"
    counts = [[json.loads(line).get("load/counts") for line in (f / "metrics.jsonl").read_text().splitlines()] for f in folders]
    assert counts[0] == counts[1] and counts[0][0] is not None
    one, two = (checkpoint.load(f / "checkpoints" / "step-00000005", World(0, n))[0] for n, f in enumerate(folders, 1))
    bias = "model.blocks.1.feedforward.router.bias"
    assert one[bias].any()
    torch.testing.assert_close(one[bias], two[bias], rtol=0, atol=1e-15)


def test_alone_nothing_is_sent() -> None:
    world, p = World.join(), nn.Parameter(torch.ones(2))
    assert world == World(0, 1)
    assert world.sum({"a": 1.5}) == {"a": 1.5} and world.any(True) and world.gather([1]) == [1]
    assert float(world.sum_gradients([p], torch.tensor(3.0))) == 3.0 and p.grad is None
