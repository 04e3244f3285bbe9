"""Runs of text: sampled from a prompt or around gaps, scored in bits per byte."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from unveil import bases, corpora
from unveil.adapters.bits import Weights
from unveil.canvas import filled, prompted
from unveil.config import BlockConfig, TextRecipe
from unveil.data import chats
from unveil.data.held_out import Scored, held_out, held_out_pairs
from unveil.data.loader import Loader
from unveil.data.shards import Prepared, prepare
from unveil.data.tokenizer import Tokenizer
from unveil.environment import device
from unveil.errors import UserError
from unveil.evaluation.likelihood import BitsPerByte, held_out_bits
from unveil.evaluation.loss import averaged
from unveil.families import EXACT, family
from unveil.family import Row
from unveil.nn.packed import Packed
from unveil.report.evidence import Evidence
from unveil.snapshots import TextSnapshot, played
from unveil.text.stop import StopStrings
from unveil.trained import SAMPLES, Run, Split
from unveil.training import final


@dataclass(frozen=True)
class TextRun(Run):
    """A trained language model with all that belongs to it."""

    path: Path
    folder: Path
    recipe: TextRecipe
    tokenizer: Tokenizer
    model: nn.Module

    @staticmethod
    def read(path: Path, folder: Path, recipe: TextRecipe, kind: Weights | None = None, base: Path | None = None) -> TextRun:
        """From its folder, the weights on the CPU.

        Args:
            kind: how the matrices of the blocks are held; as the recipe says if not given.
            base: of an adapter, in the place of its own.

        Raises UserError for what is missing, damaged or does not belong together.
        """
        tokenizer = Tokenizer.reopen(folder / "tokenizer.json", recipe.data.tokenizer)
        final.check_tokenizer(folder, folder / "tokenizer.json", tokenizer.vocabulary.size)
        build, kind = family(recipe, tokenizer.vocabulary).build, kind or recipe.adapter.weights
        if recipe.adapter.rank:
            model = bases.adapted(build, folder, recipe, kind, base)
        elif kind != "full":
            model = bases.built(build, folder, kind)
        else:
            model = build()
            final.read(folder, model)
        return TextRun(path, folder, recipe, tokenizer, model)

    def sample(
        self, prompt: str | Sequence[str] | None = None, *, infill: str | None = None, num: int = 1, seed: int = 0, **sampler: Any
    ) -> Iterator[TextSnapshot]:
        """Uncover text; yields a snapshot after every step, the last of them final.

        Args:
            prompt: what to go on from; several make a batch; None begins a document.
            infill: instead of a prompt, a text whose gaps are written ``<mask>`` or ``<mask:12>`` (12 tokens).
            num: texts per prompt.
            seed: of the first text; the next ones have the seeds after it. A text is the same alone and in any batch.
            sampler: settings of the recipe's sampler section, for this call.

        Raises:
            UserError: at once, for a setting that does not exist or a text that does not fit.
        """
        if num < 1:
            raise UserError("num", f"got {num}", "ask for at least one text")
        if infill is not None and prompt is not None:
            raise UserError("infill", "given with a prompt", "put the prompt into the text with gaps")
        chosen = self.with_sampler(**sampler).recipe
        stop = StopStrings(chosen.sampler.stop, self.tokenizer.decode_bytes) if chosen.sampler.stop else None
        single = num == 1 and (prompt is None or isinstance(prompt, str))
        write, text = (prompted, prompt or "") if infill is None else (filled, infill)
        texts = [text] if isinstance(text, str) else text
        canvases = [write(text, chosen, self.tokenizer, seed + i) for i, text in enumerate(t for t in texts for _ in range(num))]
        kind = family(chosen, self.tokenizer.vocabulary, stop)
        state = kind.begin(self.model, [canvas.request for canvas in canvases])

        def steps() -> Iterator[TextSnapshot]:
            rows: dict[int, Row] = {}
            while state.live:
                snapshot = kind.step(self.model, state)  # type: ignore[arg-type]
                rows |= {row.request: row for row in snapshot.rows}
                yield TextSnapshot(snapshot.step, [rows[i] for i in range(len(canvases))], canvases, self.tokenizer, stop, single)

        return steps()

    def generate(self, prompt: str | Sequence[str] | None = None, **settings: Any) -> Any:
        """The final text of ``sample``, or the list of them."""
        *_, last = self.sample(prompt, **settings)
        return last.text

    def evaluate(self, split: Split = "validation", tokens: int | None = None, draws: int | None = None, seed: int = 0) -> BitsPerByte:
        """Held-out bits per byte of the source.

        Args:
            split: of the recipe's data.
            tokens: how many of them at the most, 0 for all; None takes the recipe's.
            draws: Monte-Carlo draws per sequence, for a family that bounds its cost; None takes the recipe's.

        Raises:
            UserError: the split is empty, the data are gone, or they do not fit the tokenizer.
        """
        config = self.recipe.evaluation
        evaluation = dataclasses.replace(
            config, tokens=config.tokens if tokens is None else tokens, draws=config.draws if draws is None else draws
        )
        return _bits(self.recipe, self.corpus(), evaluation, self.model, split, seed)

    def score(self, texts: Sequence[str], draws: int, seed: int = 0) -> BitsPerByte:
        """Bits per byte of texts that one gives, each a document's beginning, cut to the context. Raises UserError without any bytes."""
        lengths = self.tokenizer.byte_lengths()
        if lengths is None:
            raise UserError("tokenizer.json", "its tokens stand for no bytes of a text", "take a byte-level one")
        tokens = [torch.from_numpy(self.tokenizer.opened(text)[: self.recipe.data.context]) for text in texts]
        batch, sizes = Packed.of(tokens), torch.from_numpy(lengths)
        # the first is given, whether it is a start token or the text's own
        content_T = (sizes[batch.tokens_T] > 0) & (batch.positions_T > 0)
        bytes_N = torch.stack([each.sum() for each in batch.split(sizes[batch.tokens_T] * content_T)])
        kind = family(self.recipe, self.tokenizer.vocabulary)
        return held_out_bits(kind, self.model, [Scored(batch.to(device()), content_T, bytes_N)], draws, seed)

    def corpus(self) -> Prepared:
        """What the run was trained on. Raises UserError where the data are gone or do not fit the tokenizer."""
        prepared = prepare(self.recipe.data)
        if prepared.tokenizer.digest() != self.tokenizer.digest():
            raise UserError("data.sources", "the corpus has changed since the run was trained: its tokenizer differs", "restore the corpus")
        return prepared

    @cached_property
    def flops_per_token(self) -> float:
        """Forward and backward, for sequences of the recipe's context."""
        return flops_per_token(self.recipe, self.model)


