"""Pretrained pipelines of diffusers from a local folder, and ours as such a folder.

``model_index.json`` names the parts; a network is ``config.json`` beside ``diffusion_pytorch_model.safetensors``. Nothing is unpickled,
and diffusers itself is not needed: its networks are ours under other names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from unveil.config import DiTConfig, GaussianSamplerConfig, UNetConfig
from unveil.errors import UserError, nearest
from unveil.gaussian import path as paths
from unveil.gaussian.denoiser import Denoiser
from unveil.interop import dit, sampling, schedulers, unet
from unveil.interop.autoencoder import Autoencoder
from unveil.interop.folder import CONFIG, WEIGHTS, read_json, read_weights, write_json
from unveil.interop.state import Part, exported, imported
from unveil.nn.dit import DiT
from unveil.nn.unet import UNet

INDEX, SCHEDULER, AUTOENCODER = "model_index.json", "scheduler_config.json", "vae"
LABELS = "id2label"
"""In the index of a DiT pipeline."""
NETWORKS = {unet.CLASS: "unet", dit.CLASS: "transformer"}
"""The networks that are read, and the part of a pipeline that each one is."""
PIPELINES = ("DDPMPipeline", "DDIMPipeline", "DiTPipeline")
"""The pipelines that are read."""
_PIPELINE = {unet.CLASS: "DDPMPipeline", dit.CLASS: "DiTPipeline"}


@dataclass(frozen=True)
class Pretrained:
    """A pipeline as it was trained."""

    denoiser: Denoiser
    path: paths.Path
    """The path to sample on: the network's own, with the scheduler's shift of times."""
    shape: tuple[int, int, int] | None
    """Channels, rows, columns of a sample; None where the folder does not say."""
    network: UNet | DiT
    """The denoiser's."""
    scheduler: Mapping[str, Any]
    """The scheduler's config as it stands, for what it says of sampling."""
    autoencoder: Path | None
    """Folder of the autoencoder whose latents these are, for ``interop.autoencoder``."""
    labels: tuple[str, ...]
    """What its classes are called; empty where the folder does not say of each one."""


def load(folder: Path | str) -> Pretrained:
    """A pipeline of ``UNet2DModel`` or ``DiTTransformer2DModel`` with its scheduler.

    The parts lie in folders of their names or, as in files of 2022, all in one; ``model_index.json`` may be missing.

    Raises:
        UserError: a file is missing or corrupted, weights are pickled, a class or a setting is not supported, the config contradicts
            the weights, or the scheduler the network.
    """
    folder = Path(folder)
    parts = _named(folder)
    name = next((name for name in NETWORKS.values() if name in parts), None)
    if name is None:
        raise UserError(
            str(folder / INDEX), f"names {', '.join(parts) or 'nothing'}, but no unet and no transformer", "give a diffusion pipeline"
        )
    if "scheduler" not in parts:
        raise UserError(str(folder / INDEX), "names no scheduler, which says what the network was trained on", "add one")
    network, config = _network(_place(folder, name))
    at = _place(folder, "scheduler") / SCHEDULER
    scheduler = read_json(at, "take the scheduler's folder of the same download too")
    training = schedulers.read(scheduler, str(at), *_channels(network))
    if parts.get("vae", "AutoencoderKL") != "AutoencoderKL":
        raise UserError(str(folder / INDEX), f"the vae is a {parts['vae']}, only AutoencoderKL is supported", "convert another model")
    size = config.get("sample_size")
    rows, columns = size if isinstance(size, list) and len(size) == 2 else (size, size)
    if size is not None and not all(type(side) is int and side > 0 for side in (rows, columns)):
        raise UserError(str(_place(folder, name) / CONFIG), f"sample_size is {size}, no size in pixels", "correct the file")
    return Pretrained(
        training.denoiser(network),
        training.clock or training.path,
        (network.config.in_channels, rows, columns) if rows and columns else None,
        network,
        scheduler,
        folder / AUTOENCODER if AUTOENCODER in parts else None,
        _labels(folder, network.config.classes),
    )


def recognised(folder: Path) -> bool:
    """Whether a folder looks like one for ``load``."""
    return (folder / INDEX).is_file() or any(_beside(folder)) or any(folder.glob(f"{Path(WEIGHTS).stem}*"))


def load_network(folder: Path | str) -> UNet | DiT:
    """A network alone, from the folder that holds its config.json. Raises UserError as ``load``."""
    return _network(Path(folder))[0]


