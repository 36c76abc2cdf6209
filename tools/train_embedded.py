"""Train the small AutoencoderKL that ships inside the package.

The package carries a real, if small, VAE so that the examples, the tests and a first look need no
download. This script makes its weights from nothing but pictures found in installed PyPI packages:
the MIT-licensed `comfyui-workflow-templates-media-*` bundles and the freely licensed pictures of
scikit-image. Four scikit-image photographs are held out and never seen in training.

    pip install -e . scikit-image pillow comfyui-workflow-templates-media-image
    pip install --no-deps comfyui-workflow-templates-media-{api,assets-01,assets-02,other,video}
    python tools/train_embedded.py --data-out /tmp/train --minutes 85 --out vae_core/embedded

The schedule follows the wall clock, not the step count, so that a busy machine trains fewer steps but
still ends with a fully decayed learning rate. `--resume` goes on from the last checkpoint, and
`--export-only` writes the files from a checkpoint (also while another process is still training).

The shipped weights are of one run without interruption, in float32 on one thread:

    python tools/train_embedded.py --data-out /tmp/train --minutes 120 --threads 1 --seed 1
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from training_network import CONFIG, build_network, build_probe, training_loss
from training_pictures import (
    MEDIA_PACKAGES,
    SKIMAGE_HELD_OUT,
    SKIMAGE_TRAINING,
    centre_square,
    held_out_batch,
    load_or_build_cache,
    load_rgb,
    random_batch,
    skimage_picture,
    to_tensor,
    to_uint8,
)

from vae_core import AutoencoderKL

# The photographs whose latents may be shipped, with their origin as scikit-image documents it.
SHOWN_PHOTOGRAPHS = {
    "astronaut.png": "NASA photograph of the astronaut Eileen Collins, released into the public domain",
    "rocket.jpg": "SpaceX photograph of the DSCOVR launch on a Falcon 9, released into the public domain",
}

# (end of the phase as a share of the time, crop size, batch): small crops learn the local code
# cheaply; the last phases let GroupNorm and the attention see statistics of larger fields.
PHASES = ((0.35, 64, 10), (0.80, 128, 4), (0.94, 192, 2), (1.0, 256, 1))
PEAK_LR = 1.5e-3
FINAL_LR = 1e-6
WARMUP_STEPS = 150
EMA_DECAY = 0.997
PROBE_WEIGHT = 5.0  # of the colour probe at the start; fades to nothing
CHECKPOINT_SECONDS = 180.0
EVALUATE_SECONDS = 300.0


# --- evaluation -------------------------------------------------------------------------------------


@torch.no_grad()
def reconstruct(network: AutoencoderKL, batch: torch.Tensor) -> torch.Tensor:
    """Encode to the posterior mean and decode, in float32."""
    return network.decode(network.encode(batch).latent_dist.mode()).sample


def psnr(output: np.ndarray, target: np.ndarray) -> float:
    """Peak signal-to-noise ratio of two uint8 pictures."""
    error = (output.astype(np.float64) - target.astype(np.float64)) / 255.0
    return float(-10.0 * np.log10(np.mean(error**2)))


def evaluate(network: AutoencoderKL, picture_path: Path | None = None) -> list[float]:
    """PSNR of the held-out photographs; optionally writes originals above reconstructions."""
    originals = held_out_batch()
    targets = to_uint8(originals)
    outputs = np.concatenate([to_uint8(reconstruct(network, one[None])) for one in originals])
    if picture_path is not None:
        rows = [np.concatenate(list(row), axis=1) for row in (targets, outputs)]
        Image.fromarray(np.concatenate(rows, axis=0)).save(picture_path)
    return [psnr(output, target) for output, target in zip(outputs, targets, strict=True)]


# --- training ---------------------------------------------------------------------------------------


@dataclass
class State:
    """Everything a resumed run needs."""

    network: AutoencoderKL
    ema: AutoencoderKL
    probe: torch.nn.Conv2d
    optimizer: torch.optim.Optimizer
    step: int = 0
    elapsed: float = 0.0  # seconds of training, over all resumed runs
    losses: list[float] = field(default_factory=list)


def new_state() -> State:
    """A state at step zero."""
    network, probe = build_network(), build_probe()
    groups = [{"params": list(module.parameters())} for module in (network, probe)]
    optimizer = torch.optim.AdamW(groups, lr=PEAK_LR, betas=(0.9, 0.99), weight_decay=1e-4, fused=True)
    return State(network, copy.deepcopy(network).requires_grad_(False), probe, optimizer)


def save_checkpoint(state: State, path: Path) -> None:
    """Write to a side file and rename, so that a reader never sees half a checkpoint."""
    part = path.with_suffix(".part")
    payload = {
        "network": state.network.state_dict(),
        "ema": state.ema.state_dict(),
        "probe": state.probe.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "step": state.step,
        "elapsed": state.elapsed,
    }
    torch.save(payload, part)
    part.replace(path)


def load_checkpoint(path: Path) -> State:
    """Read what `save_checkpoint` wrote."""
    payload = torch.load(path, weights_only=True)
    state = new_state()
    state.network.load_state_dict(payload["network"])
    state.ema.load_state_dict(payload["ema"])
    state.probe.load_state_dict(payload["probe"])
    state.optimizer.load_state_dict(payload["optimizer"])
    state.step, state.elapsed = payload["step"], payload["elapsed"]
    return state


def learning_rate(step: int, progress: float, peak: float) -> float:
    """Linear warm-up by steps, then cosine decay by the share of the time that has passed."""
    cosine = 0.5 * (1.0 + math.cos(math.pi * min(progress, 1.0)))
    return min(1.0, (step + 1) / WARMUP_STEPS) * (FINAL_LR + (peak - FINAL_LR) * cosine)


def current_phase(progress: float) -> tuple[int, int]:
    """Crop size and batch size at this point of the run."""
    for end, size, count in PHASES:
        if progress < end:
            return size, count
    return PHASES[-1][1:]


@torch.no_grad()
def update_ema(state: State) -> None:
    """Average the weights; young averages forget faster, so that early looks are fair."""
    decay = min(EMA_DECAY, (1 + state.step) / (10 + state.step))
    for average, current in zip(state.ema.parameters(), state.network.parameters(), strict=True):
        average.lerp_(current, 1.0 - decay)


def train_step(state: State, batch: torch.Tensor, progress: float, args: argparse.Namespace) -> None:
    """One optimizer step; a step with a non-finite gradient is skipped."""
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate(state.step, progress, args.peak_lr)
    loss = training_loss(state.network, state.probe, batch, PROBE_WEIGHT * (1.0 - progress), args.bf16)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(state.network.parameters(), 1.0)
    if torch.isfinite(norm):
        state.optimizer.step()
        state.losses.append(loss.item())
    state.optimizer.zero_grad(set_to_none=True)
    state.step += 1
    update_ema(state)


def report(state: State, started: tuple[int, float], picture_path: Path) -> None:
    """Print one line of progress and write a comparison picture."""
    steps, seconds = state.step - started[0], state.elapsed - started[1]
    values = evaluate(state.ema, picture_path)
    per_picture = " ".join(f"{value:.2f}" for value in values)
    print(
        f"{time.strftime('%H:%M:%S')} step {state.step} at {state.elapsed / 60:.1f} min, "
        f"{seconds / max(steps, 1):.3f} s/step, loss {np.mean(state.losses[-200:]):.4f}, "
        f"held-out PSNR {np.mean(values):.2f} ({per_picture})",
        flush=True,
    )


def train(state: State, pictures: list[np.ndarray], args: argparse.Namespace) -> None:
    """Train until the wall clock says so, with checkpoints and looks at the held-out pictures."""
    folder, total = args.data_out, args.minutes * 60.0
    rng = np.random.default_rng([args.seed, state.step])
    torch.manual_seed(args.seed + state.step)
    last_save = state.elapsed
    mark = (state.step, state.elapsed)
    origin = time.monotonic() - state.elapsed
    while state.elapsed < total and (args.steps is None or state.step < args.steps):
        progress = state.elapsed / total
        size, count = current_phase(progress)
        batch = random_batch(pictures, size, count, rng)
        train_step(state, batch, progress, args)
        state.elapsed = time.monotonic() - origin
        if state.elapsed - last_save > CHECKPOINT_SECONDS:
            save_checkpoint(state, folder / "checkpoint.pt")
            last_save = state.elapsed
        if state.elapsed - mark[1] > EVALUATE_SECONDS or state.step == 100:
            report(state, mark, folder / "held_out.png")
            mark = (state.step, state.elapsed)
    save_checkpoint(state, folder / "checkpoint.pt")
    report(state, mark, folder / "held_out.png")


# --- export -----------------------------------------------------------------------------------------


@torch.no_grad()
def latent_std(network: AutoencoderKL, pictures: list[np.ndarray], count: int = 160) -> float:
    """Standard deviation of the latents over evenly chosen training pictures at 256x256."""
    chosen = np.linspace(0, len(pictures) - 1, min(count, len(pictures))).astype(int)
    latents = []
    for index in chosen:
        square = centre_square(Image.fromarray(np.array(pictures[index])), 256)
        latents.append(network.encode(to_tensor(np.asarray(square))[None]).latent_dist.mode())
    return float(torch.cat(latents).std())


def export_weights(state: State, pictures: list[np.ndarray], folder: Path) -> AutoencoderKL:
    """Write config.json and the fp16 EMA weights; return the network as a reader will see it."""
    weights = {name: tensor.half().contiguous() for name, tensor in state.ema.state_dict().items()}
    metadata = {
        "format": "pt",
        "description": "Small AutoencoderKL (8x, 4 latent channels) for examples and tests",
        "license": "MIT",
        "trained_by": "tools/train_embedded.py, from random weights; EMA weights, float16",
        "training_data": f"{len(pictures)} pictures of the packages {', '.join(MEDIA_PACKAGES)} (MIT) and of "
        f"scikit-image ({', '.join(SKIMAGE_TRAINING)}: CC0, public domain, no known restrictions or BSD-3-Clause)",
        "held_out": ", ".join(f"scikit-image {name}" for name in SKIMAGE_HELD_OUT),
        "steps": str(state.step),
    }
    save_file(weights, folder / "diffusion_pytorch_model.safetensors", metadata=metadata)
    network = build_network().eval()
    network.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    factor = round(1.0 / latent_std(network, pictures), 5)
    config = {"_class_name": "AutoencoderKL", **CONFIG, "scaling_factor": factor}
    config |= {"force_upcast": False, "use_quant_conv": True, "use_post_quant_conv": True}
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    return network


@torch.no_grad()
def export_photograph(network: AutoencoderKL, name: str, folder: Path) -> None:
    """Write the latents of one public-domain photograph, so that a decode can be shown at once."""
    pixels = np.asarray(load_rgb(skimage_picture(name)))
    height, width = (side // 8 * 8 for side in pixels.shape[:2])
    top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
    batch = to_tensor(pixels[top : top + height, left : left + width])[None]
    latents = network.encode(batch).latent_dist.mode().half().contiguous()
    metadata = {
        "picture": f"scikit-image skimage/data/{name}, centre crop {width}x{height}",
        "origin": SHOWN_PHOTOGRAPHS[name],
        "license": "public domain",
        "latents": "posterior mean of the embedded AutoencoderKL, raw (not scaled), float16",
    }
    save_file({"latents": latents}, folder / "photograph.safetensors", metadata=metadata)


def export(state: State, pictures: list[np.ndarray], args: argparse.Namespace) -> None:
    """Write the three files of the package."""
    args.out.mkdir(parents=True, exist_ok=True)
    network = export_weights(state, pictures, args.out)
    export_photograph(network, args.photograph, args.out)
    values = evaluate(network, args.data_out / "exported.png")
    named = dict(zip(SKIMAGE_HELD_OUT, (round(value, 2) for value in values), strict=True))
    print(f"exported step {state.step}; held-out PSNR {np.mean(values):.2f} {named}")


def parse_arguments() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data-out", type=Path, required=True, help="cache and checkpoints")
    parser.add_argument("--out", type=Path, help="folder of the exported files; none: no export")
    parser.add_argument("--minutes", type=float, default=85.0, help="wall-clock length of the run")
    parser.add_argument("--steps", type=int, help="stop at this step (for trying things out)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--peak-lr", type=float, default=PEAK_LR)
    parser.add_argument("--bf16", action="store_true", help="autocast: faster on CPUs with AMX or AVX512-BF16 only")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint")
    parser.add_argument("--export-only", action="store_true", help="only write the files")
    parser.add_argument("--photograph", choices=sorted(SHOWN_PHOTOGRAPHS), default="rocket.jpg")
    return parser.parse_args()


def main() -> None:
    """Build the cache, train, export."""
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)
    torch.manual_seed(args.seed)
    pictures = load_or_build_cache(args.data_out)
    resume = args.resume or args.export_only
    state = load_checkpoint(args.data_out / "checkpoint.pt") if resume else new_state()
    count = sum(parameter.numel() for parameter in state.network.parameters())
    print(f"{count} parameters, {len(pictures)} pictures, step {state.step}", flush=True)
    if not args.export_only:
        train(state, pictures, args)
    if args.out is not None:
        export(state, pictures, args)


if __name__ == "__main__":
    main()
