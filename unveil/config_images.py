"""The sections of recipes for images: data, networks, and what the gaussian family hides them by. Free of torch, as ``unveil.config``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from unveil.ranges import Count, Natural, NonNegative, Positive, Share


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Geometric augmentation whose parameters the network is told, so that none of it leaks into samples (EDM, appendix F.2)."""

    probability: Share = 0.0
    """Of each kind, for each image on its own; 0 augments nothing."""
    kinds: tuple[Literal["x-flip", "y-flip", "translate", "scale", "rotate", "stretch"], ...] = (
        "x-flip",
        "y-flip",
        "translate",
        "scale",
        "rotate",
        "stretch",
    )


@dataclass(frozen=True, kw_only=True)
class ImageDataConfig:
    kind: Literal["digits", "idx", "folder", "parquet", "hub", "toy"] = "digits"
    """``digits`` are scikit-learn's: 1,797 of 8 x 8 pixels, with labels; a ``toy`` is points in the plane."""
    path: str = ""
    """A file, a folder or a hub id; of a toy moons, rings, checkerboard, spiral or gaussians; not used by ``digits``."""
    labels: str = ""
    """File of the labels, for ``idx``; their column, for ``parquet`` and ``hub``. Empty means none; a folder's are its subfolders."""
    column: str = "image"
    """The field that holds the image, for ``parquet`` and ``hub``."""
    captions: str = ""
    """What says each image in words: a column of ``parquet`` and ``hub``, the suffix of a file beside each image of a ``folder`` (.txt)."""
    text_encoder: str = ""
    """Folder of the CLIPTextModel, T5EncoderModel or BertModel of transformers that reads the captions."""
    autoencoder: str = ""
    """Folder of an AutoencoderKL of diffusers: its latents are trained on and sampled in the place of pixels."""
    size: Natural = 0
    """Side in pixels: the shorter side is scaled to it and the middle square is taken; 0 leaves images as they are."""
    mode: Literal["as-is", "grey", "rgb"] = "as-is"
    skip_corrupt: bool = False
    """Leave out images that cannot be read, and count them."""
    hold_out: Natural = 10
    """Every so-maniest image is held out (the 10th, the 20th, ...); 0 holds out none."""
    batch: Count = 128
    """Images in a micro-batch."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    workers: Natural = 0
    """Processes that build batches ahead of the trainer; the batches are the same at any number."""
    limit: Natural = 0
    """Take only the first so many images; 0 takes all."""
    cache: str = ""
    """Folder for the pixels; empty means ``~/.cache/unveil``."""


@dataclass(frozen=True, kw_only=True)
class ConditionConfig:
    """What goes into an image network and out of it. Where 0 stands for "as the data has", the family fills it in."""

    in_channels: Natural = 0
    """Channels of the image; 0 means as the data has."""
    out_channels: Natural = 0
    """0 means ``in_channels``; a learned variance takes twice as many."""
    classes: Natural = 0
    """Classes that the network is told; 0 means none."""
    null_class: bool = True
    """One class more, for an image whose class is not told; guidance needs it. Foreign networks may lack it."""
    embedding: Natural = 0
    """Width of an embedding (of a text, say) that the network is told; 0 means none."""
    augmentation: Natural = 0
    """Number of augmentation parameters that the network is told; 0 means none."""
    level: Literal["sinusoidal", "fourier"] = "sinusoidal"
    """Features of the noise level."""
    fourier_scale: Positive = 1.0
    """Standard deviation of the Fourier features' frequencies."""


