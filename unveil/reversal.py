"""The reversal task on a run: are the lines of a document known in both directions? What it was trained on, and what it was not.

Of pairs that stood in its training text as they are, exact match and likelihood rank; of pairs none of whose lines stood there, likelihood
rank among lines of the same kind, so that nothing is found by what was seen.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from unveil import recipe as recipes
from unveil.config import BlockConfig, DiscreteRecipe, ScoreConfig, SourceConfig
from unveil.data.corpus import documents
from unveil.data.noise import generator
from unveil.errors import UserError
from unveil.evaluation.reversal import CHOICES, Mean, Pair, Question, Way, others, pairs, rank, uncovered, ways
from unveil.evaluation.told import log_likelihoods
from unveil.families import family
from unveil.family import Bars, Table
from unveil.report.evidence import Evidence
from unveil.tasks import conditions, scorer
from unveil.text_run import TextRun

RESULTS = "evaluation-reversal.json"
FIELD = "--reversal"
TOGETHER = 64
"""Lines written at a time."""
IN_TRAINING, NEW = "in training", "not in training"
COLUMNS = ("documents", "asked for", "pairs", "exact match", "±", f"first of {CHOICES}", "±", f"rank of {CHOICES}", "±")


@dataclass(frozen=True)
class Finding:
    """One way of asking over one group of pairs."""

    group: str
    way: str
    pairs: int
    exact: Mean | None
    """Share of the lines that were written exactly, at temperature 0, the number of tokens told; None where none was asked for."""
    first: Mean
    """Share of the pairs whose true line is the most likely of all."""
    rank: Mean


@dataclass(frozen=True)
class Reversal:
    findings: list[Finding]
    left_out: dict[str, int]
    """Pairs that were not asked about, by the reason."""
    made_with: dict[str, Any]


def evaluate(run: TextRun, path: str, limit: int | None = None, draws: int | None = None, seed: int = 0) -> Reversal:
    """Ask ``run`` for the line after and the line before.

    Args:
        path: of documents, read as the training data are; a line ends with a newline, or with an item of a list.
        limit: pairs of each group at the most.
        draws: Monte-Carlo draws per line, for a family that bounds its likelihood; None takes the recipe's.
        seed: of the choice of pairs and of lines, and of the draws, which are the same for all lines of a question.

    Raises UserError for a file that cannot be read so, one without two lines in a document or with none that can be asked about, a number
    that is not positive, data of training that are gone, and a chain without likelihoods given a part.
    """
    for name, value in (("--limit", limit), ("--draws", draws)):
        if value is not None and value < 1:
            raise UserError(name, f"got {value}", "give 1 or more")
    if isinstance(run.recipe.objective, ScoreConfig) and run.recipe.objective.chain == "uniform":
        raise UserError(FIELD, "the chain of this run is 'uniform': no likelihood of a part given the rest", "take a run of another kind")
    found = pairs(_documents(run, path))
    if not found:
        raise UserError(FIELD, f"no document of {path!r} has two lines", "give texts whose lines end with a newline, or lists of lines")
    draws = run.recipe.evaluation.draws if draws is None else draws
    groups, left_out = _grouped(run, found, seed)
    if not any(groups.values()):
        reasons = ", ".join(f"{count} {reason}" for reason, count in left_out.items() if count)
        raise UserError(FIELD, f"none of {len(found)} pairs of lines can be asked about ({reasons})", "give more documents of such lines")
    asked = {group: _chosen(rivals, limit, seed) for group, rivals in groups.items() if rivals}
    findings = [_asked(run, group, rivals, way, draws, seed) for group, rivals in asked.items() for way in ways(_sees_ahead(run))]
    made_with = {**conditions(run, draws, seed, limit), "file": str(path), "lines_ranked": CHOICES}
    return Reversal(findings, {reason: count for reason, count in left_out.items() if count}, made_with)


def record(run: TextRun, found: Reversal) -> Path:
    """Write ``evaluation-reversal.json`` into the run's directory, and what its page shows of it."""
    path = run.path / RESULTS
    path.write_text(json.dumps(dataclasses.asdict(found), indent=2, default=str) + "\n", encoding="utf-8")
    Evidence.load(run.path).with_views(*views(found)).save(run.path)
    return path


def views(found: Reversal) -> Iterator[Table | Bars]:
    """The table; as bars the exact matches, and how often the true line is the first."""
    yield Table("The line after, and the line before", COLUMNS, rows(found))
    written = [(each.way, each.exact) for each in found.findings if each.exact is not None]
    yield _bars("Lines written exactly, of documents in training", written)
    for group in (IN_TRAINING, NEW):
        ranked = [(each.way, each.first) for each in found.findings if each.group == group]
        yield _bars(f"The true line most likely of {CHOICES}, of documents {group}", ranked)


