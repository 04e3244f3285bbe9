"""Every recipe section as a typed dataclass, free of torch.

A recipe is one family's choice of these sections. A default appears here and nowhere else, and so does a setting's range;
``unveil.recipe`` reads recipes from TOML and checks them against what is written here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from unveil.config_adapter import AdapterConfig as AdapterConfig
from unveil.config_discrete import BlockConfig as BlockConfig
from unveil.config_discrete import MaskedConfig as MaskedConfig
from unveil.config_discrete import MaskedSamplerConfig as MaskedSamplerConfig
from unveil.config_discrete import NoiseConfig as NoiseConfig
from unveil.config_discrete import ScoreConfig as ScoreConfig
from unveil.config_experts import ExpertsConfig as ExpertsConfig
from unveil.config_images import AugmentConfig as AugmentConfig
from unveil.config_images import ConditionConfig as ConditionConfig
from unveil.config_images import DiTConfig as DiTConfig
from unveil.config_images import GaussianConfig as GaussianConfig
from unveil.config_images import GaussianSamplerConfig as GaussianSamplerConfig
from unveil.config_images import ImageDataConfig as ImageDataConfig
from unveil.config_images import MLPConfig as MLPConfig
from unveil.config_images import PathConfig as PathConfig
from unveil.config_images import UNetConfig as UNetConfig
from unveil.config_latent import LatentConfig as LatentConfig
from unveil.config_latent import MTPConfig as MTPConfig
from unveil.config_latent import YarnConfig as YarnConfig
from unveil.config_preference import PreferenceConfig as PreferenceConfig
from unveil.config_streams import CausalConfig as CausalConfig
from unveil.config_streams import OadTRConfig as OadTRConfig
from unveil.config_streams import RecurrentConfig as RecurrentConfig
from unveil.config_streams import StreamDataConfig as StreamDataConfig
from unveil.config_streams import StreamObjectiveConfig as StreamObjectiveConfig
from unveil.config_streams import StreamSamplerConfig as StreamSamplerConfig
from unveil.ranges import Count, Natural, NonNegative, Positive, Share
from unveil.ranges import Range as Range

FORMAT_VERSION = 1
"""Of run directories: rises when an older ``unveil`` could not read a newer one's."""


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """Where documents come from."""

    kind: Literal["python", "text", "jsonl", "parquet", "hub", "chat", "preference"] = "python"
    """``chat`` is JSONL of conversations, of which the answers are learned: ``{"messages": [{"role": ..., "content": ...}, ...]}`` or
    ``{"prompt": ..., "response": ...}``. ``preference`` is JSONL of pairs: ``{"prompt": ..., "chosen": ..., "rejected": ...}``, or the
    conversation so far as ``messages`` in the place of the prompt."""
    path: str = ""
    """A file, a folder or a hub id; not used by ``python``. Of ``chat`` and ``preference`` empty means sums, made here."""
    weight: Positive = 1.0
    """Share of the tokens in a mixture, relative to the other sources."""
    column: str = "text"
    """The field that holds the text, for jsonl, parquet and hub."""
    documents: Literal["file", "paragraph", "line"] = "file"
    """What one document is, for ``text``."""


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    kind: Literal["bytes", "characters", "bpe", "file"] = "bpe"
    vocabulary: Annotated[int, Range(256 + 6)] = 4096
    """Size with the special tokens, for ``bpe``."""
    path: str = ""
    """A ``tokenizer.json``, for ``file``."""
    specials: tuple[int, ...] = ()
    """Of a ``file`` that belongs to another library's network: its number of tokens and the ids of start, end, mask, prefix, suffix and
    middle, -1 for one it does not have. Empty: those that are missing are appended."""
    opens: bool = True
    """Whether a text begins with the start token."""


@dataclass(frozen=True, kw_only=True)
class CurationConfig:
    """Which documents are left out, of training and of what is held out."""

    duplicates: Literal["keep", "exact", "near"] = "keep"
    """Leave out documents that equal an earlier one, or nearly do."""
    alike: Annotated[float, Range(0, 1, open=True)] = 0.8
    """Share of what two documents hold, taken together, that is common to near-duplicates (Jaccard)."""
    shortest: Natural = 0
    longest: Natural = 0
    """Bytes; 0 means no limit."""
    letters: Share = 0.0
    """The least share of letters among what is no white space."""
    repeated: Share = 1.0
    """The greatest share of a document, by bytes, that is lines which it has already said."""


