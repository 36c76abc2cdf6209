"""What can be recognised: the layouts that are loaded, the models that are not, and the hints that tell variants apart.

Rows only; `detect.py` holds the procedure. A layout's tell is a pattern of one telling key, prefix apart. Rows of other
models hold keys (a whole key or the end of one) and, where keys are shared, shapes; the first row whose keys are all
there names the file. Sources: the code of the models named, ComfyUI comfy/sd.py, diffusers 0.42 single_file_utils.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from ..spec import COGVIDEOX, KL, TINY, WAN
from .keymaps import (
    COGVIDEOX_ORIGINAL,
    DIFFUSERS,
    FLAX,
    LDM,
    PLAIN,
    TAESD,
    TAESD_MODULE,
    WAN_ORIGINAL,
    Keymap,
)


@dataclass(frozen=True, eq=False)
class Layout:
    """One way of naming the tensors of a network that is loaded."""

    name: str
    tell: str
    """Pattern of the keys that only this layout has, after any prefix."""
    keymap: Keymap
    network: str = KL
    """The class that the tensors belong to; `WAN` for Qwen-Image's too, whose names are the same."""


_TINY_LEAF = r"(?:conv\.[024]|pool\.[013])\.(?:weight|bias)$"

LAYOUTS: tuple[Layout, ...] = (
    Layout("original", r"(?:en|de)coder\.(?:middle|downsamples|upsamples)\.\d+\.residual\.", WAN_ORIGINAL, WAN),
    Layout(
        "diffusers",
        r"(?:encoder\.down_blocks\.\d+|(?:decoder\.up_blocks\.\d+|(?:en|de)coder\.mid_block)\.resnets\.\d+)\.norm\d\.gamma$",
        PLAIN,
        WAN,
    ),
    Layout(
        "original", r"(?:encoder\.down|decoder\.up)\.\d+\.block\.\d+\.conv\d\.conv\.", COGVIDEOX_ORIGINAL, COGVIDEOX
    ),
    Layout(
        "diffusers",
        r"(?:encoder\.down|decoder\.up)_blocks\.\d+\.resnets\.\d+\.conv\d\.conv\.",
        PLAIN,
        COGVIDEOX,
    ),
    Layout("ldm", r"(?:encoder\.down|decoder\.up)\.\d+\.block\.\d+\.|(?:en|de)coder\.mid\.(?:block|attn)_\d\.", LDM),
    Layout(
        "diffusers",
        r"(?:encoder\.down|decoder\.up)_blocks\.\d+\.resnets\.\d+\.|(?:en|de)coder\.mid_block\.(?:resnets|attentions)\.\d+\.",
        DIFFUSERS,
    ),
    Layout(
        "flax",
        r"(?:encoder\.down|decoder\.up)_blocks_\d+\.resnets_\d+\.|(?:en|de)coder\.mid_block\.resnets_\d+\.",
        FLAX,
    ),
    Layout("diffusers", rf"(?:en|de)coder\.layers\.\d+\.{_TINY_LEAF}", DIFFUSERS, TINY),
    Layout("comfyui taesd", rf"taesd_(?:en|de)coder\.\d+\.{_TINY_LEAF}", TAESD, TINY),
    Layout("taesd module", rf"(?:en|de)coder\.\d+\.{_TINY_LEAF}", TAESD_MODULE, TINY),
)
"""The first whose tell is seen. The names of a video network contain those of a picture's, so they come first."""

TAESD_HALF = rf"\d+\.{_TINY_LEAF}"
"""Pattern of a key in one of the two files of a TAESD, which number the layers of a Sequential."""

PREFIXES = ("vae.", "first_stage_model.", "")
"""Where a VAE is expected, in this order, if a file holds more than one (as diffusers' converter: `vae.` wins)."""


class Tell(NamedTuple):
    key: str
    """A key, or the end of one after a dot; with a dot at its end, whole parts anywhere in a key."""
    shape: tuple[int | None, ...] | None = None
    """The shape to have; None stands for any size."""


