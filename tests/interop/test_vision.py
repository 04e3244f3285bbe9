from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from unveil.config_streams import StreamDataConfig
from unveil.data.split import Split
from unveil.data.sprites import CHUNK, CLASSES, FRAME_RATE, sprites
from unveil.data.stream_features import About, Recording, open_recordings, write_recordings
from unveil.data.stream_loader import held_out_windows
from unveil.data.video import chunks, frames, write_video
from unveil.errors import UserError
from unveil.interop.vision import VisionEncoder, chunk_features

transformers = pytest.importorskip("transformers")
Array = np.ndarray[Any, Any]


@pytest.fixture(scope="session")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folder of a small backbone of this kind."""
    layers = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "patch_size": 8}

    @cache
    def folder(kind: str) -> Path:
        torch.manual_seed(0)
        place = tmp_path_factory.mktemp(kind)
        model: Any
        if kind == "resnet":
            sizes = {"embedding_size": 8, "hidden_sizes": [8, 12], "depths": [1, 1], "layer_type": "basic"}
            model = transformers.ResNetModel(transformers.ResNetConfig(**sizes))
            (place / "preprocessor_config.json").write_text(json.dumps({"crop_size": {"height": 32}, "image_mean": [0.5, 0.5, 0.5]}))
        elif kind == "dinov2":
            model = transformers.Dinov2Model(transformers.Dinov2Config(**layers, image_size=32))
        elif kind == "videomae":
            model = transformers.VideoMAEModel(transformers.VideoMAEConfig(**layers, image_size=32, num_frames=8))
        else:
            model = transformers.TimesformerModel(transformers.TimesformerConfig(**layers, image_size=32, num_frames=8))
        model.save_pretrained(place)
        return place

    return folder


def video(length: int = 5) -> Array:
    return np.random.default_rng(0).integers(0, 256, (length, 6, 20, 24, 3), dtype=np.uint8)


@pytest.mark.parametrize(("kind", "width", "clip"), [("resnet", 12, 0), ("dinov2", 16, 0), ("videomae", 16, 8), ("timesformer", 16, 8)])
def test_a_feature_depends_on_the_newest_frames_alone(backbone: Callable[[str], Path], kind: str, width: int, clip: int) -> None:
    encoder = VisionEncoder(backbone(kind))
    assert (encoder.width, encoder.clip) == (width, clip)
    shown = video()
    found = chunk_features(encoder, shown, batch=2)
    assert found.shape == (5, width) and found.dtype == np.float32 and np.isfinite(found).all()
    later = shown.copy()
    later[3:] = 255 - later[3:]
    changed = np.abs(chunk_features(encoder, later) - found).max(1)
    assert changed[:3].max() < 1e-5 and changed[3:].min() > 1e-4  # a clip centred on chunk 2 would have moved it
    newest = shown.copy()
    newest[2, -1] = 255 - newest[2, -1]
    changed = np.abs(chunk_features(encoder, newest) - found).max(1)
    assert changed[2] > 1e-4 and (changed[3] > 1e-4) == bool(clip) and changed[[0, 1, 4]].max() < 1e-5  # clips of 8 reach 2 frames back


def test_a_frame_is_encoded_as_transformers_does(backbone: Callable[[str], Path]) -> None:
    frame = np.random.default_rng(1).integers(0, 256, (1, 1, 32, 32, 3), dtype=np.uint8)
    model = transformers.ResNetModel.from_pretrained(backbone("resnet")).eval()
    std = torch.tensor((0.229, 0.224, 0.225))
    pixels = (torch.from_numpy(frame[0]).float() / 255 - 0.5) / std
    with torch.no_grad():
        wanted = model(pixel_values=pixels.permute(0, 3, 1, 2)).pooler_output[:, :, 0, 0]
    torch.testing.assert_close(VisionEncoder(backbone("resnet")).encode(frame), wanted, atol=1e-5, rtol=1e-5)


def test_the_first_clip_repeats_the_first_frame(backbone: Callable[[str], Path]) -> None:
    encoder, shown = VisionEncoder(backbone("videomae")), video(1)
    clip = np.concatenate([shown[0, :1], shown[0, :1], shown[0]])[None]
    np.testing.assert_allclose(chunk_features(encoder, shown), encoder.encode(clip), atol=1e-6)


def test_the_digest_is_of_weights_and_pixels(backbone: Callable[[str], Path], tmp_path: Path) -> None:
    source = backbone("resnet")
    state = load_file(source / "model.safetensors")
    name = next(n for n, v in state.items() if v.is_floating_point())

    def copy(folder: Path, added: float, side: int) -> str:
        folder.mkdir()
        (folder / "config.json").write_bytes((source / "config.json").read_bytes())
        (folder / "preprocessor_config.json").write_text(json.dumps({"crop_size": side, "image_mean": [0.5, 0.5, 0.5]}))
        save_file({**state, name: state[name] + added}, folder / "model.safetensors", {"format": "pt"})
        return VisionEncoder(folder).digest

    same, weights, pixels = copy(tmp_path / "a", 0, 32), copy(tmp_path / "b", 1, 32), copy(tmp_path / "c", 0, 64)
    assert same == VisionEncoder(source).digest and len({same, weights, pixels}) == 3


def test_from_video_to_a_batch(backbone: Callable[[str], Path], tmp_path: Path) -> None:
    pytest.importorskip("av")
    encoder = VisionEncoder(backbone("videomae"))
    about = About(CLASSES, (), FRAME_RATE, CHUNK, "videomae", encoder.digest)
    streams: list[tuple[Split, Recording]] = []
    for i in range(2):
        shown = sprites("train", i, chunks=9)
        write_video(tmp_path / f"{i}.mp4", shown.frames)
        features = chunk_features(encoder, chunks(frames(tmp_path / f"{i}.mp4", FRAME_RATE), CHUNK))
        assert len(features) == len(shown.labels) == 9
        streams.append(("train", Recording(f"{i}", features, shown.labels)))
        exact = chunk_features(encoder, shown.frames.reshape(9, CHUNK, 64, 64, 3))
        near, far = np.abs(features - exact).mean(), np.abs(features - exact[::-1]).mean()
        assert near < 0.5 * far  # what compression does is small beside what happens
    write_recordings(tmp_path / "features", about, streams)
    clips = next(held_out_windows(open_recordings(tmp_path / "features"), "train", StreamDataConfig(batch=18), steps=4, horizon=2))
    assert clips.lengths == [1, 2, 3, 4, 4, 4, 4, 4, 4] * 2 and clips.features_TF.shape[1] == encoder.width
    assert clips.present_N.tolist() == [int(label) for _, r in streams for label in r.labels_T]


def test_what_is_no_backbone_is_refused(backbone: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.json"):
        VisionEncoder(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}), encoding="utf-8")
    with pytest.raises(UserError, match="model_type is 'bert'"):
        VisionEncoder(tmp_path)
    (tmp_path / "config.json").write_bytes((backbone("dinov2") / "config.json").read_bytes())
    with pytest.raises(UserError, match="does not load"):
        VisionEncoder(tmp_path)
    state = load_file(backbone("dinov2") / "model.safetensors")
    del state[sorted(state)[0]]
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="missing keys"):
        VisionEncoder(tmp_path)