def trained_here(recipe: TextRecipe) -> bool:
    """Whether the recipe says on what data, as that of another's folder does not."""
    data = recipe.data
    return data.tokenizer.kind != "file" or any(source.path or source.kind == "python" for source in data.sources)


def flops_per_token(recipe: TextRecipe, model: Any) -> float:
    """What a token of a recipe costs in training, forward and backward, in sequences as long as its context.

    Block diffusion reads a text twice, noisy and clean; of the clean one the last layer wants keys and values alone, and the head
    nothing; with shifted states queries too. A token of either sees half of the context on average, and of its own block what the triangle
    would have left out. Blocks that grow are counted at their final size.
    """
    context = recipe.data.context
    if not isinstance(recipe.objective, BlockConfig):
        return float(model.flops_per_token(context / 2 if recipe.family == "autoregressive" else context))
    seen = (context + recipe.objective.block) / 2
    again = sum(model.layer_flops(layer, seen) for layer in range(len(model.blocks) - 1))
    attention = model.blocks[-1].attention
    clean = 12 * attention.groups * attention.head_width * recipe.model.width
    if recipe.model.shift:
        clean += 6 * attention.heads * attention.head_width * (recipe.model.width + 2 * seen)
    return float(model.flops_per_token(seen) + again + clean)