@dataclass(frozen=True, kw_only=True)
class UNetConfig(ConditionConfig):
    """The UNet of DDPM, improved as in DDPM++ and ADM; one entry of ``channels`` and of ``attention`` for each level."""

    kind: Literal["unet"] = "unet"
    channels: tuple[Count, ...] = (64, 128, 128)
    """Each level has half the resolution of the one before it."""
    attention: tuple[Literal["none", "both", "down", "up"], ...] = ("none", "both", "none")
    """Where each level attends: on the way down, on the way up, or on both."""
    layers: Count = 2
    """Residual blocks of a level on the way down; on the way up there is one more."""
    middle: Literal["attention", "bare-attention", "plain", "none"] = "attention"
    """Between two residual blocks at the lowest level: attention, the same without its norm, or nothing; or no blocks at all."""
    head_width: Natural = 64
    """Channels of an attention head; 0 means one head for all channels."""
    groups: Count = 8
    """Of each group norm. Few are fast where channels lie side by side; ADM has 32."""
    norm_eps: Positive = 1e-5
    dropout: Share = 0.0
    condition: Literal["shift", "scale-shift"] = "scale-shift"
    """How a residual block takes the noise level: added before its second norm (DDPM), or by adaptive group norm (ADM)."""
    condition_width: Natural = 0
    """0 means four times the first entry of ``channels``."""
    downsample: Literal["conv", "corner-conv", "resnet"] = "conv"
    """A strided convolution, the same padded at one corner only (DDPM), or a residual block that averages (ADM)."""
    upsample: Literal["conv", "resnet"] = "conv"
    frequency_shift: NonNegative = 0.0
    """The sinusoids' frequencies are 10000^(-k / (K - shift))."""
    cosine_first: bool = True


@dataclass(frozen=True, kw_only=True)
class DiTConfig(ConditionConfig):
    """The diffusion transformer (Peebles and Xie 2023)."""

    kind: Literal["dit"] = "dit"
    size: Count = 32
    """Side of the images it is trained at: the positions of other sizes are scaled to it."""
    patch: Count = 2
    width: Count = 384
    depth: Count = 12
    heads: Count = 6
    hidden: Natural = 0
    """Width of the feed-forward; 0 means four times ``width``."""
    feedforward_norm_eps: Positive = 1e-6
    dropout: Share = 0.0
    embedders: Literal["shared", "per-block"] = "shared"
    """One embedding of noise level and class for all blocks, or one for each, as a foreign network may have."""


@dataclass(frozen=True, kw_only=True)
class MLPConfig(ConditionConfig):
    """Residual blocks of two matrices on all values of a sample at once, for points and other small things."""

    kind: Literal["mlp"] = "mlp"
    width: Count = 128
    depth: Count = 3
    """Residual blocks."""
    octaves: Natural = 0
    """Sinusoids of each value beside the value itself, each of twice the frequency of the one before: for distributions of fine detail."""


@dataclass(frozen=True, kw_only=True)
class PathConfig:
    """How noise comes in: x_t = alpha(t) x0 + sigma(t) eps."""

    kind: Literal["ddpm", "vp", "sub-vp", "ve", "edm", "rectified-flow", "cosine", "trigonometric"] = "edm"
    schedule: Literal["linear", "quadratic", "sigmoid", "cosine"] = "linear"
    """Of the table, for ``ddpm``."""
    steps: Count = 1000
    """Of the table, for ``ddpm``."""
    beta_min: Positive | None = None
    """First and last beta of ``ddpm``, at 1000 steps, and of ``vp`` and ``sub-vp``. What is not set here and below is the path's own."""
    beta_max: Positive | None = None
    table: tuple[Positive, ...] = ()
    """The betas of ``ddpm`` themselves, in the place of a schedule."""
    t_min: Positive | None = None
    """Ends of the times that the network is trained at, but for ``ddpm``; of ``edm`` they are noise levels."""
    t_max: Positive | None = None
    zero_terminal_snr: bool = False
    """Scale the table so that its last step holds no signal, for ``ddpm``."""
    shift: Positive = 1.0
    """Multiply every noise level n = sigma / alpha by this (a timestep shift)."""


