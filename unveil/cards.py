"""Model cards: what a folder that leaves this machine says of itself, in Markdown with the front matter that model hubs read.

The licence is for its owner to choose; figures are those that were measured and recorded, and nothing else.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from unveil import recipe as recipes
from unveil import tasks
from unveil.config import GaussianRecipe, TextRecipe
from unveil.image_run import ImageRun
from unveil.interop import diffusers, text
from unveil.interop.folder import read_json
from unveil.nn import mtp
from unveil.report.evidence import Evidence
from unveil.text_run import TextRun, trained_here

FILE = "README.md"
_ELSEWHERE = "Trained elsewhere: on what, and how, this folder does not say.\n"


def write(folder: Path, card: str) -> None:
    (folder / FILE).write_text(card, encoding="utf-8")


def of_images(run: ImageRun, folder: Path) -> str:
    """The card of a folder that holds the run's model."""
    channels, height, width = run.encoders.pixels(run.shape)
    latent = "" if run.encoders.autoencoder is None else ", decoded from latents of " + " x ".join(map(str, run.shape))
    told = f" It is told one of {len(run.classes)} classes." if run.classes else ""
    objective, theirs = run.recipe.objective, diffusers.recognised(folder)
    size = f"{width} x {height} pixels and {channels} channel{'s' * (channels > 1)}"
    about = f"""Images of {size} out of noise{latent}.{told} The network is a {type(run.model.network).__name__} of
{run.parameters():,} parameters that predicts {objective.predicts} on the path {objective.path.kind}."""
    limits = f"It makes images of the size above, of the kind that it was trained on{' and of these classes alone' if run.classes else ''}."
    return _page(
        folder.name,
        "diffusers" if theirs else "unveil",
        ("image-generation", "diffusion"),
        about,
        f"unveil sample {folder.name}",
        _code(run, folder) if theirs else "",
        _image_training(run.recipe),
        _figures(run),
        limits,
    )


def of_text(run: TextRun, name: str, kind: str) -> str:
    """The card of a language model in the layout of ``kind``, one of ``interop.text.KINDS``."""
    spoken, context = kind in text.AUTOREGRESSIVE, run.recipe.data.context
    how = "token after token" if spoken else "all at once, jump by jump" if kind == text.SCORE else "mask after mask, in any order"
    lines = [
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        f'model = AutoModelForCausalLM.from_pretrained("{name}")',
        f'tokenizer = AutoTokenizer.from_pretrained("{name}")',
        'tokens = tokenizer(tokenizer.bos_token + "...", return_tensors="pt")',
        "print(tokenizer.decode(model.generate(**tokens, do_sample=True, max_new_tokens=100)[0]))",
    ]
    code = "\nWith transformers alone:\n\n```python\n" + "\n".join(lines) + "\n```\n" if spoken else ""
    size = f"{run.parameters() - mtp.parameters(run.model):,} parameters over {run.tokenizer.vocabulary.size:,} tokens"
    about = f"""A language model that writes {how}: a transformer of {size}, with a context of
{context:,}, in the layout of `{kind}`."""
    limits = (
        f"Prompt and answer together hold {context:,} tokens. What it writes is likely in the light of its data, which is not to say true."
    )
    return _page(
        name,
        "transformers" if spoken else "unveil",
        ("text-generation",) if spoken else ("text-generation", "diffusion"),
        about,
        f'unveil sample {name} --prompt "..."',
        code,
        _text_training(run.recipe),
        _figures(run),
        limits,
    )


def _page(
    name: str, library: str, tags: tuple[str, ...], about: str, command: str, code: str, training: str, figures: str, limits: str
) -> str:
    return f"""---
library_name: {library}
tags: [{", ".join(tags)}]
license: # yours to choose, and to be in keeping with that of the data
---
# {name}

{about}

## Use

```sh
{command}
```
{code}
## Training

{training}
## Evaluation

{figures}
## Limits

{limits} Nobody has examined it for what it should not make; whoever puts it to use has to.
"""