@dataclass(frozen=True)
class Other:
    """A model that is recognised, and not loaded if it has a title."""

    title: str
    """Completes "looks like ..."; "" for one that is loaded after all, so that the rows below it are not asked."""
    tells: tuple[Tell, ...]
    classes: tuple[str, ...] = ()
    """Its diffusers classes, for a config.json."""


def _other(title: str, *tells: str | Tell, classes: tuple[str, ...] = ()) -> Other:
    return Other(title, tuple(Tell(tell) if isinstance(tell, str) else tell for tell in tells), classes)


def _loaded(*tells: str) -> Other:
    return _other("", *tells)


_ANY5 = (None,) * 5

OTHER_VAES: tuple[Other, ...] = (
    _other("the SVD temporal VAE", "decoder.mid.block_1.mix_factor"),
    _other(
        "the SVD temporal VAE",
        "decoder.mid_block.resnets.0.spatial_res_block.conv1.weight",
        classes=("AutoencoderKLTemporalDecoder",),
    ),
    _other(
        "an AsymmetricAutoencoderKL",
        "decoder.condition_encoder.layers.0.weight",
        classes=("AsymmetricAutoencoderKL",),
    ),
    _other("an AsymmetricAutoencoderKL", "decoder.encoder.layers.0.weight", "decoder.conv_in.weight"),
    _other("a VQ-VAE (VQModel)", "quantize.embedding.weight", classes=("VQModel",)),
    _loaded("decoder.norm_out.conv_y.conv.weight"),  # CogVideoX
    _other(
        "the Wan 2.2 video VAE",
        "decoder.middle.0.residual.0.gamma",
        "decoder.upsamples.0.upsamples.0.residual.2.weight",
    ),
    _loaded("decoder.middle.0.residual.0.gamma"),  # Wan 2.1 and Qwen-Image
    _other(
        "the Wan 2.2 video VAE",
        "decoder.mid_block.resnets.0.norm1.gamma",
        "decoder.up_blocks.0.upsampler.resample.1.weight",
    ),
    _loaded("decoder.mid_block.resnets.0.norm1.gamma"),  # Wan 2.1 and Qwen-Image, diffusers naming
    _other(
        "the HunyuanVideo 1.5 video VAE",
        Tell("decoder.conv_in.conv.weight", (None, 32, None, None, None)),
        classes=("AutoencoderKLHunyuanVideo15",),
    ),
    _other(
        "the HunyuanVideo video VAE",
        Tell("decoder.conv_in.conv.weight", _ANY5),
        Tell("post_quant_conv.weight", _ANY5),
        classes=("AutoencoderKLHunyuanVideo",),
    ),
    _other(
        "the HunyuanImage 2.1 refiner VAE",
        Tell("decoder.conv_in.weight", (None, 32, None, None, None)),
        classes=("AutoencoderKLHunyuanImageRefiner",),
    ),
    _other(
        "the HunyuanImage 2.1 VAE",
        Tell("decoder.conv_in.weight", (None, 64, None, None)),
        "encoder.down.5.block.0.conv1.weight",
        classes=("AutoencoderKLHunyuanImage",),
    ),
    _other("the LTX video VAE", "decoder.up_blocks.0.res_blocks.0.conv1.conv.weight"),
    _other(
        "the LTX video VAE",
        "decoder.mid_block.resnets.0.conv1.conv.weight",
        Tell("decoder.conv_in.conv.weight", (None, 128, None, None, None)),
        classes=("AutoencoderKLLTXVideo", "AutoencoderKLLTX2Video"),
    ),
    _other("the Mochi video VAE", "blocks.2.blocks.3.stack.5.weight"),
    _other("the Mochi video VAE", "layers.4.layers.1.attn_block.attn.qkv.weight"),
    _other(
        "the Mochi video VAE",
        "decoder.block_in.resnets.0.norm1.norm_layer.weight",
        classes=("AutoencoderKLMochi",),
    ),
    _other("a TAEHV tiny video VAE", "decoder.22.bias"),
    _other(
        "the tiny VAE of Sana (taesana)",
        Tell("0.weight", (32, 3, 3, 3)),
        Tell("2.weight", (64, 32, 3, 3)),
        "4.conv.0.weight",
    ),
    _other("the tiny VAE of Sana (taesana)", Tell("1.weight", (256, None, 3, 3)), "29.bias", "28.conv.0.weight"),
    _other("the stage A VQ-VAE of Stable Cascade", "vquantizer.codebook.weight", classes=("PaellaVQModel",)),
    _other("the stage C encoder of Stable Cascade", "backbone.1.0.block.0.1.num_batches_tracked"),
    _other("the stage C previewer of Stable Cascade", "blocks.11.num_batches_tracked"),
    _other("the Allegro video VAE", "encoder.temp_conv_in.weight", classes=("AutoencoderKLAllegro",)),
    _other("the Cosmos video VAE", "decoder.unpatcher3d.wavelets", classes=("AutoencoderKLCosmos",)),
    _other("Sana's deep-compression VAE (DC-AE)", "decoder.stages.", "encoder.stages.", classes=("AutoencoderDC",)),
    _other("an audio VAE", "decoder.layers.1.layers.0.beta", classes=("AutoencoderOobleck",)),
    _other("an audio VAE with its vocoder", "vocoder."),
    _other("the consistency decoder", "decoder_unet.", classes=("ConsistencyDecoderVAE",)),
    _other("the Hunyuan3D shape VAE", "geo_decoder."),
    _other("ComfyUI's pixel-space VAE, which has no weights", "pixel_space_vae"),
    _other("a video VAE", Tell("encoder.conv_in.weight", _ANY5)),
    _other("a video VAE", Tell("encoder.conv_in.conv.weight", _ANY5)),
)
"""Tested before `LAYOUTS`, since several share most of their keys with a loaded network."""

