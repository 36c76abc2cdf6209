"""Pictures of every mode in, pictures out, and nothing half-written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vae_core.errors import InputError
from vae_core.media import read_image, write_image

RED = torch.tensor([1.0, -1.0, -1.0])[None, :, None, None]


def ramp(height: int = 6, width: int = 9, channels: int = 3) -> np.ndarray:
    """`h w c`, uint8, every pixel different."""
    return (np.arange(height * width * channels) % 251).astype(np.uint8).reshape(height, width, channels)


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "CMYK", "YCbCr"])
def test_opaque_modes(tmp_path, mode):
    path = tmp_path / ("picture.tif" if mode in ("CMYK", "YCbCr") else "picture.png")
    Image.fromarray(ramp()).convert(mode).save(path)
    picture = read_image(path)
    assert picture.pixels.shape == (1, 3, 6, 9) and picture.pixels.dtype == torch.float32
    assert picture.alpha is None
    expected = torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)[None] / 127.5 - 1
    assert torch.equal(picture.pixels, expected)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_read_beside_the_colours(tmp_path, mode):
    levels = ramp(channels=len(mode))
    Image.fromarray(levels, mode).save(tmp_path / "picture.png")
    picture = read_image(tmp_path / "picture.png")
    assert picture.alpha is not None
    assert torch.equal(picture.alpha[0, 0], torch.from_numpy(levels[..., -1]) / 255)
    assert torch.equal(picture.pixels[0, 0], torch.from_numpy(levels[..., 0]) / 127.5 - 1)


def test_transparent_palette_and_colour_key(tmp_path):
    palette = Image.new("P", (2, 1), 0)
    palette.putpalette([255, 0, 0, 0, 255, 0])
    palette.putpixel((1, 0), 1)
    palette.save(tmp_path / "palette.png", transparency=1)
    Image.new("RGB", (2, 1), (255, 0, 0)).save(tmp_path / "key.png", transparency=(255, 0, 0))
    alpha = read_image(tmp_path / "palette.png").alpha
    assert alpha is not None and alpha.flatten().tolist() == [1.0, 0.0]
    alpha = read_image(tmp_path / "key.png").alpha
    assert alpha is not None and alpha.flatten().tolist() == [0.0, 0.0]


def test_sixteen_bit_grey_keeps_its_depth(tmp_path):
    levels = np.array([[0, 1, 32_768, 65_535]], dtype=np.uint16)
    Image.fromarray(levels).save(tmp_path / "deep.png")
    pixels = read_image(tmp_path / "deep.png").pixels
    assert torch.allclose(pixels[0, 1, 0], torch.tensor(levels[0].astype(np.float32)) / 65_535 * 2 - 1, atol=1e-7)


def test_exif_orientation_is_applied(tmp_path):
    image = Image.new("RGB", (8, 4), "blue")
    image.paste("red", (0, 0, 4, 4))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn a quarter clockwise to view
    image.save(tmp_path / "turned.png", exif=exif)
    pixels = read_image(tmp_path / "turned.png").pixels
    assert pixels.shape == (1, 3, 8, 4)
    assert torch.equal(pixels[..., :4, :], RED.expand(1, 3, 4, 4))


def test_first_frame_of_an_animation(tmp_path):
    frames = [Image.new("RGB", (3, 2), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "moving.webp", save_all=True, append_images=frames[1:], lossless=True)
    assert torch.equal(read_image(tmp_path / "moving.webp").pixels, RED.expand(1, 3, 2, 3))


def broken_pictures(folder: Path) -> dict[str, Path]:
    Image.fromarray(ramp(64, 64)).save(folder / "good.png")
    good = (folder / "good.png").read_bytes()
    contents = {
        "empty.png": b"",
        "page.jpg": b"<!DOCTYPE html><title>404</title>",
        "cut.png": good[: len(good) // 2],
        "garbled.png": good[:40] + bytes(200) + good[240:],
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    Image.fromarray(np.array([[0.5, 7.0]], dtype=np.float32)).save(folder / "real.tif")
    return {name: folder / name for name in [*contents, "real.tif", "missing.png", "."]}


@pytest.mark.parametrize("name", ["empty.png", "page.jpg", "cut.png", "garbled.png", "real.tif", "missing.png", "."])
def test_broken_pictures_are_named_in_one_sentence(tmp_path, name):
    path = broken_pictures(tmp_path)[name]
    with pytest.raises(InputError) as caught:
        read_image(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message


@pytest.mark.parametrize("suffix", [".png", ".webp"])
def test_lossless_round_trip_with_alpha(tmp_path, suffix):
    path = tmp_path / f"picture{suffix}"
    levels = torch.from_numpy(ramp(channels=4)).permute(2, 0, 1)[None].float()
    levels[:, 3].clamp_(min=1)  # WebP may change the colour of what is fully transparent
    assert write_image(path, levels[:, :3] / 127.5 - 1, alpha=levels[:, 3:] / 255, quality=100) == [path]
    picture = read_image(path)
    assert torch.equal(picture.pixels, levels[:, :3] / 127.5 - 1)
    assert picture.alpha is not None and torch.equal(picture.alpha, levels[:, 3:] / 255)


def test_jpeg_is_close_and_values_beyond_the_range_are_clipped(tmp_path):
    pixels = torch.linspace(-3, 3, 64 * 64).reshape(1, 1, 64, 64).expand(1, 3, 64, 64)
    write_image(tmp_path / "picture.jpg", pixels)
    assert (read_image(tmp_path / "picture.jpg").pixels - pixels.clamp(-1, 1)).abs().max() < 0.05


def test_a_batch_becomes_numbered_files(tmp_path):
    written = write_image(tmp_path / "picture.png", torch.zeros(11, 3, 4, 4))
    assert [path.name for path in written[:2]] == ["picture_01.png", "picture_02.png"]
    assert len(list(tmp_path.iterdir())) == 11


@pytest.mark.parametrize(
    ("name", "pixels"),
    [
        ("picture.gif", torch.zeros(1, 3, 4, 4)),
        ("picture", torch.zeros(1, 3, 4, 4)),
        ("picture.png", torch.zeros(1, 4, 4, 4)),
        ("picture.png", torch.full((1, 3, 4, 4), float("nan"))),
        ("picture.webp", torch.zeros(1, 3, 1, 16_384)),
        ("nowhere/picture.png", torch.zeros(1, 3, 4, 4)),
        (".", torch.zeros(1, 3, 4, 4)),
    ],
)
def test_what_cannot_be_written_is_refused(tmp_path, name, pixels):
    with pytest.raises(InputError):
        write_image(tmp_path / name, pixels)
    assert list(tmp_path.iterdir()) == []


def test_jpeg_refuses_alpha(tmp_path):
    with pytest.raises(InputError, match="transparency"):
        write_image(tmp_path / "picture.jpg", torch.zeros(1, 3, 4, 4), alpha=torch.ones(1, 1, 4, 4))


def test_nothing_is_overwritten_unasked(tmp_path):
    path = tmp_path / "picture.png"
    path.write_text("mine")
    with pytest.raises(InputError, match="already exists"):
        write_image(path, torch.zeros(1, 3, 4, 4))
    assert path.read_text() == "mine"
    write_image(path, torch.zeros(1, 3, 4, 4), overwrite=True)
    assert read_image(path).pixels.shape == (1, 3, 4, 4)


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_write_leaves_the_folder_as_it_was(tmp_path, monkeypatch, failure):
    def fail(image, file, *args, **kwargs):
        Path(file).write_bytes(b"half")
        raise failure

    monkeypatch.setattr(Image.Image, "save", fail)
    path = tmp_path / "picture.png"
    path.write_text("mine")
    with pytest.raises(type(failure)):
        write_image(path, torch.zeros(1, 3, 4, 4), overwrite=True)
    assert [file.name for file in tmp_path.iterdir()] == ["picture.png"] and path.read_text() == "mine"