@dataclass(frozen=True, kw_only=True)
class GaussianConfig:
    """What the network predicts, and how often and how much each noise level counts."""

    path: PathConfig = field(default_factory=PathConfig)
    predicts: Literal["eps", "x0", "v", "score", "flow", "F"] = "F"
    preconditioning: Literal["none", "vp", "ve", "iddpm", "edm"] = "edm"
    """A column of EDM's Table 1; ``none`` gives the network x_t and t as they are."""
    sigma_data: Positive = 0.5
    """Standard deviation of the images in [-1, 1], for ``edm`` and ``F``."""
    time_scale: Positive = 1.0
    """Factor of the time that the network is told."""
    weighting: Literal["simple", "x0", "v", "flow", "edm", "min-snr", "soft-min-snr", "p2", "likelihood", "vlb", "hybrid"] = "edm"
    """``hybrid`` is iDDPM's, with a learned variance, for ``ddpm``."""
    density: Literal["uniform", "log-normal", "log-uniform", "logit-normal", "u-shaped"] = "log-normal"
    """Of the noise levels drawn; ``uniform`` and those after it but ``log-uniform`` speak of the path's time."""
    mean: float = -1.2
    """Of log n for ``log-normal``, of the logit of the time for ``logit-normal``."""
    std: Positive = 1.2
    steepness: Positive = 4.0
    """For ``u-shaped``."""
    importance: bool = False
    """Draw noise levels of large loss more often, and weigh them back."""
    uncertainty: bool = False
    """Learn a weight per noise level (EDM2)."""
    coupling: Literal["independent", "optimal-transport", "reflow"] = "independent"
    """Which noise goes with which image of a micro-batch; ``reflow`` trains on noise and what a teacher's flow makes of it, from the
    teacher's weights on."""
    teacher: str = ""
    """Of ``reflow``: a run directory, or a folder with an exported model."""
    pairs: Count = 10000
    """Of ``reflow``: how many the teacher makes, once, into the run directory;"""
    pair_steps: Count = 40
    """in so many steps of two network evaluations."""
    distill: Natural = 0
    """Of ``reflow``: train for so many Euler steps alone; 0 trains at all times."""
    conditional: bool = False
    """Tell the network the class of each image."""
    class_dropout: Share = 0.1
    """Share of the images whose class, or text, is not told all the same, for guidance."""


@dataclass(frozen=True, kw_only=True)
class GaussianSamplerConfig:
    """A solver, its grid and its guidance. What is not set is the solver's own; ``unveil sample`` names the options of each."""

    kind: str = "heun"
    """The solver by name: ddim, euler, heun, dpmpp-2m, ancestral and so on."""
    steps: Count = 18
    grid: str = "auto"
    """Where it stops; ``auto`` is trailing for a table, uniform-to-zero for rectified flow, karras for the rest."""
    rho: Positive | None = None
    """For the grid ``karras``."""
    n_min: Positive | None = None
    """Least noise level n = sigma / alpha, for the grids karras and log-uniform."""
    n_max: Positive | None = None
    path: Literal["trained", "vp", "sub-vp", "ve", "edm", "rectified-flow", "cosine", "trigonometric"] = "trained"
    """A network trained under one path is sampled under another."""
    shift: Positive = 1.0
    """Multiply the noise levels of the grid by this, on that path: a timestep shift for sampling alone."""
    clip: NonNegative = 0.0
    """Keep denoised images within this much of 0; 0 does not."""
    eta: NonNegative | None = None
    """Share of fresh noise: 0 is deterministic, 1 as much as the reverse SDE has."""
    order: Count | None = None
    clock: Literal["n", "time"] | None = None
    churn: NonNegative | None = None
    churn_min: NonNegative | None = None
    churn_max: NonNegative | None = None
    churn_noise: NonNegative | None = None
    variance: Literal["small", "large", "learned"] | None = None
    diffusion: Literal["path", "sigma"] | None = None
    corrections: Count | None = None
    """Langevin steps at each noise level."""
    snr: Positive | None = None
    delta: Positive | None = None
    place: Positive | None = None
    rtol: Positive | None = None
    atol: Positive | None = None
    resamples: Count = 1
    """How often each step is taken where part of an image is given (RePaint); 10 makes it fit best."""
    guidance: NonNegative = 1.0
    """Weight of the class against no class: 1 is none."""
    guidance_min: NonNegative = 0.0
    """Guide only at noise levels n above this,"""
    guidance_max: Positive = 1e9
    """and up to this."""
