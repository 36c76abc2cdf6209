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
import importlib.metadata
import importlib.resources
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file

from vae_core import AutoencoderKL

MEDIA_PACKAGES = tuple(
    f"comfyui-workflow-templates-media-{part}" for part in ("image", "api", "assets-01", "assets-02", "other", "video")
)
MEDIA_LICENSE = "MIT"
PICTURE_SUFFIXES = {".webp", ".png", ".jpg", ".jpeg"}

# The photographs (and the like) of scikit-image that its documentation calls CC0, public domain or
# without known restrictions; "moon" has no note and so falls under scikit-image's own BSD-3-Clause.
# The stereo pair (terms of another data set) and the synthetic pictures are left out.
SKIMAGE_TRAINING = (
    "brick.png", "camera.png", "cell.png", "coins.png", "grass.png", "gravel.png",
    "hubble_deep_field.jpg", "ihc.png", "moon.png", "retina.jpg",
)  # fmt: skip
SKIMAGE_HELD_OUT = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg")

# The photographs whose latents may be shipped, with their origin as scikit-image documents it.
SHOWN_PHOTOGRAPHS = {
    "astronaut.png": "NASA photograph of the astronaut Eileen Collins, released into the public domain",
    "rocket.jpg": "SpaceX photograph of the DSCOVR launch on a Falcon 9, released into the public domain",
}

MIN_SHORT_SIDE = 200  # smaller pictures are icons and logos
MAX_SHORT_SIDE = 512  # larger ones are reduced: the cache stays small, the content dense
MAX_FLAT_SHARE = 0.6  # share of 16x16 blocks without texture above which a picture teaches little
DUPLICATE_BITS = 5  # difference-hash distance (of 64) up to which two pictures count as one
HELD_OUT_BITS = 12  # stricter towards the held-out pictures

CONFIG: dict[str, Any] = {
    "act_fn": "silu",
    "block_out_channels": [24, 48, 96, 96],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "out_channels": 3,
    "sample_size": 256,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}

# (end of the phase as a share of the time, crop size, batch): small crops learn the local code
# cheaply; the last phases let GroupNorm and the attention see statistics of larger fields.
PHASES = ((0.35, 64, 10), (0.80, 128, 4), (0.94, 192, 2), (1.0, 256, 1))
PEAK_LR = 1.5e-3
FINAL_LR = 1e-6
WARMUP_STEPS = 150
EMA_DECAY = 0.997
PROBE_WEIGHT = 5.0  # of the colour probe at the start; fades to nothing
KL_WEIGHT = 3e-5  # per latent value; only keeps the latents from drifting to large values
CHECKPOINT_SECONDS = 180.0
EVALUATE_SECONDS = 300.0


# --- pictures ---------------------------------------------------------------------------------------