@dataclass(frozen=True, kw_only=True)
class TextDataConfig:
    sources: tuple[SourceConfig, ...] = (SourceConfig(),)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    curation: CurationConfig = field(default_factory=CurationConfig)
    template: str = ""
    """Folder of a model whose chat template conversations are written in; empty means that of ``training.initial``, or a plain one."""
    split: Literal["document", "tail"] = "document"
    """How documents are held out: by a hash of the document's name, or the tail of every document's characters."""
    validation: Share = 0.05
    test: Share = 0.0
    """Shares held out. With ``tail`` the test part is the end; validation is the end of what is left."""
    context: Annotated[int, Range(4)] = 256
    """The longest sequence in tokens, start token included; longer documents are cut."""
    packing_length: Count = 2048
    """Tokens in a pack (a micro-batch), at least ``context``."""
    packing: Literal["best-fit", "next-fit"] = "best-fit"
    workers: Natural = 0
    """Processes that build packs ahead of the trainer; the packs are the same at any number."""
    limit: Natural = 0
    """Take only this many bytes of each source; 0 takes all."""
    cache: str = ""
    """Folder for tokenizers and token shards; empty means ``~/.cache/unveil``."""


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    width: Count = 256
    depth: Count = 6
    heads: Count = 4
    kv_heads: Natural = 0
    """Heads of keys and values (grouped-query attention); 0 means as many as ``heads``."""
    head_width: Natural = 0
    """Of a query; 0 means the width over the heads."""
    hidden: Natural = 0
    """Width of the feed-forward; 0 means 8/3 of the width, rounded up to a multiple of 64."""
    qk_norm: bool = False
    qkv_bias: bool = False
    norm: Literal["rms", "layer"] = "rms"
    feedforward: Literal["swiglu", "gelu"] = "swiglu"
    """``gelu`` has biases."""
    head_bias: bool = False
    time_conditioning: bool = False
    """Tell the blocks the noise level, by shift, scale and gate (adaLN)."""
    condition: Natural = 0
    """Width of what they are told; 0 means 128 if they are told anything. Given alone, they are told 0, as in MDLM."""
    shift: bool = False
    """What predicts a token is the state of the one before it, as in a network that was autoregressive (Dream)."""
    tie: bool = False
    """Share the embedding with the head."""
    rope_theta: Positive = 10000.0
    rotary_width: Natural = 0
    """How much of a head is turned by its position, from the front; 0 means all of it."""
    norm_eps: Positive = 1e-6
    dropout: Share = 0.0
    window: Natural = 0
    """Attend to at most this many tokens on each visible side; 0 means no limit."""
    init: Literal["normal", "depth-scaled", "zero-out"] = "depth-scaled"
    """Matrices N(0, std); ``depth-scaled`` divides the projections back into the residual by sqrt(2 depth); ``zero-out`` zeroes them."""
    init_std: Positive = 0.02
    latent: LatentConfig = field(default_factory=LatentConfig)
    yarn: YarnConfig = field(default_factory=YarnConfig)
    experts: ExpertsConfig = field(default_factory=ExpertsConfig)
    mtp: MTPConfig = field(default_factory=MTPConfig)


@dataclass(frozen=True, kw_only=True)
class NextTokenConfig:
    fim_rate: Share = 0.1
    """Share of documents rearranged for fill-in-the-middle (prefix, suffix, middle)."""
    mtp_weight: NonNegative = 0.3
    """Of the mean loss of the depths of ``model.mtp``, the next token's being 1; for ``mtp_early`` of the run."""
    mtp_late_weight: NonNegative = 0.1
    """After it."""
    mtp_early: Share = 0.67
    """Share of the steps with the first weight (DeepSeek-V3: 10 T of 14.8 T tokens)."""
    preference: PreferenceConfig = field(default_factory=PreferenceConfig)
    """Its ``draws`` are not needed."""


