"""Models from one form to another, each with its card: images as a folder of diffusers and back, text as transformers reads it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from unveil import recipe as recipes
from unveil.adapters import lora
from unveil.config import AdapterConfig, GaussianRecipe
from unveil.errors import UserError
from unveil.image_run import ImageRun
from unveil.interop import diffusers, text
from unveil.interop.folder import read_json
from unveil.run import load
from unveil.text_run import TextRun
from unveil.training import final

Form = Literal["unveil", "diffusers", "hf"]
CARD = "README.md"


def convert(source: str | Path, destination: str | Path, to: Form | None = None) -> Path:
    """Write the model of ``source`` in the other form (or in the form ``to``); returns the folder, which is made here.

    Raises:
        UserError: as ``unveil.load``; the destination exists; the model has that form already, or is what the other form has no
            class, no scheduler or no setting for.
    """
    source, destination = Path(source), Path(destination)
    if destination.exists():
        raise UserError(str(destination), "exists", "choose another name, or remove it first")
    theirs = diffusers.recognised(source)
    run = load(source)
    ours = not theirs and not text.recognised(source) and not (isinstance(run, TextRun) and run.recipe.adapter.rank)
    if (to == "diffusers" and theirs) or (to == "unveil" and ours):
        raise UserError("--to", f"'{to}' is the form that {source} has already", "copy it, or leave --to out for the other form")
    if isinstance(run, TextRun):
        return _write_text(run, destination, to)
    if not isinstance(run, ImageRun) or to == "hf":
        raise UserError("--to", "'hf' is a form for models of text, this is one of images", "leave it out, or take diffusers")
    if theirs:
        _write_final(run, destination)
    else:
        _write_pipeline(run, destination)
    (destination / CARD).write_text(card(run, destination), encoding="utf-8")
    return destination


def _write_text(run: TextRun, folder: Path, to: Form | None) -> Path:
    """An adapter is merged into its base."""
    if to == "diffusers":
        raise UserError("--to", f"'{to}' is a form for models of images, this is one of text", "leave it out, or take hf")
    trained = run
    if run.recipe.adapter.rank:
        lora.merge(run.model)
        training = replace(run.recipe.training, initial="")
        run = replace(run, recipe=replace(run.recipe, adapter=AdapterConfig(), training=training))
    if to == "unveil":
        folder.mkdir(parents=True)
        run.tokenizer.save(folder / "tokenizer.json")
        final.write(folder, run.model, {"vocabulary": run.tokenizer.vocabulary.size, "recipe": recipes.tables(run.recipe)})
        return folder
    kind = text.write(folder, run.recipe, run.tokenizer, run.model)  # type: ignore[arg-type]
    (folder / CARD).write_text(text_card(trained, folder.name, kind), encoding="utf-8")
    return folder


def _write_final(run: ImageRun, folder: Path) -> None:
    config = {"shape": list(run.shape), "classes": list(run.classes), "recipe": recipes.tables(run.recipe)}
    final.write(folder, run.model, config)
    run.encoders.save(folder)


def _write_pipeline(run: ImageRun, folder: Path) -> None:
    _, height, width = run.shape
    size = height if height == width else (height, width)
    model: Any = run.model
    beside: dict[str, Any] = {"autoencoder": run.encoders.autoencoder, "labels": run.classes}
    diffusers.save(folder, model.denoiser, size, sampler=run.recipe.sampler, **beside)


def card(run: ImageRun, folder: Path) -> str:
    """The model card, in Markdown, of a folder that holds the run's model."""
    channels, height, width = run.encoders.pixels(run.shape)
    latent = "" if run.encoders.autoencoder is None else ", decoded from latents of " + " x ".join(map(str, run.shape))
    told = f" It is told one of {len(run.classes)} classes." if run.classes else ""
    objective, theirs = run.recipe.objective, diffusers.recognised(folder)
    return f"""---
library_name: {"diffusers" if theirs else "unveil"}
tags: [image-generation, diffusion]
---
# {folder.name}

Images of {width} x {height} pixels and {channels} channel{"s" * (channels > 1)} out of noise{latent}.{told} The network is a
{type(run.model.network).__name__} of {run.parameters():,} parameters that predicts {objective.predicts} on the path {objective.path.kind}.

## Use

```sh
unveil sample {folder.name}
```
{_code(run, folder) if theirs else ""}
## Training

{_training(run.recipe)}"""


def text_card(run: TextRun, name: str, kind: str) -> str:
    """The model card of a language model in the layout of ``kind``."""
    spoken = kind in text.AUTOREGRESSIVE
    how = "token after token" if spoken else "mask after mask, in any order"
    lines = ["from transformers import AutoModelForCausalLM, AutoTokenizer", "", f'model = AutoModelForCausalLM.from_pretrained("{name}")']
    lines += [
        f'tokenizer = AutoTokenizer.from_pretrained("{name}")',
        'tokens = tokenizer(tokenizer.bos_token + "...", return_tensors="pt")',
    ]
    lines += ["print(tokenizer.decode(model.generate(**tokens, do_sample=True, max_new_tokens=100)[0]))"]
    code = "\nWith transformers alone:\n\n```python\n" + "\n".join(lines) + "\n```\n" if spoken else ""
    return f"""---
library_name: {"transformers" if spoken else "unveil"}
tags: [text-generation{"" if spoken else ", diffusion"}]
---
# {name}

A language model that writes {how}: a transformer of {run.parameters():,} parameters over {run.tokenizer.vocabulary.size:,} tokens, with a
context of {run.recipe.data.context:,}, in the layout of `{kind}`.

## Use

```sh
unveil sample {name} --prompt "..."
```
{code}
## Training

{_text_training(run)}"""


def _text_training(run: TextRun) -> str:
    """As ``_training``, of text."""
    data = run.recipe.data
    if data.tokenizer.kind == "file" and not any(source.path or source.kind == "python" for source in data.sources):
        return "Trained elsewhere: on what, and how, this folder does not say.\n"
    sources = tuple(replace(source, path=Path(source.path).name) for source in data.sources)
    told = replace(data, sources=sources, tokenizer=replace(data.tokenizer, path=Path(data.tokenizer.path).name), cache="")
    training = replace(run.recipe.training, initial=Path(run.recipe.training.initial).name)
    return f"By unveil, from this recipe:\n\n```toml\n{recipes.dumps(replace(run.recipe, data=told, training=training))}```\n"


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


def _training(recipe: GaussianRecipe) -> str:
    """How it was trained, without the folders of the machine it was trained on; of a network from elsewhere that nobody here knows."""
    data = recipe.data
    if data.kind == "folder" and not data.path:
        return "Trained elsewhere: on what, and how, this folder does not say.\n"
    told = replace(data, path=Path(data.path).name, labels=Path(data.labels).name, cache="", autoencoder="", text_encoder="")
    return f"By unveil, from this recipe:\n\n```toml\n{recipes.dumps(replace(recipe, data=told))}```\n"
