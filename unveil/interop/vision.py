"""Frames to features by a vision backbone of transformers from a local folder.

ResNet and DINOv2 see a frame, VideoMAE and TimeSformer a clip. A chunk's feature is of the newest frames only: of its last frame, or of
the clip that ends with it. A clip centred on the chunk would show the future, and give scores that no camera can reach.
"""

from __future__ import annotations

import importlib
from collections import deque
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from unveil.errors import UserError
from unveil.interop.folder import CONFIG, digest, read_json

CLASSES = {"resnet": "ResNetModel", "dinov2": "Dinov2Model", "videomae": "VideoMAEModel", "timesformer": "TimesformerModel"}
"""What is read, by the ``model_type`` of its config."""
PREPROCESSOR = "preprocessor_config.json"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet, for a folder that does not say."""
SIDE = 224
"""Pixels, for a network of any size whose folder does not say."""

Array = np.ndarray[Any, Any]


class VisionEncoder:
    """A backbone and what its pixels are.

    Frames are scaled to the square that it was trained on, whatever their shape, and normalised by the folder's mean and deviation.

    Args:
        folder: as it saved itself: config.json and safetensors, the image processor's preprocessor_config.json beside them.
        device: where it runs.

    Raises:
        UserError: transformers is not installed; the folder holds another kind of network, or weights that are missing or pickled.
    """

    def __init__(self, folder: Path | str, device: torch.device | str = "cpu") -> None:
        self._model, kind = _load(Path(folder))
        self._model.to(device).eval().requires_grad_(False)
        config = self._model.config
        self.clip: int = config.num_frames if kind in ("videomae", "timesformer") else 0
        """Frames that a feature is of; 0 for one frame and no clip."""
        self.width: int = config.hidden_sizes[-1] if kind == "resnet" else config.hidden_size
        """Of a feature."""
        said = read_json(Path(folder) / PREPROCESSOR, "save the image processor again") if (Path(folder) / PREPROCESSOR).is_file() else {}
        self._side = int(getattr(config, "image_size", 0) or _side(said))
        self._mean, self._std = (torch.tensor(said.get(key, value)) for key, value in (("image_mean", MEAN), ("image_std", STD)))

    @torch.inference_mode()
    def encode(self, clips: Array) -> Tensor:
        """Float32 ``[N, width]`` of uint8 ``[N, frames, H, W, 3]``: one frame, or ``clip``."""
        count, length = clips.shape[:2]
        x = torch.from_numpy(clips.reshape(-1, *clips.shape[2:])).permute(0, 3, 1, 2).float() / 255
        x = interpolate(x, (self._side, self._side), mode="bilinear", antialias=True, align_corners=False)
        x = ((x - self._mean[:, None, None]) / self._std[:, None, None]).to(self._model.device, self._model.dtype)
        if self.clip:
            return self._model(pixel_values=x.unflatten(0, (count, length))).last_hidden_state.mean(1).float().cpu()
        return self._model(pixel_values=x).pooler_output.flatten(1).float().cpu()

    @cached_property
    def digest(self) -> str:
        """Of settings, weights, and what is done to the pixels."""
        settings = self._model.config.to_dict() | {"pixels": [self._side, self._mean.tolist(), self._std.tolist()]}
        settings.pop("transformers_version", None)
        return digest(settings, self._model.state_dict())


def chunk_features(encoder: VisionEncoder, chunks: Iterable[Array], batch: int = 16) -> Array:
    """Float32 ``[T, width]``, a row for each chunk uint8 ``[frames, H, W, 3]`` in their order.

    A clip reaches back over as many chunks as it needs; at the beginning of a video its first frame stands in for those before it. Raises
    ValueError for no chunks.
    """
    recent: deque[Array] = deque(maxlen=encoder.clip or 1)
    waiting: list[Array] = []
    done: list[Tensor] = []
    for chunk in chunks:
        if not recent:
            recent.extend([chunk[0]] * (recent.maxlen or 1))
        recent.extend(chunk)
        waiting.append(np.stack(recent))
        if len(waiting) == batch:
            done.append(encoder.encode(np.stack(waiting)))
            waiting = []
    if waiting:
        done.append(encoder.encode(np.stack(waiting)))
    if not done:
        raise ValueError("no chunks")
    return torch.cat(done).numpy()


def _side(said: dict[str, Any]) -> int:
    """Of the square that an image processor makes."""
    size = said.get("crop_size") or said.get("size") or SIDE
    return int(size if isinstance(size, int) else size.get("height") or size.get("shortest_edge") or SIDE)


def _load(folder: Path) -> tuple[Any, str]:
    try:
        transformers = importlib.import_module("transformers")
    except ImportError:
        raise UserError("transformers", "is not installed, and the backbone is its own", "pip install transformers") from None
    wanted = "give the folder of a " + ", a ".join(CLASSES.values())
    kind = read_json(folder / CONFIG, wanted).get("model_type")
    if kind not in CLASSES:
        raise UserError(str(folder / CONFIG), f"model_type is '{kind}', a network that is not read here", wanted)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    remedy = "take the whole download of one model, with its safetensors"
    try:
        model, report = getattr(transformers, CLASSES[kind]).from_pretrained(
            folder, local_files_only=True, use_safetensors=True, dtype=torch.float32, output_loading_info=True
        )
    except Exception as error:  # whatever it raises for a missing, truncated or misshapen file
        raise UserError(str(folder), f"does not load ({(str(error) or type(error).__name__).splitlines()[0]})", remedy) from None
    if report["missing_keys"]:
        raise UserError(str(folder), f"missing keys in its weights, such as '{sorted(report['missing_keys'])[0]}'", remedy)
    return model, kind