def _text_training(recipe: TextRecipe) -> str:
    """How it was trained, without the folders of the machine it was trained on; of a network from elsewhere that nobody here knows."""
    data = recipe.data
    if not trained_here(recipe):
        return _ELSEWHERE
    sources = tuple(source if source.kind == "hub" else replace(source, path=Path(source.path).name) for source in data.sources)
    told = replace(data, sources=sources, tokenizer=replace(data.tokenizer, path=Path(data.tokenizer.path).name), cache="")
    named = [f"`{source.path or source.kind}` ({source.kind}, weight {source.weight:g})" for source in sources]
    training = replace(recipe.training, initial=Path(recipe.training.initial).name)
    return f"Data: {', '.join(named)}.\n\n{_recipe(replace(recipe, data=told, training=training))}"


def _image_training(recipe: GaussianRecipe) -> str:
    data = recipe.data
    if data.kind == "folder" and not data.path:
        return _ELSEWHERE
    named = data.path if data.kind == "hub" else Path(data.path).name
    told = replace(data, path=named, labels=Path(data.labels).name, cache="", autoencoder="", text_encoder="")
    return f"Data: `{named or data.kind}` ({data.kind}).\n\n{_recipe(replace(recipe, data=told))}"


def _recipe(recipe: Any) -> str:
    return f"By unveil, from this recipe:\n\n```toml\n{recipes.dumps(recipe)}```\n"


def _figures(run: TextRun | ImageRun) -> str:
    """What was measured of the run and recorded beside it."""
    found = Evidence.load(run.path)
    lines = []
    if (bits := found.bits) is not None:
        bound = "at most " if found.bound else ""
        lines.append(f"- held-out text: {bound}{bits.content:.4f} ± {bits.stderr:.4f} bits per byte, on {bits.tokens:,} tokens")
    if (headline := found.headline) is not None:
        lines.append(f"- {headline.unit}: {headline.value:.4g}. {headline.note}".rstrip())
    scored = run.path / tasks.RESULTS
    if scored.is_file():
        for name, value in tasks.lines(json.loads(scored.read_text(encoding="utf-8"))):
            lines.append(f"- {name}: {value}")
    return "".join(f"{line}\n" for line in lines) or "Not evaluated.\n"


def _code(run: ImageRun, folder: Path) -> str:
    """The loop over diffusers' own parts; its pipelines take neither every scheduler nor classes."""
    model: Any = run.model
    kind, part = diffusers.kind_of(model.network)
    scheduler = read_json(folder / "scheduler" / diffusers.SCHEDULER, "convert it again")["_class_name"]
    flow = scheduler == "FlowMatchEulerDiscreteScheduler"
    labels = [i % len(run.classes) for i in range(4)] if run.classes else []
    classes = f", class_labels=torch.tensor({labels})" if labels else ""
    lines = [
        "import torch",
        f"from diffusers import {kind}, {scheduler}",
        "",
        f'network = {kind}.from_pretrained("{folder.name}", subfolder="{part}").eval()',
        f'scheduler = {scheduler}.from_pretrained("{folder.name}", subfolder="scheduler")',
        f"scheduler.set_timesteps({run.recipe.sampler.steps})",
        f"x = torch.randn(4, {', '.join(map(str, run.shape))})" + ("" if flow else " * scheduler.init_noise_sigma"),
        "with torch.no_grad():",
        "    for t in scheduler.timesteps:",
        f"        seen = {'x' if flow else 'scheduler.scale_model_input(x, t)'}",
        f"        x = scheduler.step(network(seen, t.expand(4){classes}).sample, t, x).prev_sample",
    ]
    if run.encoders.autoencoder is not None:
        lines[1] += ", AutoencoderKL"
        lines += [
            f'    autoencoder = AutoencoderKL.from_pretrained("{folder.name}", subfolder="{diffusers.AUTOENCODER}").eval()',
            f"    x = autoencoder.decode(x / {run.encoders.autoencoder.scale} + {run.encoders.autoencoder.shift}).sample",
        ]
    return "\nWith diffusers alone:\n\n```python\n" + "\n".join(lines) + "\n```\n"
