"""The constructor fields of each network: defaults, what a sane value is, and reading them from a config.json.

Names and defaults are those of diffusers 0.42 (the classes in `CLASSES`), so that its config.json files mean the same here.
A value is checked before it is used: a config.json comes from outside too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ..errors import CheckpointError, UnknownModelError
from ..nets.wan import LATENTS_MEAN, LATENTS_STD
from ..spec import COGVIDEOX, KL, KL_FLUX2, QWEN, TINY, WAN
from .registry import OTHER_MODELS, OTHER_VAES


class Field(NamedTuple):
    default: Any
    fits: Callable[[Any], bool]
    words: str
    """What a value has to be, for the error: "a positive integer"."""


def _is_count(value: Any) -> bool:
    return type(value) is int and 1 <= value <= 1 << 16


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e30  # false for nan and infinities too


def _is_above_0(value: Any) -> bool:
    return _is_number(value) and value > 0


def _tuple_of(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, tuple) and 0 < len(value) <= 4096 and all(map(check, value))


def _or_none(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or check(value)


def _count(default: int) -> Field:
    return Field(default, _is_count, "a positive integer")


def _counts(default: tuple[int, ...] | None) -> Field:
    check = _tuple_of(_is_count)
    return Field(default, _or_none(check) if default is None else check, "a list of positive integers")


def _blocks(default: tuple[int, ...]) -> Field:
    return Field(default, _tuple_of(lambda n: type(n) is int and 0 <= n <= 1 << 10), "a list of small whole numbers")


def _number(default: float) -> Field:
    return Field(default, _is_number, "a finite number")


def _positive(default: float) -> Field:
    return Field(default, _is_above_0, "a finite number above 0")


def _is_flag(value: Any) -> bool:
    return type(value) is bool


def _flag(default: bool) -> Field:
    return Field(default, _is_flag, "true or false")


def _text(default: str) -> Field:
    return Field(default, lambda value: isinstance(value, str), "a text")


def _kinds(only: str) -> Field:
    return Field((only,), _tuple_of(lambda value: value == only), f"a list of {only!r}, the one kind that is known")


def _only(value: Any, words: str) -> Field:
    return Field(value, lambda given: given == value and _is_flag(given) == _is_flag(value), words)


def _sample_size(default: int) -> Field:
    return Field(default, lambda value: _is_count(value) or _tuple_of(_is_count)(value), "a positive integer")


_CONVOLUTIONAL: dict[str, Field] = {
    "in_channels": _count(3),
    "out_channels": _count(3),
    "down_block_types": _kinds("DownEncoderBlock2D"),
    "up_block_types": _kinds("UpDecoderBlock2D"),
    "block_out_channels": _counts((64,)),
    "layers_per_block": _count(1),
    "act_fn": _text("silu"),
    "latent_channels": _count(4),
    "norm_num_groups": _count(32),
    "sample_size": _sample_size(32),
    "use_quant_conv": _flag(True),
    "use_post_quant_conv": _flag(True),
    "mid_block_add_attention": _flag(True),
}

_LATENTS: dict[str, Field] = {
    "scaling_factor": _positive(0.18215),
    "shift_factor": Field(None, _or_none(_is_number), "a finite number or null"),
    "latents_mean": Field(None, _or_none(_tuple_of(_is_number)), "a list of finite numbers or null"),
    "latents_std": Field(None, _or_none(_tuple_of(_is_above_0)), "a list of numbers above 0 or null"),
}

_WAN: dict[str, Field] = {
    "base_dim": _count(96),
    "z_dim": _count(16),
    "dim_mult": _counts((1, 2, 4, 4)),
    "num_res_blocks": _count(2),
    "attn_scales": _only((), "[]: no published weights have others"),
    "temperal_downsample": Field(
        (False, True, True), lambda value: value == () or _tuple_of(_is_flag)(value), "a list of true and false"
    ),
    "dropout": _only(0.0, "0.0: no published weights have another"),
    "latents_mean": Field(LATENTS_MEAN, _tuple_of(_is_number), "a list of finite numbers"),
    "latents_std": Field(LATENTS_STD, _tuple_of(_is_above_0), "a list of numbers above 0"),
}

FIELDS: Mapping[str, Mapping[str, Field]] = {
    KL: _CONVOLUTIONAL | _LATENTS | {"force_upcast": _flag(True)},
    KL_FLUX2: _CONVOLUTIONAL
    | {
        "block_out_channels": _counts((128, 256, 512, 512)),
        "decoder_block_out_channels": _counts(None),
        "layers_per_block": _count(2),
        "latent_channels": _count(32),
        "sample_size": _sample_size(1024),
        "batch_norm_eps": _positive(1e-4),
        "batch_norm_momentum": _number(0.1),
        "patch_size": Field(
            (2, 2), lambda value: _tuple_of(_is_count)(value) and len(value) == 2, "a list of two positive integers"
        ),
    },
    TINY: {
        "in_channels": _count(3),
        "out_channels": _count(3),
        "encoder_block_out_channels": _counts((64, 64, 64, 64)),
        "decoder_block_out_channels": _counts((64, 64, 64, 64)),
        "act_fn": _text("relu"),
        "upsample_fn": _text("nearest"),
        "latent_channels": _count(4),
        "upsampling_scaling_factor": _count(2),
        "num_encoder_blocks": _blocks((1, 3, 3, 3)),
        "num_decoder_blocks": _blocks((3, 3, 3, 1)),
        "latent_magnitude": _number(3),
        "latent_shift": _number(0.5),
        "force_upcast": _flag(False),
        "scaling_factor": _positive(1.0),
        "shift_factor": _number(0.0),
        # Ours: taef2 adds a pooled branch to the blocks of the lowest resolution (madebyollin/taesd, taesd.py).
        "pool_mid_blocks": _flag(False),
    },
    WAN: _WAN
    | {
        "decoder_base_dim": Field(None, _or_none(_is_count), "a positive integer or null"),
        "is_residual": _only(False, "false: true is Wan 2.2's, which is not loaded"),
        "in_channels": _count(3),
        "out_channels": _count(3),
        "patch_size": _only(None, "null: patches are Wan 2.2's, which is not loaded"),
        "scale_factor_temporal": Field(4, _or_none(_is_count), "a positive integer or null"),
        "scale_factor_spatial": Field(8, _or_none(_is_count), "a positive integer or null"),
        # Not a field of diffusers' class and yet in some published files.
        "clip_output": _flag(True),
    },
    QWEN: _WAN | {"input_channels": _count(3)},
    COGVIDEOX: _LATENTS
    | {
        "in_channels": _count(3),
        "out_channels": _count(3),
        "down_block_types": _kinds("CogVideoXDownBlock3D"),
        "up_block_types": _kinds("CogVideoXUpBlock3D"),
        "block_out_channels": _counts((128, 256, 256, 512)),
        "latent_channels": _count(16),
        "layers_per_block": _count(3),
        "act_fn": _text("silu"),
        "norm_eps": _positive(1e-6),
        "norm_num_groups": _count(32),
        "temporal_compression_ratio": Field(4, lambda value: value in (1, 2, 4, 8, 16), "a small power of two"),
        "sample_height": _count(480),
        "sample_width": _count(720),
        "scaling_factor": _positive(1.15258426),
        "force_upcast": _flag(True),
        "use_quant_conv": _only(False, "false: no published weights have it"),
        "use_post_quant_conv": _only(False, "false: no published weights have it"),
        "invert_scale_latents": _flag(False),
    },
}

CONVENTION = ("scaling_factor", "shift_factor", "latents_mean", "latents_std", "invert_scale_latents")
"""The fields that say how a raw latent becomes the model's; no tensor shows them."""

