from __future__ import annotations

from unveil.evaluation.baselines import baselines
from unveil.metrics.compression import gzip, order3, unigram, xz


def test_every_baseline_alone_and_primed_on_the_same_bytes() -> None:
    train, test = b"for i in range(10):\n    print(i)\n" * 40, b"for j in range(20):\n    print(j)\n" * 9
    told: list[str] = []
    scores = {score.name: score for score in baselines(train, test, told.append)}
    assert told == list(scores) == ["unigram", "gzip", "order-3", "xz"]
    for name, method in {"unigram": unigram, "gzip": gzip, "order-3": order3, "xz": xz}.items():
        assert (scores[name].alone, scores[name].primed) == (method(test, b""), method(test, train))
    assert scores["xz"].primed < scores["xz"].alone