def load_rgb(path: Path) -> Image.Image:
    """Open a picture as RGB; of an animation take the middle frame (the first is often a fade-in)."""
    with Image.open(path) as picture:
        frames = getattr(picture, "n_frames", 1)
        if frames > 1:
            picture.seek(frames // 2)
        if picture.mode in ("RGBA", "LA", "P", "PA"):
            rgba = picture.convert("RGBA")
            canvas = Image.new("RGBA", rgba.size, "white")
            return Image.alpha_composite(canvas, rgba).convert("RGB")
        return picture.convert("RGB")


def package_pictures(package: str) -> Iterator[Path]:
    """Yield the picture files of an installed media package, after checking its licence."""
    try:
        distribution = importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        print(f"{package}: not installed, left out")
        return
    meta = distribution.metadata
    licence = meta.json.get("license_expression") or meta.json.get("license")
    if licence != MEDIA_LICENSE:
        raise SystemExit(f"{package}: licence is {licence!r}, expected {MEDIA_LICENSE!r}")
    for file in sorted(distribution.files or [], key=str):
        if file.suffix.lower() in PICTURE_SUFFIXES:
            yield Path(str(file.locate()))


def skimage_picture(name: str) -> Path:
    """Path of a picture bundled with scikit-image (its own loader would ask the network for others)."""
    return Path(str(importlib.resources.files("skimage") / "data" / name))


def difference_hash(picture: Image.Image) -> int:
    """64-bit perceptual hash: survives scaling and recompression, so near-copies are found."""
    small = np.asarray(picture.convert("L").resize((9, 8), Image.Resampling.LANCZOS), dtype=np.int16)
    bits = (small[:, 1:] > small[:, :-1]).ravel()
    return int("".join("1" if bit else "0" for bit in bits), 2)


def flat_share(picture: Image.Image) -> float:
    """Share of 16x16 blocks that hold (almost) nothing: plain backgrounds, panels, letterboxing."""
    grey = np.asarray(picture.convert("L"), dtype=np.float32)
    rows, cols = grey.shape[0] // 16, grey.shape[1] // 16
    blocks = grey[: rows * 16, : cols * 16].reshape(rows, 16, cols, 16)
    return float((blocks.std(axis=(1, 3)) < 2.0).mean())


def reduce_short_side(picture: Image.Image, limit: int) -> Image.Image:
    """Scale a picture down so that its short side is at most `limit`."""
    short = min(picture.size)
    if short <= limit:
        return picture
    size = tuple(round(side * limit / short) for side in picture.size)
    return picture.resize((size[0], size[1]), Image.Resampling.LANCZOS)


def near(value: int, others: list[int], bits: int) -> bool:
    """Whether a hash lies within `bits` of any other."""
    return any((value ^ other).bit_count() <= bits for other in others)


def candidate_paths() -> Iterator[Path]:
    """Every picture that may be used in training, in a fixed order."""
    for package in MEDIA_PACKAGES:
        yield from package_pictures(package)
    for name in SKIMAGE_TRAINING:
        yield skimage_picture(name)


def collect_pictures() -> list[np.ndarray]:
    """Decode, filter and de-duplicate the training pictures."""
    held_out = [difference_hash(load_rgb(skimage_picture(name))) for name in SKIMAGE_HELD_OUT]
    hashes: list[int] = []
    pictures: list[np.ndarray] = []
    dropped = {"small": 0, "flat": 0, "copy": 0, "held out": 0}
    for path in candidate_paths():
        picture = load_rgb(path)
        code = difference_hash(picture)
        if min(picture.size) < MIN_SHORT_SIDE:
            dropped["small"] += 1
        elif flat_share(picture) > MAX_FLAT_SHARE:
            dropped["flat"] += 1
        elif near(code, held_out, HELD_OUT_BITS):
            dropped["held out"] += 1
        elif near(code, hashes, DUPLICATE_BITS):
            dropped["copy"] += 1
        else:
            hashes.append(code)
            pictures.append(np.asarray(reduce_short_side(picture, MAX_SHORT_SIDE)))
    print(f"{len(pictures)} training pictures; dropped {dropped}")
    return pictures


def load_or_build_cache(folder: Path) -> list[np.ndarray]:
    """Decode all pictures once into one flat uint8 file, then map it: loading is free afterwards."""
    index_path, data_path = folder / "pictures.json", folder / "pictures.bin"
    if not index_path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        pictures = collect_pictures()
        with data_path.open("wb") as file:
            for picture in pictures:
                file.write(picture.tobytes())
        index_path.write_text(json.dumps([picture.shape[:2] for picture in pictures]))
    flat = np.memmap(data_path, dtype=np.uint8, mode="r")
    views, start = [], 0
    for height, width in json.loads(index_path.read_text()):
        size = height * width * 3
        views.append(flat[start : start + size].reshape(height, width, 3))
        start += size
    return views


def to_tensor(array: np.ndarray) -> torch.Tensor:
    """uint8 [..., H, W, 3] to float [-1, 1] [..., 3, H, W]."""
    return torch.from_numpy(np.array(array)).float().movedim(-1, -3) / 127.5 - 1.0


def to_uint8(batch: torch.Tensor) -> np.ndarray:
    """Float [-1, 1] [..., 3, H, W] to the uint8 picture a viewer would show."""
    array = ((batch.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return array.movedim(-3, -1).contiguous().numpy()


def centre_square(picture: Image.Image, size: int) -> Image.Image:
    """Resize the short side to `size` (Lanczos) and crop the centre square."""
    scale = size / min(picture.size)
    width, height = (round(side * scale) for side in picture.size)
    resized = picture.resize((width, height), Image.Resampling.LANCZOS)
    left, top = (width - size) // 2, (height - size) // 2
    return resized.crop((left, top, left + size, top + size))


def held_out_batch() -> torch.Tensor:
    """The four held-out photographs at 256x256."""
    squares = [centre_square(load_rgb(skimage_picture(name)), 256) for name in SKIMAGE_HELD_OUT]
    return to_tensor(np.stack([np.asarray(square) for square in squares]))


def random_crop(picture: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Cut a random square, scaled by 0.3 to 1; at random flipped, transposed, or with colours swapped."""
    height, width = picture.shape[:2]
    largest = min(height, width)
    lowest = min(1.0, max(0.3, size / largest))
    side = min(largest, round(size / math.exp(rng.uniform(math.log(lowest), 0.0))))
    top, left = int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1))
    crop = Image.fromarray(np.ascontiguousarray(picture[top : top + side, left : left + side]))
    if side != size:
        crop = crop.resize((size, size), Image.Resampling.BICUBIC)
    array = np.asarray(crop)
    if rng.random() < 0.5:
        array = array[:, ::-1]
    if rng.random() < 0.15:  # rarely: gravity is worth learning, texture direction is not
        array = array.transpose(1, 0, 2)
    if rng.random() < 0.25:  # pictures as a whole favour orange and blue; this shows all the others
        array = array[..., rng.permutation(3)]
    return array


def random_batch(pictures: list[np.ndarray], size: int, count: int, rng: np.random.Generator) -> torch.Tensor:
    """A batch of random crops."""
    chosen = rng.integers(len(pictures), size=count)
    crops = np.stack([random_crop(pictures[int(index)], size, rng) for index in chosen])
    return to_tensor(crops).to(memory_format=torch.channels_last)


# --- network and loss -------------------------------------------------------------------------------


def build_network() -> AutoencoderKL:
    """A fresh network whose posterior starts narrow: a unit-variance start would drown the signal."""
    network = AutoencoderKL(**CONFIG)
    assert network.quant_conv is not None and network.quant_conv.bias is not None
    with torch.no_grad():
        network.quant_conv.bias[CONFIG["latent_channels"] :] = -6.0
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def gradient_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """L1 between neighbour differences: keeps edges sharp where plain L1 settles for blur."""
    error = output - target
    across = (error[..., 1:] - error[..., :-1]).abs().mean()
    down = (error[..., 1:, :] - error[..., :-1, :]).abs().mean()
    return across + down


def reconstruction_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """L1 and MSE at full size, the same at reduced sizes, colour, and edges.

    The strong terms at 8x reduction are the mean colour of each latent cell. Without them the network
    spends its first thousand steps on a sharp but grey picture; without the one on colour differences
    it then stops at a single colour axis (orange to teal), which is most of what photographs hold.
    """
    loss = F.l1_loss(output, target) + F.mse_loss(output, target)
    for factor, weight in ((2, 0.5), (4, 0.5)):
        small, small_target = F.avg_pool2d(output, factor), F.avg_pool2d(target, factor)
        loss = loss + weight * F.l1_loss(small, small_target)
    error = F.avg_pool2d(output, 8) - F.avg_pool2d(target, 8)
    loss = loss + 0.5 * error.abs().mean() + 3.0 * error.square().mean()
    colour = error[:, [0, 2]] - error[:, [1]]
    loss = loss + 0.3 * colour.abs().mean() + 3.0 * colour.square().mean()
    return loss + 0.25 * gradient_loss(output, target)


def build_probe() -> torch.nn.Conv2d:
    """A linear map from latents to the mean colour of their cells; only training uses it."""
    return torch.nn.Conv2d(CONFIG["latent_channels"], CONFIG["out_channels"], 1)


def training_loss(
    network: AutoencoderKL, probe: torch.nn.Conv2d, batch: torch.Tensor, probe_weight: float, bf16: bool
) -> torch.Tensor:
    """One forward pass through encoder, posterior sample and decoder.

    The probe asks for latents from which the mean colour can be read linearly. Left alone, training
    settles where the four latents hold brightness, two slopes and orange-to-blue, and never finds green.
    """
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        posterior = network.encode(batch).latent_dist
        mean, logvar = posterior.mean.float(), posterior.logvar.float()
        latents = mean + torch.exp(0.5 * logvar) * torch.randn_like(mean)
        output = network.decode(latents).sample.float()
    kl = 0.5 * (mean.square() + logvar.exp() - 1.0 - logvar).mean()
    loss = reconstruction_loss(output, batch) + KL_WEIGHT * kl
    return loss + probe_weight * F.mse_loss(probe(mean), F.avg_pool2d(batch, 8))


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