OTHER_MODELS: tuple[Other, ...] = (
    _other("a LoRA", "lora_up.weight"),
    _other("a LoRA", "lora_A.weight"),
    _other("a LoRA", "lora_A.default.weight"),
    _other("a LoRA", "lora.up.weight"),
    _other("a LoRA (LoHa)", "hada_w1_a"),
    _other("a LoRA (LoKr)", "lokr_w1"),
    _other("a LoRA (LoKr)", "lokr_w1_a"),
    _other("a saved latent and not a model", "latent_tensor"),
    _other("a ControlNet", "controlnet_cond_embedding."),
    _other("a ControlNet", "input_hint_block."),
    _other("a ControlNet", "zero_convs."),
    _other("a checkpoint without its VAE (a UNet or diffusion model alone)", "diffusion_model."),
    _other("a UNet and not a VAE", "time_embedding.linear_1.weight", classes=("UNet2DConditionModel", "UNet2DModel")),
    _other("a UNet and not a VAE", "time_embed.0.weight"),
    _other("a FLUX diffusion model and not its VAE", "double_blocks.", classes=("FluxTransformer2DModel",)),
    _other("an SD3 diffusion model and not its VAE", "joint_blocks.", classes=("SD3Transformer2DModel",)),
    _other("a diffusion transformer and not a VAE", "transformer_blocks."),
    _other("a diffusion transformer and not a VAE", "blocks.0.self_attn.q.weight"),
    _other("a CLIP text encoder", "text_model.embeddings.token_embedding.weight"),
    _other("a CLIP text encoder", "transformer.resblocks.", "token_embedding.weight"),
    _other("a CLIP image encoder", "vision_model."),
    _other("a T5 text encoder", "block.0.layer.0.SelfAttention.q.weight"),
    _other("a language model used as text encoder", "embed_tokens.weight"),
    _other("a textual inversion embedding", "emb_params"),
    _other("a textual inversion embedding", "string_to_param"),
    _other("an image upscaler", "conv_first.weight"),
    _other("an image upscaler", "model.1.sub.0.weight"),
)
"""Tested when no layout was found."""