def rows(found: Reversal) -> list[tuple[str, ...]]:
    """A row per finding, as ``COLUMNS`` says."""
    return [
        (each.group, each.way, f"{each.pairs:,}", *_words(each.exact), *_words(each.first), *_words(each.rank)) for each in found.findings
    ]


def _bars(title: str, named: Sequence[tuple[str, Mean]]) -> Bars:
    return Bars(title, [name for name, _ in named], [mean.value for _, mean in named], [mean.stderr for _, mean in named])


def _words(mean: Mean | None) -> tuple[str, str]:
    return ("", "") if mean is None else (f"{mean.value:.3f}", f"{mean.stderr:.3f}")


class _Rivals(NamedTuple):
    """A pair, and the lines that its first and its second are told from."""

    pair: Pair
    lines: tuple[list[str], list[str]]


def _sees_ahead(run: TextRun) -> bool:
    return isinstance(run.recipe, DiscreteRecipe) and not isinstance(run.recipe.objective, BlockConfig)


def _documents(run: TextRun, path: str) -> list[str]:
    try:
        data: Any = recipes.with_data(run.recipe, path).data
        source: SourceConfig = data.sources[0]
        return [document.data.decode("utf-8", "replace") for document in documents(source)]
    except UserError as error:
        raise UserError(FIELD, f"{error.field}: {error.problem}", error.remedy) from None


def _grouped(run: TextRun, found: Sequence[Pair], seed: int) -> tuple[dict[str, list[_Rivals]], dict[str, int]]:
    """Pairs that can be asked about, by group; how many cannot, by the reason."""
    corpus, tokenizer, context = run.corpus(), run.tokenizer, run.recipe.data.context
    texts = [corpus.tokenizer.decode(store.tokens(i)) for store in corpus.splits["train"] for i in range(len(store))]
    known, lines = {pair[1:] for pair in pairs(texts)}, {line for text in texts for line in text.split("\n")}
    groups: dict[str, list[Pair]] = {IN_TRAINING: [], NEW: []}
    long, part, few = "longer than the context", "in training in part", f"with fewer than {CHOICES} lines to choose from"
    left_out = {long: 0, part: 0, few: 0}
    for pair in found:
        if len(tokenizer.opened("\n".join(pair[1:]))) > context:
            left_out[long] += 1
        elif pair[1:] in known or lines.isdisjoint(pair[1:]):
            groups[IN_TRAINING if pair[1:] in known else NEW].append(pair)
        else:
            left_out[part] += 1
    asked: dict[str, list[_Rivals]] = {}
    for group, pool in groups.items():
        first, second = (others(pool, wanted, lambda line: len(tokenizer.encode(line)), seed) for wanted in (0, 1))
        asked[group] = [_Rivals(pair, (a, b)) for pair, a, b in zip(pool, first, second, strict=True) if a and b]
        left_out[few] += len(pool) - len(asked[group])
    return asked, left_out


def _chosen(rivals: list[_Rivals], limit: int | None, seed: int) -> list[_Rivals]:
    order = generator(seed, 0, 0, "reversal pairs").permutation(len(rivals))[:limit]
    return [rivals[i] for i in sorted(order)]


def _asked(run: TextRun, group: str, rivals: Sequence[_Rivals], way: Way, draws: int, seed: int) -> Finding:
    """One way of asking about pairs of a group; none writes lines that it cannot know, nor by Bayes."""
    questions = [Question(each.pair, way, run.tokenizer) for each in rivals]
    documents = [each.pair.document for each in rivals]
    texts = [
        question.scored(line, number)
        for number, (question, each) in enumerate(zip(questions, rivals, strict=True))
        for line in (question.truth, *map(run.tokenizer.encode, each.lines[way.wanted]))
    ]
    data = run.recipe.data
    scores = log_likelihoods(texts, scorer(run, draws, seed), max(data.context, data.packing_length))
    ranks = [rank(scores[i : i + CHOICES]) for i in range(0, len(scores), CHOICES)]
    exact = Mean.of(_written(run, questions, seed), documents) if group == IN_TRAINING and way.told else None
    first = Mean.of([float(place == 1) for place in ranks], documents)
    return Finding(group, way.name, len(rivals), exact, first, Mean.of(ranks, documents))


def _written(run: TextRun, questions: Sequence[Question], seed: int) -> list[float]:
    """1 for each line that is written exactly, else 0."""
    kind = family(run.with_sampler(temperature=0.0).recipe, run.tokenizer.vocabulary)
    found: list[float] = []
    for at in range(0, len(questions), TOGETHER):
        part = questions[at : at + TOGETHER]
        requests = [question.request(_sees_ahead(run), seed + at + i) for i, question in enumerate(part)]
        found += [float(question.answered(row)) for question, row in zip(part, uncovered(kind, run.model, requests), strict=True)]
    return found
