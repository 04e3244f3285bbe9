"""The demo: an autoregressive and a masked-diffusion model of Python's own library, trained alike, digits out of noise, and one page.

Every stage leaves its result in the demo's directory and is passed over when it is there, so an interrupted demo goes on.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from unveil import corpora
from unveil import recipe as recipes
from unveil.canvas import GAP
from unveil.config import (
    AutoregressiveRecipe,
    DiscreteRecipe,
    EvaluationConfig,
    GaussianRecipe,
    MaskedConfig,
    MaskedSamplerConfig,
    NextTokenSamplerConfig,
    OptimizerConfig,
    ScheduleConfig,
    TextDataConfig,
    TextRecipe,
    TokenizerConfig,
    TrainingConfig,
    TransformerConfig,
)
from unveil.data.loader import held_out
from unveil.data.shards import Prepared
from unveil.demo_digits import DIGITS, digits, missing
from unveil.demo_digits import recipe as digits_recipe
from unveil.environment import device
from unveil.errors import UserError
from unveil.evaluation.baselines import baselines
from unveil.evaluation.infill import Filling, Gap, gaps
from unveil.family import TokenTimeline
from unveil.metrics.compression import Score
from unveil.report.evidence import Evidence
from unveil.report.page import write
from unveil.report.run import RunReport
from unveil.report.timeline import timeline
from unveil.run import Run, load, train
from unveil.training import precision

AUTOREGRESSIVE, MASKED = "autoregressive", "masked-diffusion"
GAPS = 32
DIGITS_SHARE = 0.27
"""Of the minutes, for the second part."""
SPARE = {"data": 25.0, "training": 50.0, "baselines": 40.0, "infills": 15.0}
"""Seconds of a stage beside the training steps, on two cores: compiling, scoring, compressing."""

NETWORKS = ((384, 8, 6), (256, 6, 4), (192, 4, 3), (128, 4, 2))
"""Width, depth and heads, largest first."""
TOKENS_PER_PARAMETER = 5
"""Fewer than the 20 that are best for compute alone (Hoffmann et al. 2022): small networks leave more of a processor idle."""
UTILISATION = 0.5

RECIPE = AutoregressiveRecipe(
    data=TextDataConfig(tokenizer=TokenizerConfig(vocabulary=2048), context=256, packing_length=4096),
    model=TransformerConfig(qk_norm=True, init="zero-out"),
    optimizer=OptimizerConfig(kind="muon", lr=3e-3, matrix_lr=0.02),
    schedule=ScheduleConfig(kind="wsd", decay=0.9, final=0.0),
    training=TrainingConfig(log_every=5, save_every=100, keep=1),
    evaluation=EvaluationConfig(tokens=0, draws=2),
    sampler=NextTokenSamplerConfig(length=192, temperature=0.8),
)
"""The autoregressive half, but for the network, which is chosen by the machine's speed; ``twin`` makes the other half from it."""

TITLE = "Two ways to uncover text"
LEAD = """A small language model that writes from left to right, and its twin, a masked diffusion model, that uncovers text in any order.
Both were trained on this machine within minutes on the documentation and the library of the Python that runs here: the same network,
tokenizer, text, order of the text and number of training steps."""
TITLE_WITH_DIGITS = "Text and digits, uncovered"
LEAD_OF_DIGITS = " Below them a third network, trained in the minutes after, uncovers digits out of noise."