OWN_CONFIG = "exact_vae"
"""Metadata key under which our writers keep a config.json: files in LDM or TAESD layout have none beside them."""

CLASSES = {network: network for network in FIELDS} | {"FlaxAutoencoderKL": KL}
"""diffusers' name of a class -> our network."""
# AutoencoderTiny registers this copy of decoder_block_out_channels in its config and does not take it back.
_DERIVED = frozenset({"block_out_channels"})


class Given(NamedTuple):
    """What a config.json (or the config in a file's own metadata) states."""

    source: str
    """For messages: "config.json"."""
    network: str | None
    """The class it names; None where it names none."""
    values: Mapping[str, Any]
    """Known fields only, lists made tuples, each checked."""
    unknown: tuple[str, ...]
    variant: str | None = None
    """The variant that our own writer noted."""


def defaults(network: str) -> dict[str, Any]:
    """Every constructor field at its class default."""
    return {name: field.default for name, field in FIELDS[network].items()}


def config_class(data: Mapping[str, Any], where: str) -> str | None:
    """The network whose config this is; None if it names no class. Raises UnknownModelError for any other class."""
    name = data.get("_class_name")
    if name is None:
        return None
    if isinstance(name, str) and name in CLASSES:
        return CLASSES[name]
    title = next((other.title for other in OTHER_VAES + OTHER_MODELS if name in other.classes), None)
    looks = f" ({title})" if title else ""
    raise UnknownModelError(
        f"{where}: is the config of {name}{looks}, which this version does not load; it loads {', '.join(CLASSES)}"
    )


def parse_config(data: Mapping[str, Any], where: str, expected: str) -> Given:
    """The fields of a config.json for a checkpoint whose tensors belong to `expected`.

    Raises UnknownModelError for the config of another class, CheckpointError for a value that no network can have.
    """
    network = config_class(data, where)
    fields = FIELDS[network or expected]
    values = {name: _tuples(value) for name, value in data.items() if name in fields}
    if network is None and not values:
        raise CheckpointError(f"{where}: is no config of a VAE: it names no `_class_name` and no known field")
    for name, value in values.items():
        if not fields[name].fits(value):
            raise CheckpointError(f"{where}: `{name}` is {data[name]!r}, and should be {fields[name].words}")
    skipped = _DERIVED if network == TINY else frozenset()
    unknown = tuple(name for name in data if name not in fields and name not in skipped and not name.startswith("_"))
    noted = data.get("_variant")
    return Given(where, network, values, unknown, noted if isinstance(noted, str) else None)


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
