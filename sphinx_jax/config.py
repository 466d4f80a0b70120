"""The model as data: frozen dataclasses for every part, and the published family by name.

Geometry is configuration like everything else, so the nano model of the quickstart is built from the same modules as
the 13B one.  Sizes of the published family: paper arXiv 2311.07575 and the authors' checkpoints.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from sphinx_jax.settings import ConfigError, Count, NonNegative, Positive, Settings, Whole, checked, unknown

# Pixel statistics of the published encoders (OpenAI CLIP; ImageNet for DINOv2), RGB in 0-1.
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

T = TypeVar("T")


def need(part: T | None) -> T:
    """A part of a config that is there where this is called: said for the checker of types."""
    assert part is not None
    return part


DTYPES = ("float32", "bfloat16", "float16", "float64")
ATTENTION_MAPS, FFN_MAPS = ("q", "k", "v", "o"), ("gate", "up", "down")


@dataclass(frozen=True)
class MoeConfig(Settings):
    """A mixture of experts in place of the FFN (Mixtral)."""

    experts: Count = 8
    per_token: Count = 2
    balance_weight: NonNegative = 0.0  # of the load-balance loss in training (Shazeer et al. 2017, as Mixtral's)
    half_router: bool = False  # the softmax over experts runs in the compute dtype (the reference's dense `mixtral`)

    def __post_init__(self):
        if not 0 < self.per_token <= self.experts:
            raise ConfigError(f"moe: {self.per_token} of {self.experts} experts per token is impossible")


@dataclass(frozen=True)
class DecoderConfig(Settings):
    """LLaMA2 decoder.  `ffn_multiplier` and `multiple_of` give the FFN width as Meta's code does."""

    dim: Count = 5120
    layers: Count = 40
    heads: Count = 40
    kv_heads: Count | None = None
    vocab_size: Count = 32000
    multiple_of: Count = 256
    ffn_multiplier: Positive | None = None
    norm_eps: Positive = 1e-5
    rope_theta: Positive = 10000.0
    rope_scaling: Positive | None = None  # multiplies positions
    # LLaMA 3.1: factor, low and high frequency factor, original length
    rope_llama3: tuple[Positive, Positive, Positive, Positive] | None = None
    max_positions: Count = 4096  # a prompt that leaves no room within these loses its beginning
    tied_embeddings: bool = False
    hidden_dim: Count | None = None  # FFN width as such, in place of the formula
    head_width: Count | None = None  # where it is not dim / heads
    moe: MoeConfig | None = None
    bias: tuple[Literal[ATTENTION_MAPS + FFN_MAPS], ...] = ()  # linear maps with a bias
    lora_rank: Whole = 0  # of a low-rank addition to every linear map of the layers; 0: none
    cache: Literal["", "int8"] = ""  # what keys and values are held in while answers are made; "": as they are computed

    @property
    def head_dim(self) -> int:
        return self.head_width or self.dim // self.heads

    @property
    def num_kv_heads(self) -> int:
        return self.kv_heads or self.heads

    @property
    def ffn_dim(self) -> int:
        """Both truncations happen before rounding up, in Meta's order."""
        if self.hidden_dim is not None:
            return self.hidden_dim
        hidden = int(2 * 4 * self.dim / 3)
        if self.ffn_multiplier is not None:
            hidden = int(self.ffn_multiplier * hidden)
        return self.multiple_of * -(-hidden // self.multiple_of)

    def __post_init__(self):
        if (self.dim % self.heads and not self.head_width) or self.head_dim % 2:
            raise ConfigError(f"decoder: dim {self.dim} over {self.heads} heads is not an even head width")
        if self.heads % self.num_kv_heads:
            raise ConfigError(f"decoder: {self.heads} heads do not share {self.num_kv_heads} key/value heads evenly")


@dataclass(frozen=True)
class VitConfig(Settings):
    """One vision transformer (CLIP, DINOv2 and the BLIP-2 tower differ by these switches alone)."""

    width: Count
    layers: Count
    heads: Count
    mlp_width: Count
    patch: Count = 14
    view_size: Count = 224  # pixels of a view's side
    patch_bias: bool = True
    norm_before: bool = False  # CLIP's ln_pre
    activation: Literal["gelu", "quick_gelu", "swiglu"] = "gelu"  # gelu: by erf
    layer_scale: bool = False
    norm_eps: Positive = 1e-6
    position_grid: Count | None = None  # stored position grid when it differs from the patch grid (DINOv2: 37)
    imagenet_normalised: bool = False  # DINOv2 takes ImageNet statistics, views arrive with CLIP's

    @property
    def grid(self) -> int:
        return self.view_size // self.patch

    def __post_init__(self):
        if self.view_size % self.patch:
            raise ConfigError(f"encoder: a view of {self.view_size} pixels is not whole patches of {self.patch}")
        if self.width % self.heads:
            raise ConfigError(f"encoder: width {self.width} does not divide over {self.heads} heads")


@dataclass(frozen=True)
class ConvNextConfig(Settings):
    depths: tuple[Count, ...] = (3, 4, 30, 3)
    dims: tuple[Count, ...] = (384, 768, 1536, 3072)
    view_size: Count = 224  # pixels of a view's side
    input_size: Count = 256  # the view is resized to this by nearest (identity when equal)
    norm_eps: Positive = 1e-5

    @property
    def grid(self) -> int:
        return self.input_size // (4 * 2 ** (len(self.dims) - 1))

    def __post_init__(self):
        if not 0 < len(self.depths) == len(self.dims):
            raise ConfigError(f"convnext: {len(self.depths)} depths for {len(self.dims)} dims; a stage has one of both")
        if self.input_size % (4 * 2 ** (len(self.dims) - 1)):
            raise ConfigError(
                f"convnext: an input of {self.input_size} pixels does not survive {len(self.dims)} stages"
            )


@dataclass(frozen=True)
class QFormerConfig(Settings):
    width: Count = 768
    layers: Count = 12
    heads: Count = 12
    mlp_width: Count = 3072
    queries: Count = 32
    norm_eps: Positive = 1e-12

    def __post_init__(self):
        if self.width % self.heads:
            raise ConfigError(f"qformer: width {self.width} does not divide over {self.heads} heads")
        if self.layers % 2:
            raise ConfigError("qformer: layers come in pairs (cross-attention in the even ones); give an even number")


@dataclass(frozen=True)
class ViewsConfig(Settings):
    """An overview plus `crops` × `crops` sub-images (0: the overview alone)."""

    image_size: Count = 224
    crops: Whole = 0
    half_overview: bool = False  # the overview passes through float16 even where its size is kept
    skip_padded: bool = False  # a crop that is padding alone becomes one learned token (SPHINX-X, section 3.2)
    half_resize: Literal["float16", "float32"] = "float16"  # the resize weights of the reference on CPU | CUDA

    def __post_init__(self):
        if self.skip_padded and (not self.crops or self.image_size % self.crops):
            raise ConfigError(f"skip_padded needs crops that divide the {self.image_size} pixels, not {self.crops}")

    @property
    def views(self) -> int:
        return 1 + self.crops**2


@dataclass(frozen=True)
class ModelConfig(Settings):
    name: str = "sphinx"
    decoder: DecoderConfig = dataclasses.field(default_factory=DecoderConfig)
    views: ViewsConfig | None = None  # None: a text-only model
    clip: VitConfig | None = None
    convnext: ConvNextConfig | None = None
    dinov2: VitConfig | None = None
    blip2: VitConfig | None = None
    qformer: QFormerConfig | None = None
    pool_overview: Count = 1  # side of the square of patches averaged into one position
    pool_crops: Count = 1
    dtype: Literal[DTYPES] = "float32"  # compute dtype

    @property
    def grid(self) -> int:
        """Side of the grid of mixed patches; every encoder is brought to it before the channel concatenation."""
        vit = self.clip or self.dinov2
        return vit.grid if vit else self.convnext.grid

    @property
    def has_vision(self) -> bool:
        return self.views is not None

    def positions_of_view(self, view: int) -> int:
        """Positions one view takes in the decoder: start tag, queries, class, patches, end tag."""
        pool = self.pool_overview if view == 0 else self.pool_crops
        return 2 + (self.qformer.queries if self.qformer else 0) + 1 + (self.grid // pool) ** 2

    @property
    def image_positions(self) -> int:
        return sum(map(self.positions_of_view, range(self.views.views))) if self.has_vision else 0

    @property
    def mixed_channels(self) -> int:
        widths = (
            self.clip and self.clip.width,
            self.convnext and self.convnext.dims[-1],
            self.dinov2 and self.dinov2.width,
        )
        return sum(w for w in widths if w)

    def __post_init__(self):
        if not self.has_vision:
            return
        if not (self.clip or self.convnext or self.dinov2):
            raise ConfigError("a model with views needs at least one of clip, convnext, dinov2")
        if bool(self.blip2) != bool(self.qformer):
            raise ConfigError("blip2 (the vision tower) and qformer come together")
        for pool in (self.pool_overview, self.pool_crops):
            if self.grid % pool:
                raise ConfigError(f"a grid of {self.grid} patches is not whole squares of {pool}")


def clip_config(width=1024, layers=24, heads=16, patch=14, view_size=224, quick_gelu=False) -> VitConfig:
    """OpenAI CLIP ViT; `quick_gelu` as the weights were trained, erf GELU as the reference's HEAD runs them."""
    return VitConfig(
        width,
        layers,
        heads,
        4 * width,
        patch,
        view_size,
        patch_bias=False,
        norm_before=True,
        activation="quick_gelu" if quick_gelu else "gelu",
        norm_eps=1e-5,
    )


def dinov2_config(width=1536, layers=40, heads=24, patch=14, view_size=224, position_grid=37) -> VitConfig:
    """DINOv2 with packed SwiGLU: hidden = 2/3 of 4 × width, up to a multiple of 8 (the authors' SwiGLUFFNFused)."""
    hidden = (int(width * 4 * 2 / 3) + 7) // 8 * 8
    return VitConfig(
        width,
        layers,
        heads,
        hidden,
        patch,
        view_size,
        activation="swiglu",
        layer_scale=True,
        norm_eps=1e-6,
        position_grid=position_grid,
        imagenet_normalised=True,
    )


def blip2_config(width=1408, layers=39, heads=16, mlp_width=6144, patch=14, view_size=224) -> VitConfig:
    return VitConfig(width, layers, heads, mlp_width, patch, view_size, norm_eps=1e-6)


DECODERS = {
    "7b": DecoderConfig(dim=4096, layers=32, heads=32),
    "13b": DecoderConfig(dim=5120, layers=40, heads=40),
    "tiny": DecoderConfig(dim=2048, layers=22, heads=32, kv_heads=4),
}


def mixtral_config(balance_weight: float) -> DecoderConfig:
    """Mixtral 8x7B."""
    return DecoderConfig(
        dim=4096, layers=32, heads=32, kv_heads=8, hidden_dim=14336, rope_theta=1e6, moe=MoeConfig(8, 2, balance_weight)
    )


LARGE_CONVNEXT = ConvNextConfig(view_size=512, input_size=512)


def _full(name: str, decoder: DecoderConfig, views: ViewsConfig, **changes) -> ModelConfig:
    encoders = {"clip": clip_config(), "convnext": ConvNextConfig(), "dinov2": dinov2_config()}
    encoders |= {"blip2": blip2_config(), "qformer": QFormerConfig()}
    return ModelConfig(name=name, decoder=decoder, views=views, **(encoders | changes))


def _light(name: str, views: ViewsConfig) -> ModelConfig:
    return ModelConfig(
        name=name,
        decoder=DECODERS["tiny"],
        views=views,
        convnext=LARGE_CONVNEXT,
        dinov2=dinov2_config(),
    )


FAMILY: dict[str, ModelConfig] = {
    "sphinx_7b": _full("sphinx_7b", DECODERS["7b"], ViewsConfig(224)),
    "sphinx": _full("sphinx", DECODERS["13b"], ViewsConfig(224)),
    "sphinx_1k": _full("sphinx_1k", DECODERS["13b"], ViewsConfig(448, crops=2)),
    "sphinx_v2_1k": _full("sphinx_v2_1k", DECODERS["13b"], ViewsConfig(448, crops=2)),
    "sphinx_2k": _full("sphinx_2k", DECODERS["13b"], ViewsConfig(672, crops=3)),
    "sphinx_1k_pooled": _full("sphinx_1k_pooled", DECODERS["13b"], ViewsConfig(448, crops=2), pool_crops=2),
    "sphinx_peft": _full(
        "sphinx_peft",
        dataclasses.replace(DECODERS["7b"], lora_rank=16, bias=("q", "o", *FFN_MAPS)),
        ViewsConfig(224),
    ),
    "sphinx_moe": _full(
        "sphinx_moe", mixtral_config(0.1), ViewsConfig(512, half_overview=True), convnext=LARGE_CONVNEXT
    ),
    "sphinx_moe_1k": _full("sphinx_moe_1k", mixtral_config(0.01), ViewsConfig(1024, crops=2), convnext=LARGE_CONVNEXT),
    "sphinx_tiny": _light("sphinx_tiny", ViewsConfig(512, half_overview=True)),
    "sphinx_tiny_1k": _light("sphinx_tiny_1k", ViewsConfig(1024, crops=2)),
}

# The playground's model: the same modules over pictures of 96 pixels, five 48-pixel views of 6 × 6 patches.
FAMILY["sphinx_nano"] = ModelConfig(
    name="sphinx_nano",
    decoder=DecoderConfig(dim=128, layers=4, heads=4, vocab_size=1280, multiple_of=32, tied_embeddings=True),
    views=ViewsConfig(96, crops=2),
    clip=clip_config(64, 4, 2, patch=8, view_size=48),
    convnext=ConvNextConfig((2, 4), (32, 64), view_size=48, input_size=48),
    dinov2=dinov2_config(64, 3, 2, patch=8, view_size=48, position_grid=6),
    blip2=blip2_config(64, 4, 2, 128, patch=8, view_size=48),
    qformer=QFormerConfig(64, 2, 2, 128, queries=1),
    pool_overview=1,
    pool_crops=3,
)


def family(name: str) -> ModelConfig:
    """The published configuration of that name (`sphinx`, `sphinx_1k`, …)."""
    if name not in FAMILY:
        raise unknown("model", name, FAMILY)
    return FAMILY[name]


def to_dict(config: ModelConfig) -> dict[str, Any]:
    return dataclasses.asdict(config)


def from_dict(values: Any, cls: type = ModelConfig, path: str = "model") -> Any:
    """Plain data as a config, of a model or any other; ConfigError names by its path what does not fit."""
    return checked(values, cls, path)


def to_json(config: ModelConfig) -> str:
    return json.dumps(to_dict(config), indent=2)