def demo(
    directory: Path,
    minutes: float = 10.5,
    recipe: AutoregressiveRecipe = RECIPE,
    pictures: GaussianRecipe | None = None,
    announce: Callable[[str], None] = print,
) -> Path:
    """Train both, evaluate both, then the digits, where what they need is installed; write the page and return its path.

    Args:
        directory: of the demo; what it holds already is not done again.
        minutes: for everything; the networks and the number of training steps follow from the machine's speed. With 0 they are those of
            the recipes.
        recipe: of the autoregressive model.
        pictures: recipe of the digits in the place of the demo's own.
        announce: is told the stage and the time that is left.

    Raises:
        UserError: too few minutes, a directory that holds other runs, or whatever a run can have wrong.
    """
    first, second, third = directory / AUTOREGRESSIVE, directory / MASKED, directory / DIGITS
    if minutes:
        recipe = scaled(recipe, (1 - DIGITS_SHARE) * minutes, first)
    steps = 60 * recipe.training.minutes
    stages = [SPARE["data"], *2 * [SPARE["training"] + steps], SPARE["baselines"], *2 * [SPARE["infills"]]]
    if not (lacking := missing()):
        stages.append(60 * DIGITS_SHARE * minutes)
    began = time.monotonic()

    def stage(number: int, text: str) -> None:
        left = f", about {max(sum(stages[number:]) / 60, 0.1):.1f} min left" if minutes else ""
        announce(f"[{number + 1}/{len(stages)}] {text}{left}")

    stage(0, "reading Python's library and training a tokenizer on it")
    prepared = corpora.prepared(recipe.data)
    stage(1, "training the autoregressive model")
    _trained(recipe, first)
    stage(2, "training the masked-diffusion model")
    _trained(twin(recipe, recipes.load(str(first)).training.steps), second)
    stage(3, "compressing the held-out text with gzip, xz and context models")
    _with_baselines([first, second], recipe, prepared)
    holes = _holes(prepared, recipe.data.context)
    for number, folder in enumerate((first, second), 4):
        stage(number, f"filling holes in functions: {folder.name}")
        _with_infills(folder, holes)
    runs = [RunReport.read(first, 0, "autoregressive"), RunReport.read(second, 1, "masked diffusion")]
    if lacking:
        announce(f"the second part, digits out of noise, is left out: it needs {lacking} (pip install {lacking})")
    else:
        stage(6, "digits out of noise: training, then measuring how far they are from real ones")
        digits(third, pictures or digits_recipe(DIGITS_SHARE * minutes))
        runs.append(RunReport.read(third, 2, "digits"))
    commands = next_commands(directory)
    title, lead = (TITLE, LEAD) if lacking else (TITLE_WITH_DIGITS, LEAD + LEAD_OF_DIGITS)
    page = write(runs, directory / "report.html", title, lead, commands)
    announce(f"done in {(time.monotonic() - began) / 60:.1f} min. The page: {page.resolve().as_uri()}\nNext:")
    announce("\n".join(f"  {command}" for command in commands))
    return page


def scaled(recipe: AutoregressiveRecipe, minutes: float, directory: Path) -> AutoregressiveRecipe:
    """The recipe with its share of the minutes and the largest network that they can feed; the one that ``directory`` began with stays.

    Raises UserError where nothing is left to train with.
    """
    each = (60 * minutes - SPARE["data"] - 2 * SPARE["training"] - SPARE["baselines"] - 2 * SPARE["infills"]) / 2
    if each < 10:
        raise UserError("--minutes", f"got {minutes:g}, which leaves nothing to train with", "give at least 4")
    recipe = replace(recipe, training=replace(recipe.training, minutes=each / 60))
    if (directory / "recipe.toml").exists():
        return replace(recipe, model=recipes.load(str(directory)).model)
    peak = precision.peak_flops(precision.compute_dtype(recipe.training.dtype, device()), device())
    width, depth, heads = network(UTILISATION * peak * each)
    return replace(recipe, model=replace(recipe.model, width=width, depth=depth, heads=heads))


def network(flops: float) -> tuple[int, int, int]:
    """The largest network of ``NETWORKS`` that so much compute feeds with ``TOKENS_PER_PARAMETER``, at 12 x width^2 parameters a layer
    and 6 FLOPs per parameter and token; else the smallest."""
    parameters = (flops / (6 * TOKENS_PER_PARAMETER)) ** 0.5
    return next((size for size in NETWORKS if 12 * size[0] ** 2 * size[1] <= parameters), NETWORKS[-1])


