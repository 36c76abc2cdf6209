"""The only door to ComfyUI: everything that the nodes ask of it, and what stands in for it where there is none.

ComfyUI decides on devices, on which model leaves the device and on number formats; it owns the folders, the progress bar and the
browser. Without it (in tests, or in a script) the nodes are plain classes, and each function here does the obvious thing.
"""

# pyright: reportMissingImports=false
# ComfyUI is there when the nodes run, not when their types are checked.

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ..vae_core.device import default_device
from ..vae_core.whole_files import whole

try:
    import comfy.latent_formats
    import comfy.model_management as mm
    import comfy.model_patcher
    import comfy.sd
    import comfy.utils
    import folder_paths
    from comfy.cli_args import args
except ImportError:
    CoreVAE: type = object
    PRESENT = False
else:
    CoreVAE = comfy.sd.VAE
    PRESENT = True

log = logging.getLogger(__name__)

UNFINISHED = "exact_vae_unfinished"
"""In ComfyUI's output folder: the decodes that were interrupted."""

PROGRESS_STEPS = 1000
"""Of a progress bar."""

KINDS = ("vae", "vae_approx", "checkpoints", "diffusers")
"""ComfyUI's kinds of model folders that may hold a VAE."""

LATENT_FORMATS = {
    "sd1": "SD15",
    "sd2": "SD15",
    "sdxl": "SDXL",
    "playground25": "SDXL_Playground_2_5",
    "sd3": "SD3",
    "flux1": "Flux",
    "flux2": "Flux2",
    "x4-upscaler": "SD_X4",
    "wan21": "Wan21",
    "qwen-image": "Wan21",
    "qwen-image-layered": "Wan21",
}
"""Variant → ComfyUI's class that knows how its latents look."""


# --- devices, memory, number formats ------------------------------------------------------------------------------------


def device() -> torch.device:
    """Where a VAE computes."""
    return mm.vae_device() if PRESENT else default_device()


def offload_device() -> torch.device:
    """Where its weights wait."""
    return mm.vae_offload_device() if PRESENT else device()


def result_device() -> torch.device:
    """Where pictures and latents go between nodes."""
    return mm.intermediate_device() if PRESENT else torch.device("cpu")


def flagged_dtype() -> torch.dtype | None:
    """What --fp16-vae, --bf16-vae or --fp32-vae asks for; None without such a flag."""
    if not PRESENT or not (args.fp16_vae or args.bf16_vae or args.fp32_vae):
        return None
    return mm.vae_dtype()


def free_bytes(where: torch.device) -> int:
    """Of a device's memory, as ComfyUI counts it: the driver's, and what torch holds unused; less what --reserve-vram keeps."""
    reserved = mm.extra_reserved_memory() if args.reserve_vram is not None else 0
    return max(int(mm.get_free_memory(where) - reserved), 0)


def reclaimable_bytes(where: torch.device, patcher: Any) -> int:
    """What other models would leave on the device if they were asked to go."""
    others = (p for p in mm.loaded_models() if p is not None and p.model is not patcher.model)
    return sum(p.loaded_size() for p in others if p.load_device == where and p.offload_device != where)


def managed(module: nn.Module) -> Any:
    """The module under ComfyUI's memory management: a ModelPatcher; None without ComfyUI."""
    if not PRESENT:
        return None
    return comfy.model_patcher.ModelPatcher(module, load_device=device(), offload_device=offload_device())


def load(patcher: Any, activation_bytes: int) -> None:
    """Brings a managed module's weights to its device, and asks other models to leave as far as a run needs."""
    if patcher is not None:
        mm.load_models_gpu([patcher], memory_required=activation_bytes, force_full_load=True)


# --- progress, cancel, the browser --------------------------------------------------------------------------------------


def progress_bar() -> Any:
    """ComfyUI's, of PROGRESS_STEPS; updating it raises where the user has interrupted. None without ComfyUI."""
    return comfy.utils.ProgressBar(PROGRESS_STEPS) if PRESENT else None


def raise_if_interrupted() -> None:
    if PRESENT:
        mm.throw_exception_if_processing_interrupted()


def is_interrupt(error: BaseException) -> bool:
    """Whether the user has cancelled, as opposed to something having failed."""
    return PRESENT and isinstance(error, mm.InterruptProcessingException)


def send(event: str, data: Mapping[str, Any]) -> None:
    """An event for the browser that has queued the graph."""
    if not PRESENT:
        return
    from server import PromptServer

    server = getattr(PromptServer, "instance", None)
    if server is not None and server.client_id is not None:
        server.send_sync(event, dict(data), server.client_id)


