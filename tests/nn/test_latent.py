"""Latent attention: against DeepSeek's own numbers, against `transformers`, and its two forms against each other."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from unveil import cli
from unveil.config import LatentConfig, TransformerConfig, YarnConfig
from unveil.errors import UserError
from unveil.interop.decoder import llada_settings, llama_settings
from unveil.nn.block_diffusion import two_stream
from unveil.nn.latent import LatentAttention
from unveil.nn.layout import Bidirectional, Causal
from unveil.nn.packed import Packed
from unveil.nn.rotary import frequencies, rotation
from unveil.nn.transformer import Transformer

V = 23
SMALL = LatentConfig(width=16, query=12, plain=8, rotary=8, value=6)
STRETCHED = YarnConfig(factor=40, original=32, mscale=1, mscale_all=1)
VARIANTS = {
    "full rank": {"latent": LatentConfig(width=16, plain=8, rotary=8, value=6)},
    "low rank": {"latent": SMALL},
    "values as wide as keys": {"latent": LatentConfig(width=16, query=12, plain=4, rotary=4, value=8)},
    "stretched": {"latent": SMALL, "yarn": STRETCHED},
    "windowed": {"latent": SMALL, "window": 3},
}


def config(**switches: object) -> TransformerConfig:
    return TransformerConfig(width=32, depth=2, heads=4, init="normal", init_std=0.3, **switches)  # type: ignore[arg-type]


def network(dtype: torch.dtype = torch.float64, layout: Causal | Bidirectional | None = None, **switches: object) -> Transformer:
    torch.manual_seed(0)
    chosen = config(**switches)
    made = Transformer(chosen, V, layout or Causal(chosen.window)).to(dtype)
    made.compute_dtype = dtype
    return made


def sequences(*lengths: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, V, (n,), generator=generator) for n in lengths]


def halves(width: int) -> torch.Tensor:
    """Where the rows of neighbouring pairs go when the pairs are (i, i + width / 2)."""
    return torch.cat((torch.arange(0, width, 2), torch.arange(1, width, 2)))


def unpaired(weight: torch.Tensor, heads: int, plain: int, rotary: int) -> torch.Tensor:
    """Rows of every head: the plain ones as they are, the rotated ones from pairs to halves."""
    rows = weight.unflatten(0, (heads, plain + rotary))
    return torch.cat((rows[:, :plain], rows[:, plain:][:, halves(rotary)]), dim=1).flatten(0, 1)


@torch.no_grad()
@pytest.mark.parametrize("case", ["plain", "yarn"])
def test_deepseeks_own_numbers(case: str, data_dir: Path) -> None:
    """Outputs, cache and scale recorded from its inference code, prompt and single tokens."""
    stored = np.load(data_dir / "golden" / "dsv3_mla.npz")
    given = json.loads(str(stored["config"]))["cases"][case]
    state = {name.rsplit(".", 2)[-2]: torch.from_numpy(stored[name]) for name in stored if name.startswith(f"inputs.{case}.state")}
    latent = LatentConfig(width=16, query=given["q_lora_rank"], plain=8, rotary=8, value=6)
    yarn = YarnConfig(factor=40, original=32, mscale=1, mscale_all=1) if case == "yarn" else YarnConfig()
    ours = LatentAttention(config(latent=latent, yarn=yarn))
    q = state["wq_b"] if latent.query else state["wq"]
    down = state["wkv_a"]
    weights = {
        "q_up.weight": unpaired(q, 4, 8, 8),
        "kv_down.weight": torch.cat((down[:16], down[16:][halves(8)])),
        "kv_norm.weight": state["kv_norm"],
        "kv_up.weight": state["wkv_b"],
        "out.weight": state["wo"],
    }
    weights |= {"q_down.weight": state["wq_a"], "q_norm.weight": state["q_norm"]} if latent.query else {}
    ours.load_state_dict(weights)
    assert ours.scale == pytest.approx(float(stored[f"outputs.{case}.softmax_scale"]), rel=1e-6)
    for row, wanted, kept, turned in zip(
        *(stored[f"{which}.{case}.{name}"] for which, name in (("inputs", "x"), ("outputs", "absorb"))),
        stored[f"outputs.{case}.kv_cache"],
        stored[f"outputs.{case}.pe_cache"],
        strict=True,
    ):
        x_TD, by = torch.from_numpy(row), rotation(torch.arange(12), 8, 10000.0, torch.float32, yarn)
        found = ours(x_TD, by, torch.tensor([0, 12], dtype=torch.int32), 12, Causal())
        torch.testing.assert_close(found, torch.from_numpy(wanted), rtol=0, atol=2e-5)
        latents, rotated = ours._compressed(x_TD, by)
        torch.testing.assert_close(latents, torch.from_numpy(kept), rtol=0, atol=2e-5)
        torch.testing.assert_close(rotated, torch.from_numpy(turned)[:, halves(8)], rtol=0, atol=2e-5)


@pytest.mark.parametrize("case", ["no_yarn", "v3_yarn"])
def test_frequencies_are_deepseeks(case: str, data_dir: Path) -> None:
    stored = np.load(data_dir / "golden" / "dsv3_mla.npz")
    yarn = YarnConfig(factor=40, original=4096) if case == "v3_yarn" else None
    wanted = torch.from_numpy(stored[f"outputs.freqs.{case}.angle_at_1"]).double()
    torch.testing.assert_close(frequencies(64, 10000.0, yarn), wanted, rtol=2e-6, atol=0)


@pytest.mark.parametrize("name", ["full rank", "low rank", "stretched"])
def test_logits_and_gradients_equal_transformers(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    ours = network(**VARIANTS[name])
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    if name == "stretched":
        rope |= {"rope_type": "yarn", "factor": 40.0, "original_max_position_embeddings": 32, "mscale": 1.0, "mscale_all_dim": 1.0}
        rope |= {"beta_fast": 32.0, "beta_slow": 1.0}
    theirs = transformers.DeepseekV3ForCausalLM(
        transformers.DeepseekV3Config(
            vocab_size=V, hidden_size=32, intermediate_size=128, num_hidden_layers=2, first_k_dense_replace=2, num_attention_heads=4,
            num_key_value_heads=4, q_lora_rank=ours.config.latent.query or None, kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=8,
            v_head_dim=6, rms_norm_eps=1e-6, rope_parameters=rope, rope_interleave=False, max_position_embeddings=1280,
            attn_implementation="eager",
        )
    ).double()  # fmt: skip
    state = ours.state_dict()
    weights = {"model.embed_tokens": state["embedding.weight"], "model.norm": state["norm.weight"], "lm_head": state["head.weight"]}
    names = {
        "q_down": "self_attn.q_a_proj", "q_norm": "self_attn.q_a_layernorm", "kv_down": "self_attn.kv_a_proj_with_mqa",
        "kv_norm": "self_attn.kv_a_layernorm", "kv_up": "self_attn.kv_b_proj", "out": "self_attn.o_proj",
        "q_up": "self_attn.q_b_proj" if ours.config.latent.query else "self_attn.q_proj",
    }  # fmt: skip
    for i in range(2):
        block = {n.removeprefix(f"blocks.{i}.").removesuffix(".weight"): w for n, w in state.items() if n.startswith(f"blocks.{i}.")}
        gate, up = block["feedforward.gate_up"].chunk(2)
        renamed = {names[n.removeprefix("attention.")]: w for n, w in block.items() if n.startswith("attention.")}
        renamed |= {"mlp.gate_proj": gate, "mlp.up_proj": up, "mlp.down_proj": block["feedforward.down"]}
        renamed |= {"input_layernorm": block["attention_norm"], "post_attention_layernorm": block["feedforward_norm"]}
        weights |= {f"model.layers.{i}.{n}": w for n, w in renamed.items()}
    theirs.load_state_dict({f"{n}.weight": w for n, w in weights.items()})
    tokens = sequences(48)[0]
    mine, other = ours.head(ours(Packed.of([tokens]))), theirs(tokens[None]).logits[0]
    # their angles are float32
    torch.testing.assert_close(mine, other, rtol=0, atol=2e-5)
    probe = torch.randn(48, V, dtype=torch.float64)
    torch.autograd.backward([(mine * probe).sum(), (other * probe).sum()])
    named = dict(theirs.named_parameters())
    for i in range(2):
        for mine_, theirs_ in names.items():
            if mine_ in ("q_down", "q_norm") and not ours.config.latent.query:
                continue
            a = ours.get_parameter(f"blocks.{i}.attention.{mine_}.weight").grad
            b = named[f"model.layers.{i}.{theirs_}.weight"].grad
            torch.testing.assert_close(a, b, rtol=0, atol=1e-4 * float(b.abs().max()))


@torch.no_grad()
@pytest.mark.parametrize("switches", VARIANTS.values(), ids=VARIANTS.keys())
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 1e-5)], ids=["float64", "float32"])
def test_absorbed_decoding_equals_the_training_form_in_a_ragged_batch(
    switches: dict[str, object], dtype: torch.dtype, tolerance: float
) -> None:
    made, texts, prompts = network(dtype, **switches), sequences(9, 6, 14), [4, 1, 9]
    whole = [made(Packed.of([text])) for text in texts]
    cache = made.new_cache(3, 5)  # too small: it has to grow
    start = made.prefill(Packed.of([text[:n] for text, n in zip(texts, prompts, strict=True)]), cache, range(3))
    torch.testing.assert_close(start, torch.cat([w[:n] for w, n in zip(whole, prompts, strict=True)]), rtol=0, atol=tolerance)
    for step in range(5):
        hidden = made.decode(torch.stack([text[n + step] for text, n in zip(texts, prompts, strict=True)]), cache)
        wanted = torch.stack([w[n + step] for w, n in zip(whole, prompts, strict=True)])
        torch.testing.assert_close(hidden, wanted, rtol=0, atol=tolerance)
    apart = cache.select([2]).join(cache.select([0]))
    assert apart.lengths == [14, 9] and torch.equal(apart.keys[1][1], cache.keys[1][0])


def test_a_pack_equals_its_sequences_one_by_one() -> None:
    made, texts = network(latent=SMALL), sequences(7, 7, 12, 1)
    hidden = made(Packed.of(texts))
    alone = torch.cat([made(Packed.of([text])) for text in texts])
    torch.testing.assert_close(hidden, alone, rtol=0, atol=1e-12)


def test_block_diffusion_between_its_two_ends() -> None:
    """Blocks as long as the text see all of themselves; blocks of one see what precedes them."""
    text = Packed.of(sequences(11, 5))
    for block, layout in ((11, Bidirectional()), (1, Causal())):
        made = network(layout=layout, latent=SMALL, yarn=STRETCHED)
        torch.testing.assert_close(two_stream(made, text, text.tokens_T, block), made(text), rtol=0, atol=1e-12)


def test_the_cache_is_as_small_as_published() -> None:
    """DeepSeek-V3: 576 values per token and layer, 70,272 bytes over 61 layers in bfloat16."""
    latent = LatentConfig(width=512, query=1536, plain=128, rotary=64, value=128)
    with torch.device("meta"):
        made = Transformer(TransformerConfig(width=7168, depth=61, heads=128, hidden=64, latent=latent), V, Causal())
        made.compute_dtype = torch.bfloat16
        cache = made.new_cache(1, 1)
    assert {keys.numel() + values.numel() for keys, values in zip(cache.keys, cache.values, strict=True)} == {576}
    assert sum(part.nbytes for part in (*cache.keys, *cache.values)) == 70_272


def test_widths_that_cannot_be() -> None:
    for latent in (LatentConfig(width=8, rotary=3), LatentConfig(width=8, plain=2, rotary=2, value=6)):
        with pytest.raises(ValueError, match="odd, or values wider"):
            network(latent=latent)


MISTAKES = {
    "--model.latent.rotary 9": ("model.latent.rotary: 9 is odd", "choose an even one"),
    "--model.latent.value 300": ("model.latent.value: 300 is above model.latent.plain + rotary = 192", "lower it"),
    "--model.kv-heads 1": ("model.kv_heads: is 1 with latent attention", "leave it out"),
    "--model.qk-norm true": ("model.qk_norm: is True with latent attention", "leave it out"),
    "--model.latent.width 0 --model.yarn.mscale-all 1": ("model.yarn.mscale_all: 1 without latent attention", "set it to 0"),
    "--model.yarn.factor 0.5": ("model.yarn.factor", "0.5"),
}


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_gets_one_line(line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["train", "tiny", "--run-dir", str(tmp_path / "run"), "--model.latent.width", "8", *line.split()])
    said = capsys.readouterr().err.strip()
    assert stopped.value.code == 2 and "Traceback" not in said and all(part in said.splitlines()[-1] for part in MISTAKES[line]), said
    assert not (tmp_path / "run").exists()


def test_other_layouts_do_not_have_it() -> None:
    for settings, switches, field in (
        (llama_settings, {"latent": SMALL}, "model.latent.width"),
        (llada_settings, {"yarn": YarnConfig(factor=4)}, "model.yarn.factor"),
    ):
        with pytest.raises(UserError) as refused:
            settings(config(**switches), V, 64)
        assert refused.value.field == field and "train with" in refused.value.remedy
