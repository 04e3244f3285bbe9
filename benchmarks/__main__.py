"""``python -m benchmarks NAME [--json] [--output FILE]``: ours and a peer on the same work in one process."""

from __future__ import annotations

import argparse
import functools
import importlib
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.measure import Row, machine
from unveil.errors import UserError

NAMES = (
    "training_throughput",
    "experts_training",
    "packing",
    "decoding",
    "latent_decoding",
    "solver_order",
    "solver_overhead",
    "unet_training",
    "diffusion_decoding",
    "speculative_decoding",
    "block_diffusion_training",
    "streaming",
)
"""Each a module with ``rows() -> list[Row]``. One with ``arguments(parser)`` gets what was given, and tells more in ``details(given)``."""


def report(run: Callable[[], Sequence[Row]]) -> dict[str, Any]:
    """Run a benchmark; the JSON form of its result."""
    host = machine()
    return {"machine": host, "rows": [asdict(row) for row in run()]}


def _figure(value: float) -> str:
    """A rate without its decimals, an order of convergence with them."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3f}"


def table(name: str, result: dict[str, Any]) -> Table:
    """The same for reading; ``of floor`` is our share of what the machine could do. The caption names each row's peer."""
    host = result["machine"]
    lines = [f"{host['processor']}, {host['threads']} threads, load before {host['load']:.1f}, torch {host['torch']}"]
    lines += [f"{row['name']}: against {row['peer_name']}" for row in result["rows"]]
    shown = Table("row", "unveil", "peer", "ratio", "spread", "of floor", "unit", title=name, caption="\n".join(lines))
    for row in result["rows"]:
        share = "" if row["floor"] is None else f"{row['ours'] / row['floor']:.0%}"
        figures = _figure(row["ours"]), _figure(row["peer"]), f"{row['ratio']:.2f}", f"{row['spread']:.2f}"
        shown.add_row(row["name"], *figures, share, row["unit"])
    return shown


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--output", type=Path, help="also write the JSON to this file")
    module = importlib.import_module(f"benchmarks.{parser.parse_known_args(arguments)[0].name}")
    own = hasattr(module, "arguments")
    if own:
        module.arguments(parser)
    given = parser.parse_args(arguments)
    try:
        result = report(functools.partial(module.rows, given) if own else module.rows)
        result |= {"details": module.details(given)} if own else {}
    except UserError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 2
    text = json.dumps(result, indent=2)
    if given.output:
        given.output.write_text(text + "\n", encoding="utf-8")
    if given.json:
        print(text)
    else:
        Console().print(table(given.name, result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
