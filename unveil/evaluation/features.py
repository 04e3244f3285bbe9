"""What images are compared by: the features of a small classifier of the same data, or Inception's where a person has its weights.

Distances in features of different networks do not compare, so whoever states one states the features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from unveil.data.images import levels, normalised
from unveil.data.pixels import PreparedImages
from unveil.errors import UserError

WIDTH = 64
STEPS, BATCH, RATE = 600, 128, 3e-3
FORMAT = "1"
"""Of the cached weights; rises when the network or its training changes, for then its features do."""


@dataclass(frozen=True)
class Features:
    """Images ``[N, C, H, W]`` in [-1, 1] to features ``[N, D]``."""

    name: str
    """What they are, with the classifier's accuracy on held-out images."""
    extract: Callable[[Tensor], Tensor]
    accuracy: float = float("nan")

    @torch.no_grad()
    def __call__(self, x_NCHW: Tensor, batch: int = 500) -> np.ndarray[Any, Any]:
        """Of as many images as one likes. Values are rounded to the 256 levels first: what is compared is what would be stored."""
        rounded = levels(x_NCHW).float() / 127.5 - 1
        return np.concatenate([self.extract(part).cpu().numpy() for part in rounded.split(batch)])


class Classifier(nn.Module):
    """Three convolutions, each at half the resolution of the one before, and two linear maps; 64 features between them."""

    def __init__(self, channels: int, height: int, width: int, classes: int) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(
            [nn.Conv2d(channels, 32, 3, padding=1), nn.Conv2d(32, 64, 3, 2, padding=1), nn.Conv2d(64, 64, 3, 2, padding=1)]
        )
        self.hidden = nn.Linear(64 * -(-height // 4) * -(-width // 4), WIDTH)
        self.head = nn.Linear(WIDTH, classes)

    def features(self, x: Tensor) -> Tensor:
        for convolution in self.convolutions:
            x = F.relu(convolution(x))
        return F.relu(self.hidden(x.flatten(1)))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


def of_classifier(prepared: PreparedImages) -> Features:
    """A classifier trained on the training part, now (seconds) or found beside the prepared images; the same for the same images.

    Raises UserError where the images have no labels or only one.
    """
    store, (train, held) = prepared.store, (prepared.parts["train"], prepared.parts["validation"])
    if len(prepared.classes) < 2 or (store.labels < 0).any():
        raise UserError(
            "data.labels", "these images have no classes to train a feature network on", "give labels, or --inception with its weights"
        )
    model = Classifier(*prepared.shape, len(prepared.classes))
    path = prepared.folder / f"features-{len(held)}.safetensors"
    accuracy = _cached(path, model)
    if accuracy is None:
        model = _trained(model, *_tensors(prepared, train))
        x, y = _tensors(prepared, held if len(held) else train)
        accuracy = float((_predicted(model, x) == y).float().mean())
        aside = path.with_suffix(".tmp")
        save_file(dict(model.state_dict()), aside, {"format": FORMAT, "accuracy": repr(accuracy)})
        aside.replace(path)
    judged = f"{len(held):,} held out" if len(held) else "those it was trained on"
    name = f"a classifier of these images ({accuracy:.1%} right on {judged})"
    return Features(name, model.eval().features, accuracy)


def of_inception(path: str) -> Features:
    """Inception v3's 2048 pooled features from a TorchScript file that takes uint8 RGB images and ``return_features=True`` (the one that
    the published FIDs of the EDM family used). Raises UserError for a file that is none."""
    try:
        network = torch.jit.load(path, map_location="cpu").eval()
    except (RuntimeError, ValueError, OSError) as error:
        problem = f"cannot be read as TorchScript ({str(error).splitlines()[0]})" if Path(path).is_file() else "there is no such file"
        raise UserError("--inception", f"{path}: {problem}", "give inception-2015-12-05.pt") from error

    def extract(x: Tensor) -> Tensor:
        return network(levels(x.expand(-1, 3, -1, -1) if x.shape[1] == 1 else x), return_features=True)

    return Features("Inception v3", extract)


def _cached(path: Path, model: Classifier) -> float | None:
    """The accuracy of the weights at ``path``, once they are in ``model``; None where they are to be made."""
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if metadata.get("format") != FORMAT:
            return None
        model.load_state_dict(weights)
        return float(metadata["accuracy"])
    except (SafetensorError, RuntimeError, KeyError, ValueError) as error:
        raise UserError(str(path), f"is damaged ({str(error).splitlines()[0]})", "delete it; it is made again") from error


def _tensors(prepared: PreparedImages, index: np.ndarray[Any, Any]) -> tuple[Tensor, Tensor]:
    pixels = np.stack([prepared.store[int(i)] for i in index])
    return torch.from_numpy(normalised(pixels)), torch.from_numpy(prepared.store.labels[index])


def _trained(model: Classifier, x: Tensor, y: Tensor) -> Classifier:
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(0)
        for layer in model.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                layer.reset_parameters()
        optimizer = torch.optim.AdamW(model.parameters(), RATE, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, STEPS)
        for _ in range(STEPS):
            index = torch.randint(len(x), (BATCH,))
            optimizer.zero_grad()
            F.cross_entropy(model(x[index]), y[index], label_smoothing=0.05).backward()
            optimizer.step()
            schedule.step()
    return model


@torch.no_grad()
def _predicted(model: Classifier, x: Tensor) -> Tensor:
    return torch.cat([model(part).argmax(1) for part in x.split(500)])