def save(
    folder: Path | str,
    denoiser: Denoiser,
    size: int | Sequence[int] | None = None,
    scheduler: Mapping[str, Any] | None = None,
    sampler: GaussianSamplerConfig | None = None,
    autoencoder: Autoencoder | None = None,
    labels: Sequence[str] = (),
) -> None:
    """Write a pipeline that diffusers reads: the network, and the scheduler that asks it what it was trained on.

    Args:
        folder: made where it does not exist; files of the same names are replaced.
        denoiser: around one of our image networks.
        size: side of a sample in pixels (or latents), or rows and columns, for the config; a DiT knows its own.
        scheduler: a config to write instead of the one that follows from the path (``Pretrained.scheduler``, say).
        sampler: whose solver and grid the scheduler that follows from the path takes over, where it can.
        autoencoder: of a network of latents, to be written beside it.
        labels: what its classes are called.

    Raises:
        UserError: a network, a condition or a training that diffusers does not have, or a scheduler of another training.
    """
    folder, network = Path(folder), denoiser.network
    if not isinstance(network, UNet | DiT):
        raise UserError("model.kind", f"is a {type(network).__name__}", "export a unet or a dit")
    if scheduler is None:
        asks = schedulers.settings(denoiser)
        asks = asks if sampler is None else sampling.scheduler(asks, sampler)
    else:
        asks = schedulers.agreeing(scheduler, denoiser, *_channels(network))
    kind = save_network(folder, network, size)
    write_json(folder / "scheduler" / SCHEDULER, asks)
    index: dict[str, Any] = {
        "_class_name": _PIPELINE[kind],
        NETWORKS[kind]: ["diffusers", kind],
        "scheduler": ["diffusers", asks["_class_name"]],
    }
    if autoencoder is not None:
        autoencoder.save(folder / AUTOENCODER)
        index[AUTOENCODER] = ["diffusers", "AutoencoderKL"]
    elif kind == dit.CLASS:
        index[AUTOENCODER] = [None, None]
    if labels:
        index[LABELS] = {str(i): label for i, label in enumerate(labels)}
    write_json(folder / INDEX, index)


def save_network(folder: Path, network: UNet | DiT, size: int | Sequence[int] | None) -> str:
    """Config and weights of one network into the pipeline's folder of its kind; the name of its class there."""
    kind, part = kind_of(network)
    config = unet.settings(network.config, size) if isinstance(network, UNet) else dit.settings(network.config, size)
    place = folder / part
    write_json(place / CONFIG, config)
    state = {name: tensor.cpu().contiguous().clone() for name, tensor in exported(network, _parts(network)).items()}
    save_file(state, place / WEIGHTS, metadata={"format": "pt"})
    return kind


def _named(folder: Path) -> dict[str, str]:
    """The parts of a pipeline with their classes; without an index those that lie there."""
    if not (folder / INDEX).is_file() and recognised(folder):
        named = read_json(folder / CONFIG, "take it too").get("_class_name") if not _beside(folder) else None
        found = _beside(folder) or [NETWORKS.get(str(named), "unet")]
        return dict.fromkeys(["scheduler", *found], "") | ({"vae": "AutoencoderKL"} if (folder / "vae").is_dir() else {})
    index = read_json(folder / INDEX, "give the folder of a pipeline, as save_pretrained writes it")
    kind = index.get("_class_name", PIPELINES[0])
    if kind not in PIPELINES:
        raise UserError(str(folder / INDEX), f"_class_name is '{kind}', a pipeline that is not read here", nearest(str(kind), PIPELINES))
    return {name: part[1] for name, part in index.items() if isinstance(part, list) and len(part) == 2 and part[1]}


def _labels(folder: Path, classes: int) -> tuple[str, ...]:
    index = read_json(folder / INDEX, "take it too") if (folder / INDEX).is_file() else {}
    found, numbers = index.get(LABELS), [str(i) for i in range(classes)]
    return tuple(str(found[i]) for i in numbers) if isinstance(found, dict) and found.keys() == set(numbers) else ()


def _beside(folder: Path) -> list[str]:
    """The networks that have a folder of their own."""
    return [name for name in NETWORKS.values() if (folder / name).is_dir()]


def _place(folder: Path, part: str) -> Path:
    return folder / part if (folder / part).is_dir() else folder


def kind_of(network: UNet | DiT) -> tuple[str, str]:
    """The name of its class there, and of the part of a pipeline that it is."""
    kind = unet.CLASS if isinstance(network, UNet) else dit.CLASS
    return kind, NETWORKS[kind]


def _network(folder: Path) -> tuple[UNet | DiT, dict[str, Any]]:
    source = str(folder / CONFIG)
    config = read_json(folder / CONFIG, "give the folder of a network, as save_pretrained writes it")
    kind = config.get("_class_name")
    if kind not in NETWORKS:
        raise UserError(source, f"_class_name is '{kind}', a network that is not read here", nearest(str(kind), NETWORKS))
    found = (unet if kind == unet.CLASS else dit).renamed(read_weights(folder))
    ours = unet.config(config, source) if kind == unet.CLASS else dit.config(config, found, source)
    try:
        network = _built(ours)
    except (ValueError, TypeError) as error:
        raise UserError(source, f"its settings make no network ({error})", "take the file of the same download as the weights") from None
    if any(tensor.dtype == torch.float64 for tensor in found.values()):
        network.double()
    imported(network, _parts(network), found, str(folder / WEIGHTS))
    return network.eval(), config


def _built(config: UNetConfig | DiTConfig) -> UNet | DiT:
    return UNet(config) if isinstance(config, UNetConfig) else DiT(config)


def _channels(network: UNet | DiT) -> tuple[int, int]:
    """In and out."""
    return network.config.in_channels, network.config.out_channels or network.config.in_channels


def _parts(network: UNet | DiT) -> list[Part]:
    return unet.parts(network) if isinstance(network, UNet) else dit.parts(network)