class Hint(NamedTuple):
    """A sign, outside the VAE's own tensors, of which variant it is."""

    sign: str
    variant: str


# Parts of keys beside the VAE in a full checkpoint. Order matters: Playground v2.5 has SDXL's text encoders too.
SIBLING_HINTS: tuple[Hint, ...] = (
    Hint("edm_mean", "playground25"),
    Hint("conditioner.embedders.", "sdxl"),
    Hint("joint_blocks.0.", "sd3"),
    Hint("txt_norm.weight", "qwen-image"),
    Hint("head.modulation", "wan21"),
    Hint("double_blocks.0.img_attn.norm.key_norm.scale", "flux1"),
    Hint("cond_stage_model.model.transformer.", "sd2"),
    Hint("cond_stage_model.transformer.text_model.", "sd1"),
)

# Patterns of names of video models, lower case. "CogVideoX1.5-5B" names two sizes: the family's number decides.
_CLIP_HINTS = (
    Hint(r"qwen", "qwen-image"),
    Hint(r"(?<![a-z])wan(?:video|vae)?(?![a-z])", "wan21"),
    Hint(r"cog.*(?<!\d)1[._-]?5(?!\d)", "cogvideox-1.5"),
    Hint(r"cog.*(?<!\d)2b(?![a-z])", "cogvideox-2b"),
    Hint(r"cog.*(?<!\d)5b(?![a-z])", "cogvideox-5b"),
)

METADATA_KEYS = ("modelspec.architecture", "modelspec.implementation", "modelspec.title")
# Patterns in the values of these keys (github.com/Stability-AI/ModelSpec), lower case.
METADATA_HINTS: tuple[Hint, ...] = (
    Hint(r"playground-?v?2[.-]?5", "playground25"),
    Hint(r"stable-diffusion-xl", "sdxl"),
    Hint(r"stable-diffusion-v?3", "sd3"),
    Hint(r"flux[-.]?1", "flux1"),
    Hint(r"stable-diffusion-v2", "sd2"),
    Hint(r"stable-diffusion-v1", "sd1"),
    *_CLIP_HINTS,
)

# Patterns in file and folder names, lower case. The tiny names come first: "taesdxl" contains "sdxl".
NAME_HINTS: tuple[Hint, ...] = (
    Hint(r"taesdxl", "taesdxl"),
    Hint(r"taesd3", "taesd3"),
    Hint(r"taef1", "taef1"),
    Hint(r"taesd", "taesd"),
    Hint(r"playground", "playground25"),
    Hint(r"sdxl|(?<![a-z])xl(?![a-z])", "sdxl"),
    Hint(r"(?<![a-z])sd[-_.]?3|stable-diffusion-3", "sd3"),
    Hint(r"flux|^ae$", "flux1"),
    Hint(r"(?<![a-z])sd[-_.]?v?2|stable-diffusion-(v-?)?2|v2-[01]", "sd2"),
    Hint(r"(?<![a-z])sd[-_.]?v?1|stable-diffusion-v?-?1|v1-5|ft-(mse|ema)|kl-f8", "sd1"),
    *_CLIP_HINTS,
)

FALLBACKS = ("sdxl", "flux1", "taesdxl", "taef1", "wan21", "cogvideox-5b")
"""Taken where nothing tells variants apart; the first that fits.

A raw latent decodes to the same pixels under either name: only scale and shift, applied outside the network, and the
safe dtypes differ. sdxl is the careful choice among the four-channel rows, since it forbids float16: chosen wrongly, it
costs speed; the opposite mistake gives black pictures. FLUX.1's VAE is the 16-channel one that most models share
(HiDream, Chroma, Lumina 2, Z-Image). The tiny rows follow. Wan 2.1 and Qwen-Image have the same numbers; the first is
the one that more models share. CogVideoX-5B's scale is that of its I2V model and of 1.5 too, 2B's is its own.
"""
