"""``synth-stream``: features of streams whose classes lie in the order of the chunks alone, with a known best score.

Eight actions in four pairs. In two pairs a pattern is followed by another, or the other way round; in two a pattern turns one way, or
the other. So a single chunk tells the pair and never which of the two: memory does. Between actions lie near misses, one pattern alone
or one that does not turn, and before each a cue: one chunk that names the class to come, four times out of five rightly.

All of it is a hidden Markov chain: durations are sums of geometric ones (the discrete gamma), so that what an observer can know at best,
``unveil.metrics.filtering``, is exact. A chunk stands for a quarter of a second.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from unveil.data.chain import Chain, State
from unveil.data.noise import generator
from unveil.data.split import SPLITS, Split
from unveil.data.stream_features import About, Recording, Recordings

ACTIONS = 8
WIDTH = 64
LENGTH = 600
"""Chunks of a stream."""
STREAMS: dict[Split, int] = {"train": 400, "validation": 32, "test": 32}
STRENGTH = 2.0
"""Length of a pattern's vector, in standard deviations of the noise in each direction."""
ANGLES = 6
"""Places on the circle of a pattern that turns; it turns by one of them a chunk."""
STAGES = 3
"""Of half an action; each lasts one chunk at least."""
ADVANCE = 0.3
"""Probability that a stage ends with a chunk: an action lasts 6 chunks at least and 20 on average."""
GAP_STAGES, GAP_ADVANCE = 4, 0.2
"""Of the background between near misses and cues: 20 chunks on average."""
NEAR_MISS = 1 / 3
"""Probability that what follows such a gap is no action."""
CUE_RIGHT = 0.8
LEADS = (2, 3, 4, 5, 6)
"""Chunks from the cue to the action, equally probable."""

CLASSES = ("background", "A then B", "B then A", "C then D", "D then C", "E forth", "E back", "F forth", "F back")

Array = np.ndarray[Any, Any]


@cache
def chain() -> Chain:
    """The chain that the streams are drawn from: 9 classes, the background first, 64 features."""
    means, code = _patterns()
    states: dict[str, State] = {}

    def stages(name: str, label: int, emission: str, count: int, advance: float, after: dict[str, float]) -> None:
        for i in range(count):
            following = {f"{name} {i + 1}": 1.0} if i + 1 < count else after
            states[f"{name} {i}"] = State(code[emission], label, {f"{name} {i}": 1 - advance, **_scaled(following, advance)})

    def turning(name: str, label: int, plane: str, step: int, count: int) -> None:
        for i in range(count):
            for angle in range(ANGLES):
                turned = (angle + step) % ANGLES
                following = {f"{name} {i + 1} at {turned}": 1.0} if i + 1 < count else {"gap 0": 1.0}
                here = {f"{name} {i} at {turned}": 1 - ADVANCE, **_scaled(following, ADVANCE)}
                states[f"{name} {i} at {angle}"] = State(code[f"{plane}{angle}"], label, here)

    near = {f"{one} alone 0": 1 / 6 for one in "ABCD"}
    near |= {f"{plane} still 0 at {angle}": 1 / 6 / ANGLES for plane in "EF" for angle in range(ANGLES)}
    cues = {f"cue {c}": 1 / ACTIONS for c in range(1, ACTIONS + 1)}
    stages("gap", 0, "nothing", GAP_STAGES, GAP_ADVANCE, _scaled(near, NEAR_MISS) | _scaled(cues, 1 - NEAR_MISS))
    entries: dict[int, dict[str, float]] = {}
    for label, (first, second) in enumerate((("A", "B"), ("B", "A"), ("C", "D"), ("D", "C")), start=1):
        stages(f"{first} then", label, first, STAGES, ADVANCE, {f"then {second} 0": 1.0})
        stages(f"then {second}", label, second, STAGES, ADVANCE, {"gap 0": 1.0})
        entries[label] = {f"{first} then 0": 1.0}
    for label, (plane, step) in enumerate((("E", 1), ("E", -1), ("F", 1), ("F", -1)), start=5):
        turning(CLASSES[label], label, plane, step, 2 * STAGES)
        entries[label] = {f"{CLASSES[label]} 0 at {angle}": 1 / ANGLES for angle in range(ANGLES)}
    for one in "ABCD":
        stages(f"{one} alone", 0, one, STAGES, ADVANCE, {"gap 0": 1.0})
    for plane in "EF":
        turning(f"{plane} still", 0, plane, 0, STAGES)
    for cue in entries:
        right = {c: CUE_RIGHT if c == cue else (1 - CUE_RIGHT) / (ACTIONS - 1) for c in entries}
        waits = {f"wait {lead - 1} for {c}": p / len(LEADS) for c, p in right.items() for lead in LEADS}
        states[f"cue {cue}"] = State(code[f"cue {cue}"], 0, waits)
    for label, entry in entries.items():
        for left in range(1, max(LEADS)):
            states[f"wait {left} for {label}"] = State(code["nothing"], 0, entry if left == 1 else {f"wait {left - 1} for {label}": 1.0})
    return Chain.of(states, means, ACTIONS + 1)


def synth_stream(seed: int = 0) -> Recordings:
    """The streams of all three parts; each is its own for a seed, a part and a number, float32 ``[600, 64]``."""
    parts = {part: _recordings(part, seed) for part in SPLITS}
    return Recordings(About(CLASSES, (), 24.0, 6, "synth-stream", f"seed {seed}"), parts)


def _recordings(part: Split, seed: int) -> tuple[Recording, ...]:
    source = chain()
    rngs = [generator(seed, 0, i, f"synth-stream {part}") for i in range(STREAMS[part])]
    states, features = source.sample(rngs, LENGTH)
    return tuple(Recording(f"{part}-{i:03d}", x, source.label_S[s]) for i, (s, x) in enumerate(zip(states, features, strict=True)))


def _patterns() -> tuple[Array, dict[str, int]]:
    """Vectors ``[E, F]`` of all that is shown, turned by a fixed random orthogonal matrix, and the row of each by name."""
    turn, upper = np.linalg.qr(generator(0, 0, 0, "synth-stream patterns").standard_normal((WIDTH, WIDTH)))
    axes = iter(STRENGTH * (turn * np.sign(np.diag(upper))).T)  # the sign makes the factorisation unique on any machine
    patterns = {"nothing": np.zeros(WIDTH)}
    patterns |= {name: next(axes) for name in ("A", "B", "C", "D", *(f"cue {c}" for c in range(1, ACTIONS + 1)))}
    for plane in "EF":
        x, y = next(axes), next(axes)
        angles = 2 * np.pi * np.arange(ANGLES) / ANGLES
        patterns |= {f"{plane}{i}": np.cos(a) * x + np.sin(a) * y for i, a in enumerate(angles)}
    # of few bits: no machine's rounding moves a feature
    return np.round(np.stack(list(patterns.values())) * 4096) / 4096, {name: i for i, name in enumerate(patterns)}


def _scaled(probabilities: dict[str, float], by: float) -> dict[str, float]:
    return {name: by * p for name, p in probabilities.items()}
