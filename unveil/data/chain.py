"""A hidden Markov chain with Gaussian emissions: it is sampled, and what any observer of it can know follows from its matrices.

Shape letters: B streams of T chunks, S states, E distinct emissions, F features, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]


class State(NamedTuple):
    """One state: the emission and the class that it shows, and where the next chunk is, with which probability."""

    emission: int
    label: int
    successors: Mapping[str, float]


@dataclass(frozen=True)
class Chain:
    """``transition_SS`` has rows that sum to 1; ``emission_S`` is the row of ``means_EF`` that a state shows, ``label_S`` its class.

    A chunk's features are its state's mean plus N(0, 1) in every direction. Streams begin in the stationary distribution, so that
    to an observer of a part of one every part is alike.
    """

    transition_SS: Array
    emission_S: Array
    label_S: Array
    means_EF: Array
    classes: int

    @staticmethod
    def of(states: Mapping[str, State], means_EF: Array, classes: int) -> Chain:
        """From named states. Raises ValueError where a state's successors do not sum to 1 or are not there."""
        index = {name: i for i, name in enumerate(states)}
        transition = np.zeros((len(states), len(states)))
        for name, state in states.items():
            for successor, probability in state.successors.items():
                if successor not in index:
                    raise ValueError(f"'{name}' leads to '{successor}', which is no state")
                transition[index[name], index[successor]] = probability
        if not np.allclose(transition.sum(1), 1):
            raise ValueError(f"the successors of '{list(states)[int(np.abs(transition.sum(1) - 1).argmax())]}' do not sum to 1")
        emission, label = (np.array([getattr(s, field) for s in states.values()]) for field in ("emission", "label"))
        return Chain(transition, emission, label, means_EF, classes)

    @cached_property
    def stationary_S(self) -> Array:
        """The distribution that a step leaves as it is."""
        count = len(self.transition_SS)
        equations = np.vstack([self.transition_SS.T - np.eye(count), np.ones(count)])
        found: Array = np.linalg.lstsq(equations, np.eye(count + 1)[-1], rcond=None)[0]
        return np.maximum(found, 0) / np.maximum(found, 0).sum()

    def sample(self, rngs: Sequence[np.random.Generator], length: int) -> tuple[Array, Array]:
        """States int64 ``[B, T]`` and features float32 ``[B, T, F]`` of one stream per generator."""
        drawn_BT = np.stack([rng.random(length) for rng in rngs])
        cumulative = np.vstack([self.stationary_S, self.transition_SS]).cumsum(1)
        cumulative /= cumulative[:, -1:]  # to exactly 1, so that rounding leads to no state that is impossible
        states_BT = np.empty(drawn_BT.shape, dtype=np.int64)
        row_B = np.zeros(len(rngs), dtype=np.int64)
        for t in range(length):
            states_BT[:, t] = (cumulative[row_B] > drawn_BT[:, t, None]).argmax(1)
            row_B = states_BT[:, t] + 1
        noise = np.stack([rng.standard_normal((length, self.means_EF.shape[1]), dtype=np.float32) for rng in rngs])
        return states_BT, self.means_EF.astype(np.float32)[self.emission_S[states_BT]] + noise

    def evidence(self, features: Array) -> Array:
        """Density of features ``[..., F]`` under each state ``[..., S]``, float64, up to a factor of each chunk's own."""
        x, means = np.asarray(features, dtype=np.float64), self.means_EF.astype(np.float64)
        logs = x @ means.T - 0.5 * np.square(means).sum(1)  # the square of x is the same under every state
        return np.exp(logs - logs.max(-1, keepdims=True))[..., self.emission_S]

    def readout(self, horizon: int) -> Array:
        """``[S, 1 + K, C]``: probability of each class at the present and at each of the K chunks ahead, given the state."""
        ahead = [np.eye(self.classes)[self.label_S]]
        for _ in range(horizon):
            ahead.append(self.transition_SS @ ahead[-1])
        return np.stack(ahead, 1)
