"""The pictures that the embedded model is trained and judged on: where they are found, which are left out, how they are cut."""

from __future__ import annotations

import importlib.metadata
import importlib.resources
import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

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

MIN_SHORT_SIDE = 200  # smaller pictures are icons and logos
MAX_SHORT_SIDE = 512  # larger ones are reduced: the cache stays small, the content dense
MAX_FLAT_SHARE = 0.6  # share of 16x16 blocks without texture above which a picture teaches little
DUPLICATE_BITS = 5  # difference-hash distance (of 64) up to which two pictures count as one
HELD_OUT_BITS = 12  # stricter towards the held-out pictures


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