@dataclass(frozen=True, kw_only=True)
class NextTokenSamplerConfig:
    length: Count = 128
    """New tokens at the most."""
    temperature: NonNegative = 1.0
    top_k: Natural = 0
    top_p: Annotated[float, Range(0, 1, open=True)] = 1.0
    min_p: Share = 0.0
    repetition_penalty: Positive = 1.0
    stop: tuple[str, ...] = ()
    speculate: Natural = 0
    """Tokens that the depths of ``model.mtp`` draft ahead, to be accepted or not in one pass of the trunk; what is written stays the
    same in law, and word for word at temperature 0. 0 drafts none."""


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    kind: Literal["adamw", "muon"] = "adamw"
    """``muon`` orthogonalises the matrices of the blocks; embedding, head and vectors stay with AdamW."""
    lr: Positive = 1e-3
    matrix_lr: Positive = 0.02
    beta1: Share = 0.9
    beta2: Share = 0.95
    eps: Positive = 1e-8
    weight_decay: NonNegative = 0.1
    momentum: Share = 0.95
    clip: NonNegative = 1.0
    """Largest norm of the gradient; 0 does not clip."""


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    kind: Literal["cosine", "wsd", "multi-step", "constant"] = "cosine"
    warmup: Share = 0.02
    """Share of the steps with rising learning rate."""
    warmup_steps: Natural = 0
    """If above 0, their number, in the place of a share."""
    decay: Share = 0.2
    """Share of the steps that decay at the end, for ``wsd``."""
    final: Share = 0.1
    """Last learning rate relative to the highest."""
    stages: tuple[Share, ...] = (0.8, 0.9)
    """Shares of the steps at which ``multi-step`` falls, in equal ratios down to ``final`` (DeepSeek LLM)."""


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    steps: Count = 1000
    initial: str = ""
    """A run of text, or another library's folder, whose weights training begins with; network, tokenizer and chat template are its."""
    minutes: NonNegative = 0.0
    """If above 0, ``steps`` is set from the measured speed so that training takes about this long."""
    packs: Count = 1
    """Packs (micro-batches) in a step over all ranks; the number of ranks divides it."""
    ema: Share = 0.0
    """Decay of the averaged weights that are evaluated and exported; 0 keeps none."""
    ema_widths: tuple[Annotated[float, Range(0, 12**-0.5, open=True)], ...] = ()
    """Widths (relative to the steps so far) of further averages, of which ``unveil average`` makes one of any width after training; two
    do, as 0.05 and 0.1."""
    ema_every: Natural = 500
    """Steps between the snapshots of these that are kept in ``averages/``; 0 keeps the last only."""
    dtype: Literal["auto", "bfloat16", "float32", "float64"] = "auto"
    """Compute dtype; ``auto`` takes the faster of bfloat16 and float32 on this machine. Master weights are float32."""
    fp8: bool = False
    """Train with the blocks' matrices multiplied in FP8, as DeepSeek-V3; embedding, head, norms, attention itself and evaluation keep
    ``dtype``."""
    compile: Literal["auto", "on", "off"] = "auto"
    """``auto`` compiles where a quarter of the run's time, measured on its first steps, is more than compiling takes."""
    log_every: Count = 10
    evaluate_every: Natural = 0
    """Steps between evaluations on held-out data; 0 evaluates at the end only."""
    sample_every: Natural = 0
    save_every: Natural = 0
    """Steps between checkpoints; 0 saves at the end and when interrupted."""
    keep: Count = 2
    """Newest checkpoints kept, beside the best."""
    threads: Natural = 0
    """CPU threads; 0 leaves torch's choice."""


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    tokens: Natural = 65536
    """Held-out tokens (or images) scored during the run; 0 scores all."""
    samples: Natural = 0
    """Images generated for the Frechet distance when a run is evaluated; 0 takes as many as there are to compare with."""
    draws: Count = 1
    """Monte-Carlo draws per sequence for bounds."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What every family's recipe has."""

    family: str = ""
    seed: Natural = 0
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)


@dataclass(frozen=True, kw_only=True)
class AutoregressiveRecipe(Recipe):
    family: str = "autoregressive"
    data: TextDataConfig = field(default_factory=TextDataConfig)
    model: TransformerConfig = field(default_factory=TransformerConfig)
    objective: NextTokenConfig = field(default_factory=NextTokenConfig)
    sampler: NextTokenSamplerConfig = field(default_factory=NextTokenSamplerConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)


@dataclass(frozen=True, kw_only=True)
class DiscreteRecipe(Recipe):
    family: str = "discrete"
    data: TextDataConfig = field(default_factory=TextDataConfig)
    model: TransformerConfig = field(default_factory=TransformerConfig)
    objective: MaskedConfig | BlockConfig | ScoreConfig = field(default_factory=MaskedConfig)
    sampler: MaskedSamplerConfig = field(default_factory=MaskedSamplerConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)


@dataclass(frozen=True, kw_only=True)
class GaussianRecipe(Recipe):
    family: str = "gaussian"
    data: ImageDataConfig = field(default_factory=ImageDataConfig)
    model: UNetConfig | DiTConfig | MLPConfig = field(default_factory=UNetConfig)
    objective: GaussianConfig = field(default_factory=GaussianConfig)
    sampler: GaussianSamplerConfig = field(default_factory=GaussianSamplerConfig)


@dataclass(frozen=True, kw_only=True)
class StreamsRecipe(Recipe):
    family: str = "streams"
    data: StreamDataConfig = field(default_factory=StreamDataConfig)
    model: OadTRConfig | CausalConfig | RecurrentConfig = field(default_factory=OadTRConfig)
    objective: StreamObjectiveConfig = field(default_factory=StreamObjectiveConfig)
    sampler: StreamSamplerConfig = field(default_factory=StreamSamplerConfig)


TextRecipe = AutoregressiveRecipe | DiscreteRecipe
AnyRecipe = TextRecipe | GaussianRecipe | StreamsRecipe
RECIPES: dict[str, type[AutoregressiveRecipe] | type[DiscreteRecipe] | type[GaussianRecipe] | type[StreamsRecipe]] = {
    "autoregressive": AutoregressiveRecipe,
    "discrete": DiscreteRecipe,
    "gaussian": GaussianRecipe,
    "streams": StreamsRecipe,
}