def setting(name: str, default: bool) -> bool:
    """One of the user's settings, which the browser keeps in ComfyUI's user folder."""
    if not PRESENT:
        return default
    file = Path(folder_paths.get_user_directory()) / "default" / "comfy.settings.json"
    try:
        return bool(json.loads(file.read_text(encoding="utf-8")).get(name, default))
    except (OSError, ValueError, AttributeError):
        return default


def rough_picture(latents: Tensor, variant: str) -> Tensor | None:
    """A diffusion model's latents `c h w` → `3 h w` in about [-1, 1], by one colour per channel; None where ComfyUI knows none."""
    known = getattr(comfy.latent_formats, LATENT_FORMATS.get(variant, ""), None) if PRESENT else None
    known = None if known is None else known()
    if known is None or known.latent_rgb_factors is None:
        return None
    reshape = getattr(known, "latent_rgb_factors_reshape", None)
    if reshape is not None:
        latents = reshape(latents[None])[0]
    factors = torch.tensor(known.latent_rgb_factors, dtype=latents.dtype, device=latents.device)
    if len(factors) != len(latents):
        return None
    bias = getattr(known, "latent_rgb_factors_bias", None)
    rough = torch.einsum("c h w, c r -> r h w", latents, factors)
    return rough if bias is None else rough + torch.tensor(bias, dtype=rough.dtype, device=rough.device)[:, None, None]


# --- files --------------------------------------------------------------------------------------------------------------


def roots(kind: str) -> list[Path]:
    """The folders of a kind of models."""
    if not PRESENT or kind not in folder_paths.folder_names_and_paths:
        return []
    return [Path(root) for root in folder_paths.get_folder_paths(kind)]


def files(kind: str) -> list[str]:
    """The model files of a kind, relative to its folders, with forward slashes."""
    if not roots(kind):
        return []
    return [name.replace("\\", "/") for name in folder_paths.get_filename_list(kind)]


def temporary_folder() -> Path:
    """ComfyUI's own, which it empties when it starts."""
    folder = Path(folder_paths.get_temp_directory() if PRESENT else tempfile.gettempdir())
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def unfinished_folder() -> Path:
    """Where the finished chunks of interrupted decodes are kept."""
    return Path(folder_paths.get_output_directory() if PRESENT else tempfile.gettempdir()) / UNFINISHED


def save_latent(latents: Tensor, prompt: Any, workflow: Mapping[str, Any] | None) -> Path:
    """Writes ComfyUI's `.latent`, with the workflow unless --disable-metadata, under output/latents."""
    folder, name, counter, *_ = folder_paths.get_save_image_path(
        "latents/ExactVAE_undecoded", folder_paths.get_output_directory()
    )
    metadata = None
    if not args.disable_metadata:
        metadata = {"prompt": "" if prompt is None else json.dumps(prompt)}
        metadata |= {key: json.dumps(value) for key, value in (workflow or {}).items()}
    file = Path(folder) / f"{name}_{counter:05}_.latent"
    # The empty tensor is ComfyUI's mark of latents that are stored unscaled.
    stored = {"latent_tensor": latents.detach().cpu().contiguous(), "latent_format_version_0": torch.tensor([])}
    with whole(file) as part:
        save_file(stored, part, metadata)
    return file


# --- videos -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class VideoFile:
    """What a VIDEO from a file is without ComfyUI."""

    path: str

    def get_stream_source(self) -> str:
        return self.path


def video(file: Path) -> Any:
    """A VIDEO that is that file: ComfyUI's nodes copy its packets, and decode nothing unless they are asked for another format."""
    if not PRESENT:
        return VideoFile(str(file))
    from comfy_api.input_impl import VideoFromFile

    return VideoFromFile(str(file))


def source_of(video: Any) -> str | BinaryIO | None:
    """The path, or the bytes, of a VIDEO that is a whole file; None for any other, which `components_of` has in memory."""
    kind: type = VideoFile
    if PRESENT:
        from comfy_api.input_impl import VideoFromFile as kind
    # Newer ComfyUIs cut a video by noting where to: what the file holds is then not what the VIDEO is.
    cut = any(getattr(video, f"_VideoFromFile__{name}", 0) for name in ("start_time", "duration"))
    return video.get_stream_source() if isinstance(video, kind) and not cut else None


def components_of(video: Any) -> tuple[Tensor, Mapping[str, Any] | None, float]:
    """IMAGE, AUDIO and the frames a second of a VIDEO, all of it in memory."""
    components = video.get_components()
    return components.images, components.audio, float(components.frame_rate)


def blocked(message: str) -> Any:
    """In place of an output that was not asked for: nodes that take it are not run, and the user is told why."""
    if not PRESENT:
        return None
    from comfy_execution.graph_utils import ExecutionBlocker

    return ExecutionBlocker(message)
