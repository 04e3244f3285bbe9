"""Pipelines of diffusers: the same numbers from the same files, the same files back, and what is refused."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

pytest.importorskip("diffusers")

import diffusers

from unveil.config import DiTConfig, UNetConfig
from unveil.errors import UserError
from unveil.gaussian.denoiser import Denoiser
from unveil.gaussian.path import DDPM, EDM
from unveil.interop.diffusers import load, load_network, save, save_network
from unveil.interop.folder import WEIGHTS
from unveil.nn.dit import DiT
from unveil.nn.unet import UNet

Make = Callable[..., Any]
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
TIMES = torch.tensor([3.0, 977.5])

PLAIN = UNetConfig(in_channels=1, channels=(16,), attention=("none",), head_width=16)

UNETS: dict[str, dict[str, Any]] = {
    "plain": {},
    "one level": {"block_out_channels": (16,), "down_block_types": ("AttnDownBlock2D",), "up_block_types": ("UpBlock2D",)},
    "deep": {
        "block_out_channels": (8, 16, 24),
        "layers_per_block": 2,
        "attention_head_dim": None,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D"),
    },
    "ddpm": {"downsample_padding": 0, "freq_shift": 1, "flip_sin_to_cos": False, "norm_eps": 1e-6},
    "adm": {
        "resnet_time_scale_shift": "scale_shift",
        "downsample_type": "resnet",
        "upsample_type": "resnet",
        "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
        "num_class_embeds": 4,
        "out_channels": 6,
    },
    "scale-shift, normed middle": {"resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": 4},
    "no attention": {"add_attention": False, "time_embedding_dim": 24, "dropout": 0.1},
    "no middle": {"mid_block_type": None},
}


def written(model: Any, folder: Path) -> Path:
    """A pipeline folder of one model."""
    name = "unet" if isinstance(model, diffusers.UNet2DModel) else "transformer"
    model.save_pretrained(folder / name)
    diffusers.DDPMScheduler(variance_type="learned_range" if model.config.out_channels == 6 else "fixed_small").save_pretrained(
        folder / "scheduler"
    )
    index = {name: ["diffusers", type(model).__name__], "scheduler": ["diffusers", "DDPMScheduler"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def classes(model: Any) -> torch.Tensor | None:
    return torch.tensor([1, 3]) if model.config.get("num_class_embeds") or model.config.get("num_embeds_ada_norm") else None


def changed(path: Path, **settings: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", UNETS)
def test_a_unet_says_the_same(name: str, dtype: torch.dtype, unet: Make, tmp_path: Path) -> None:
    theirs = unet(**UNETS[name]).to(dtype)
    ours = load(written(theirs, tmp_path)).denoiser.network
    x = torch.randn(2, 3, 8, 16, dtype=dtype)
    expected = theirs(x, TIMES, classes(theirs)).sample
    torch.testing.assert_close(ours(x, TIMES, classes(theirs)), expected, rtol=0, atol=TOLERANCE[dtype] * float(expected.abs().max()))


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("size", [8, 12])
def test_a_dit_says_the_same(size: int, dtype: torch.dtype, dit: Make, tmp_path: Path) -> None:
    theirs = dit(norm_eps=1e-3, out_channels=6).to(dtype)
    ours = load(written(theirs, tmp_path)).denoiser.network
    x = torch.randn(2, 3, size, size, dtype=dtype)
    expected = theirs(x, TIMES, classes(theirs)).sample
    torch.testing.assert_close(ours(x, TIMES, classes(theirs)), expected, rtol=0, atol=TOLERANCE[dtype] * float(expected.abs().max()))


def same_files(ours: Path, theirs: Path) -> None:
    found, wanted = load_file(ours / WEIGHTS), load_file(theirs / WEIGHTS)
    assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("name", UNETS)
def test_a_unet_goes_back_as_it_came(name: str, unet: Make, tmp_path: Path) -> None:
    theirs = unet(**UNETS[name])
    got = load(written(theirs, tmp_path / "theirs"))
    save(tmp_path / "ours", got.denoiser, size=8)
    same_files(tmp_path / "ours" / "unet", tmp_path / "theirs" / "unet")
    again = diffusers.UNet2DModel.from_pretrained(tmp_path / "ours" / "unet").eval()
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(again(x, TIMES, classes(theirs)).sample, theirs(x, TIMES, classes(theirs)).sample)
    back = load(tmp_path / "ours")
    assert back.denoiser.network.config == got.denoiser.network.config and back.denoiser.path == got.denoiser.path
    assert back.shape == got.shape == (3, 8, 8)


def test_a_size_that_is_no_square_goes_back_too(unet: Make, tmp_path: Path) -> None:
    got = load(written(unet(sample_size=(8, 16)), tmp_path / "theirs"))
    save(tmp_path / "ours", got.denoiser, size=(8, 16))
    assert load(tmp_path / "ours").shape == got.shape == (3, 8, 16)
    diffusers.UNet2DModel.from_pretrained(tmp_path / "ours" / "unet")


def test_a_dit_goes_back_as_it_came(dit: Make, tmp_path: Path) -> None:
    theirs = dit()
    save(tmp_path / "ours", load(written(theirs, tmp_path / "theirs")).denoiser)
    same_files(tmp_path / "ours" / "transformer", tmp_path / "theirs" / "transformer")
    diffusers.DiTTransformer2DModel.from_pretrained(tmp_path / "ours" / "transformer")


def test_equal_embedders_are_kept_once_and_written_out_again(dit: Make, tmp_path: Path) -> None:
    theirs = dit()
    theirs.transformer_blocks[1].norm1.emb.load_state_dict(theirs.transformer_blocks[0].norm1.emb.state_dict())
    got = load(written(theirs, tmp_path / "theirs")).denoiser
    assert len(got.network.condition) == 1
    x = torch.randn(2, 3, 8, 8)
    expected = theirs(x, TIMES, classes(theirs)).sample
    torch.testing.assert_close(got.network(x, TIMES, classes(theirs)), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    save(tmp_path / "ours", got)
    same_files(tmp_path / "ours" / "transformer", tmp_path / "theirs" / "transformer")


def test_our_own_network_is_theirs(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = UNetConfig(in_channels=1, out_channels=1, channels=(16, 32), attention=("none", "down"), layers=1, head_width=8, classes=3)
    network = UNet(config)
    for p in network.parameters():
        torch.nn.init.normal_(p, std=0.2)
    save(tmp_path, Denoiser(network, "F", EDM(), "edm"), size=8)
    theirs = diffusers.DDPMPipeline.from_pretrained(tmp_path)
    assert isinstance(theirs.scheduler, diffusers.EDMEulerScheduler)
    x, told = torch.randn(2, 1, 8, 8), torch.tensor([0, 3])
    torch.testing.assert_close(theirs.unet(x, TIMES, told).sample, network(x, TIMES, told), rtol=0, atol=1e-4)
    assert load(tmp_path).denoiser.network.config == config  # their file says which class is the null class


def test_diffusers_is_not_needed(unet: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = written(unet(), tmp_path)
    for name in [name for name in sys.modules if name.split(".")[0] == "diffusers"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    save(tmp_path / "ours", load(folder).denoiser)


def test_a_latent_pipeline_names_its_autoencoder(dit: Make, tmp_path: Path) -> None:
    folder = written(dit(), tmp_path)
    assert load(folder).autoencoder is None
    changed(folder / "model_index.json", vae=["diffusers", "AutoencoderKL"])
    assert load(folder).autoencoder == folder / "vae"


def test_attention_under_the_names_of_2022(unet: Make, tmp_path: Path) -> None:
    place = written(unet(), tmp_path) / "unet"
    new = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    state = load_file(place / WEIGHTS)
    expected = load_network(place)
    for name, old in new.items():
        state = {key.replace(name, old): value for key, value in state.items()}
    save_file(state, place / WEIGHTS)
    found = load_network(place)
    assert all(torch.equal(a, b) for a, b in zip(found.parameters(), expected.parameters(), strict=True))


def test_weights_in_shards(unet: Make, tmp_path: Path) -> None:
    theirs = unet()
    theirs.save_pretrained(tmp_path / "whole")
    theirs.save_pretrained(tmp_path / "cut", max_shard_size="50KB")
    assert not (tmp_path / "cut" / WEIGHTS).exists()
    whole, cut = load_network(tmp_path / "whole"), load_network(tmp_path / "cut")
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), cut.parameters(), strict=True))


def test_half_precision_files_become_float32_masters(unet: Make, tmp_path: Path) -> None:
    unet().half().save_pretrained(tmp_path)
    assert {p.dtype for p in load_network(tmp_path).parameters()} == {torch.float32}


# What is refused -------------------------------------------------------------------------------------------------------------


def refused(folder: Path, *parts: str) -> None:
    with pytest.raises(UserError) as error:
        load(folder)
    assert "\n" not in str(error.value)
    for part in parts:
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({"time_embedding_type": "fourier"}, "time_embedding_type is 'fourier', only 'positional' is supported"),
        ({"center_input_sample": True}, "center_input_sample is true, only false"),
        ({"mid_block_scale_factor": 1.4}, "mid_block_scale_factor is 1.4"),
        ({"act_fn": "gelu"}, "act_fn is 'gelu', only 'silu' or 'swish'"),
        ({"class_embed_type": "timestep"}, "class_embed_type is 'timestep', only null"),
        ({"attn_norm_num_groups": 8}, "attn_norm_num_groups is 8, only null or 4"),
        ({"down_block_types": ["DownBlock2D", "AttnSkipDownBlock2D"]}, "AttnSkipDownBlock2D"),
        ({"down_block_types": ["ResnetDownsampleBlock2D", "AttnDownBlock2D", "DownBlock2D"]}, "want as many"),
        ({"downsample_padding": 2}, "downsample_padding is 2, only 0 or 1"),
        ({"norm_num_groups": None}, "norm_num_groups is null, a whole number above 0"),
        ({"norm_num_groups": 5, "attn_norm_num_groups": None}, "16 channels do not fall into 5 groups"),
        ({"attention_head_dim": 5}, "32 channels are no multiple of heads of 5"),
        ({"encoder_hid_dim": 77}, "encoder_hid_dim is 77, no such setting"),
        ({"_class_name": "UNet2DConditionModel"}, "UNet2DConditionModel"),
    ],
)
def test_settings_of_a_unet_that_ours_does_not_have(given: dict[str, Any], wanted: str, unet: Make, tmp_path: Path) -> None:
    folder = written(unet(), tmp_path)
    changed(folder / "unet" / "config.json", **given)
    refused(folder, str(Path("unet") / "config.json"), wanted)


def test_levels_that_change_resolution_in_two_ways(unet: Make, tmp_path: Path) -> None:
    folder = written(unet(), tmp_path)
    three = {"block_out_channels": [16, 16, 32], "downsample_type": "resnet", "up_block_types": ["UpBlock2D"] * 3}
    changed(folder / "unet" / "config.json", **three, down_block_types=["DownBlock2D", "AttnDownBlock2D", "DownBlock2D"])
    refused(folder, "down_block_types", "two ways")


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({"attention_bias": False}, "attention_bias is false"),
        ({"activation_fn": "geglu"}, "activation_fn is 'geglu'"),
        ({"norm_type": "ada_norm"}, "norm_type is 'ada_norm'"),
        ({"norm_elementwise_affine": True}, "norm_elementwise_affine is true"),
        ({"sample_size": 9}, "its settings make no network"),
    ],
)
def test_settings_of_a_dit_that_ours_does_not_have(given: dict[str, Any], wanted: str, dit: Make, tmp_path: Path) -> None:
    folder = written(dit(), tmp_path)
    changed(folder / "transformer" / "config.json", **given)
    refused(folder, str(Path("transformer") / "config.json"), wanted)


@pytest.mark.parametrize("kind", ["missing", "extra", "misshapen"])
def test_weights_that_contradict_the_config(kind: str, unet: Make, tmp_path: Path) -> None:
    folder = written(unet(), tmp_path)
    state, name = load_file(folder / "unet" / WEIGHTS), "mid_block.resnets.0.conv1.weight"
    if kind == "missing":
        del state[name]
    elif kind == "extra":
        state["mid_block.resnets.2.conv1.weight"] = state[name].clone()
    else:
        state[name] = state[name][:, :16].contiguous()
    save_file(state, folder / "unet" / WEIGHTS)
    told = {"missing": "is missing", "extra": "resnets.2", "misshapen": "shape [32, 16, 3, 3], wanted [32, 32, 3, 3]"}[kind]
    refused(folder, WEIGHTS, told, "config.json")


def test_a_config_that_contradicts_its_weights(unet: Make, tmp_path: Path) -> None:
    folder = written(unet(), tmp_path)
    changed(folder / "unet" / "config.json", block_out_channels=[16, 64])
    refused(folder, WEIGHTS, "wanted", "by the config.json beside it")


@pytest.mark.parametrize(
    ("break_it", "wanted"),
    [
        (lambda f: [p.rename(p.with_name(f"a-{p.name}")) for p in list(f.iterdir())], ["model_index.json", "is missing"]),
        (lambda f: (f / "model_index.json").write_text("{"), ["model_index.json", "is no JSON"]),
        (lambda f: (f / "model_index.json").write_text("[]"), ["model_index.json", "holds a list"]),
        (lambda f: changed(f / "model_index.json", unet=[None, None]), ["no unet and no transformer"]),
        (lambda f: changed(f / "model_index.json", scheduler=None), ["names no scheduler"]),
        (lambda f: changed(f / "model_index.json", vae=["diffusers", "VQModel"]), ["VQModel"]),
        (lambda f: changed(f / "model_index.json", _class_name="DDPMPipelin"), ["DDPMPipelin", "did you mean 'DDPMPipeline'"]),
        (lambda f: changed(f / "unet" / "config.json", sample_size="8"), ["sample_size is 8"]),
        (lambda f: (f / "scheduler" / "scheduler_config.json").unlink(), ["scheduler_config.json", "is missing"]),
        (lambda f: (f / "unet" / WEIGHTS).write_bytes(b"\x08"), [WEIGHTS, "truncated"]),
        (lambda f: (f / "unet" / WEIGHTS).unlink(), [WEIGHTS, "is missing"]),
        (lambda f: (f / "unet" / WEIGHTS).rename(f / "unet" / "diffusion_pytorch_model.bin"), [".bin", "pickled", "save_pretrained"]),
        (lambda f: changed(f / "unet" / "config.json", out_channels=5), ["out_channels", "5"]),
    ],
)
def test_a_broken_folder(break_it: Callable[[Path], object], wanted: list[str], unet: Make, tmp_path: Path) -> None:
    folder = written(unet(), tmp_path)
    break_it(folder)
    if wanted[0] == "out_channels":  # the weights are asked first, and say so too
        wanted = ["conv_out.weight"]
    refused(folder, *wanted)


def test_a_network_of_channels_that_no_output_has(unet: Make, tmp_path: Path) -> None:
    refused(written(unet(out_channels=5), tmp_path), "scheduler_config.json", "5 channels of 3", "twice as many")


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        (replace(PLAIN, embedding=4), "model.embedding"),
        (replace(PLAIN, augmentation=9), "model.augmentation"),
        (replace(PLAIN, level="fourier"), "model.level"),
        (replace(PLAIN, condition="shift", middle="bare-attention"), "model.middle"),
        (DiTConfig(in_channels=1, width=16, heads=2, depth=1), "model.classes"),
        (DiTConfig(in_channels=1, width=16, heads=2, depth=1, classes=2, hidden=8), "model.hidden"),
        (DiTConfig(in_channels=1, width=16, heads=2, depth=1, classes=2, null_class=False), "model.null_class"),
    ],
)
def test_networks_that_they_do_not_have_are_not_exported(config: UNetConfig | DiTConfig, wanted: str, tmp_path: Path) -> None:
    network = UNet(config) if isinstance(config, UNetConfig) else DiT(config)
    with pytest.raises(UserError, match=wanted):
        save_network(tmp_path, network, None)


def test_a_network_that_is_none_of_ours_is_not_exported(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a Linear"):
        save(tmp_path, Denoiser(torch.nn.Linear(2, 2), "eps", DDPM()))