def twin(recipe: AutoregressiveRecipe, steps: int) -> DiscreteRecipe:
    """The masked-diffusion recipe with everything that both families share, for as many steps as the other took."""
    return DiscreteRecipe(
        seed=recipe.seed,
        data=recipe.data,
        model=recipe.model,
        optimizer=recipe.optimizer,
        schedule=recipe.schedule,
        training=replace(recipe.training, steps=steps, minutes=0.0),
        evaluation=recipe.evaluation,
        objective=MaskedConfig(weight="flat", t_min=0.1, t_max=0.9),
        # from an empty page the surest token is a comma, and then the next one: order by confidence is for infilling
        sampler=MaskedSamplerConfig(length=recipe.sampler.length, temperature=recipe.sampler.temperature, order="random"),
    )


def next_commands(directory: Path) -> list[str]:
    """Three things to try, as they can be typed here."""
    beside = Path(sys.executable).with_name("unveil")
    unveil = os.path.relpath(beside) if beside.exists() and shutil.which("unveil") is None else "unveil"
    return [
        f"{unveil} sample {directory / MASKED} --watch --infill 'def area(width, height): return <mask:8>'",
        f"{unveil} sample {directory / AUTOREGRESSIVE} --watch --prompt 'import '",
        f"{unveil} train llada-python --data FOLDER_OF_YOUR_TEXT --training.minutes 20",
    ]


def _trained(recipe: TextRecipe, directory: Path) -> None:
    """The last thing that training leaves is the evidence."""
    if not (directory / "evidence.json").exists():
        train(recipe, directory, resume=True)


def _with_baselines(directories: list[Path], recipe: TextRecipe, prepared: Prepared) -> None:
    found: list[Score] | None = None
    for directory in directories:
        evidence = Evidence.load(directory)
        if not evidence.baselines:
            found = found or baselines(_training_text(prepared), _held_out_text(recipe, prepared))
            replace(evidence, baselines=found).save(directory)


def _training_text(prepared: Prepared) -> bytes:
    stores = prepared.splits["train"]
    return b"".join(prepared.tokenizer.decode_bytes(store.tokens(i)) for store in stores for i in range(len(store)))


def _held_out_text(recipe: TextRecipe, prepared: Prepared) -> bytes:
    """The bytes that the models were scored on, exactly."""
    batches = held_out(prepared, recipe.data, "validation", recipe.evaluation.tokens)
    return b"".join(prepared.tokenizer.decode_bytes(batch.tokens_T[content_T].numpy()) for batch, content_T, *_ in batches)


def _holes(prepared: Prepared, context: int) -> list[Gap]:
    """Gaps in functions of held-out modules that fit into the context with the sentinels of fill-in-the-middle."""
    stores, encode = prepared.splits["validation"], prepared.tokenizer.encode
    modules = ((store, i) for store in stores for i in range(len(store)) if store.name(i).endswith(".py"))
    sources = [(store.name(i), prepared.tokenizer.decode(store.tokens(i))) for store, i in modules]

    def fits(gap: Gap) -> bool:
        text = gap.before + gap.truth + gap.after
        return GAP.search(text) is None and len(encode(gap.before)) + len(encode(gap.truth)) + len(encode(gap.after)) + 4 <= context

    return gaps(sources, GAPS, 0, fits)


def _with_infills(directory: Path, holes: list[Gap]) -> None:
    evidence = Evidence.load(directory)
    if evidence.fillings or not holes:
        return
    run = load(directory)
    filled = [_filled(run, gap) for gap in holes]
    _, shown = max(filled, key=lambda pair: len(set(pair[1].committed_at)))
    replace(evidence, fillings=[filling for filling, _ in filled], views=[*evidence.views, shown]).save(directory)


def _filled(run: Run, gap: Gap) -> tuple[Filling, TokenTimeline]:
    """The most probable filling, of the truth's length in tokens at the most, and how it came."""
    size = len(run.tokenizer.encode(gap.truth))
    if isinstance(run.recipe, DiscreteRecipe):
        run = run.with_sampler(order="confidence")
    *_, last = run.sample(infill=f"{gap.before}<mask:{size}>{gap.after}", temperature=0)
    row = last.rows[0]
    reading = last.canvases[0].reading(len(row.tokens))
    return Filling(gap, last.completion), timeline("A hole in a function, filled", row, run.tokenizer, reading)