class TextTraining:
    """A recipe's corpus, family and scores, as ``unveil.run.train`` asks for them."""

    def __init__(self, recipe: TextRecipe, directory: Path, shown: bool) -> None:
        self.recipe, self.directory = recipe, directory
        self.prepared = corpora.prepared(recipe.data, shown=shown)
        self.family = family(recipe, self.prepared.tokenizer.vocabulary)
        self._scored: list[BitsPerByte] = []

    @property
    def scores(self) -> bool:
        return bool(self.recipe.data.validation)

    def build(self) -> nn.Module:
        return self.family.build()

    def loader(self, rank: int, world: int) -> Loader:
        return Loader(self.prepared, self.recipe.data, self.recipe.seed, self.family, rank, world)

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Bits per byte of the validation split; while blocks grow, the block at which they are scored, which is the last; of pairs the
        loss and what is measured beside it, and bits of the preferred answers."""
        self._scored.append(_bits(self.recipe, self.prepared, self.recipe.evaluation, model, "validation", self.recipe.seed))
        scored = {"bits_per_byte": self._scored[-1].content, "nats_per_token": self._scored[-1].nats_per_token}
        objective = self.recipe.objective
        if isinstance(objective, BlockConfig) and objective.growth:
            scored["block"] = float(objective.block)
        if not objective.preference.beta:
            return scored
        tokens, data = self.recipe.evaluation.tokens, self.recipe.data
        pairs = held_out_pairs(self.prepared, data, "validation", tokens, self.recipe.seed, self.family)
        return {**averaged(self.family, model, pairs), **scored}

    def sample(self, model: nn.Module, step: int) -> None:
        recipe = self.recipe
        run = TextRun(self.directory, self.directory, recipe, self.prepared.tokenizer, model)
        texts = run.generate(**self._shown())
        folder = self.directory / "samples"
        folder.mkdir(exist_ok=True)
        (folder / f"step-{step:08d}.txt").write_text("\n\n--------\n\n".join(texts) + "\n", encoding="utf-8")

    def export(self, folder: Path) -> dict[str, Any]:
        self.prepared.tokenizer.save(folder / "tokenizer.json")
        chats.template_for(self.recipe.data).save(folder)
        return {"vocabulary": self.prepared.tokenizer.vocabulary.size}

    def _shown(self) -> dict[str, Any]:
        """What is sampled to be shown: the beginnings of documents, or answers to the first questions of conversations."""
        recipe, tokenizer = self.recipe, self.prepared.tokenizer
        store = next(s for split in ("validation", "train") for s in self.prepared.splits[split] if len(s))
        if not store.whole:
            return {"num": SAMPLES, "length": min(recipe.sampler.length, recipe.data.context - 1)}
        asked = [store.tokens(i)[: store.spans(i)[0, 0]] for i in range(min(SAMPLES, len(store)))]
        room = recipe.data.context - 1 - max(map(len, asked))
        return {"prompt": [tokenizer.decode(ids) for ids in asked], "length": min(recipe.sampler.length, room)}

    def evidence(self, run: TextRun) -> Evidence:
        """The last evaluation of training is that of the result."""
        recipe = run.recipe
        if self.scores and not self._scored:  # a finished run, resumed
            self.evaluate(run.model)
        shown, last = played("A sample as it was uncovered", run.sample(**self._shown()))
        return Evidence(
            bits=self._scored[-1] if self._scored else None,
            bound=recipe.family not in EXACT,
            samples=last.text,
            views=[shown, *self.family.views(run)],
            costs={"parameters": run.parameters(), "flops_per_token": run.flops_per_token},
        )


def _bits(recipe: TextRecipe, prepared: Prepared, evaluation: Any, model: nn.Module, split: Split, seed: int) -> BitsPerByte:
    if not getattr(recipe.data, split):
        raise UserError(f"data.{split}", "is 0: nothing was held out", "train with a share above 0")
    kind = family(recipe, prepared.tokenizer.vocabulary)
    batches = held_out(prepared, recipe.data, split, evaluation.tokens, kind)
    return held_out_bits(kind, model, batches, evaluation.draws, seed)
