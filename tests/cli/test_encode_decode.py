"""encode, decode and roundtrip on real files."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import vae_core
from vae_core.cli.roundtrip import psnr
from vae_core.media import Latents, read_image, read_latents, write_latents


@pytest.fixture
def latents(tmp_path):
    """Raw latents of two pictures of 40 × 24 px, in a file."""
    tensor = torch.randn(2, 4, 3, 5, generator=torch.Generator().manual_seed(1))
    return write_latents(tmp_path / "latents.safetensors", Latents(tensor))


def as_written(pixels):
    """Pixels in [-1, 1] → as an 8-bit file holds them."""
    return ((pixels + 1) * 127.5).round().clamp(0, 255) / 127.5 - 1


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_padded_encode_decodes_to_the_picture_s_own_size(run, vae, vae_path, picture, tmp_path):
    encoded, decoded = tmp_path / "a.safetensors", tmp_path / "a.png"
    assert run("encode", picture, "-o", encoded, "--vae", vae_path, "--fit", "pad").status == 0
    latents = read_latents(encoded)
    assert torch.allclose(latents.tensor, vae.encode(read_image(picture).pixels, fit="pad"), atol=1e-5)
    assert (latents.variant, latents.normalized) == (vae.spec.name, False)
    assert latents.size == (37, 45)
    assert run("decode", encoded, "-o", decoded, "--vae", vae_path).status == 0
    expected = as_written(vae.decode(latents.tensor))[..., :37, :45]
    assert (read_image(decoded).pixels - expected).abs().max() < 1.5 / 127.5


def test_crop_is_announced(run, vae_path, picture, tmp_path):
    ran = run("encode", picture, "-o", tmp_path / "a.safetensors", "--vae", vae_path)
    assert ran.status == 0 and "cropped from 45×37 to 40×32 px" in ran.err
    latents = read_latents(tmp_path / "a.safetensors")
    assert latents.tensor.shape == (1, 4, 4, 5) and latents.size is None


def test_normalized_latents_are_scaled_and_say_so(run, vae_path, picture, tmp_path):
    raw, normal = tmp_path / "raw.safetensors", tmp_path / "normal.safetensors"
    run("encode", picture, "-o", raw, "--vae", vae_path)
    run("encode", picture, "-o", normal, "--vae", vae_path, "--normalized")
    assert read_latents(normal).normalized
    assert torch.allclose(read_latents(normal).tensor, read_latents(raw).tensor * 0.5, atol=1e-5)
    np.save(tmp_path / "normal.npy", read_latents(normal).tensor.numpy())
    pictures = []
    for source, options in ((raw, []), (normal, []), (tmp_path / "normal.npy", ["--normalized"])):
        assert run("decode", source, "-o", tmp_path / "out.png", "--vae", vae_path, "--force", *options).status == 0
        pictures.append(read_image(tmp_path / "out.png").pixels)
    assert torch.equal(pictures[0], pictures[1]) and torch.equal(pictures[0], pictures[2])


def test_sampling_is_repeatable(run, vae_path, picture, tmp_path):
    drawn = []
    for name, options in {"mean": [], "a": ["--sample", "--seed", 7], "b": ["--sample", "--seed", 7]}.items():
        target = tmp_path / f"{name}.safetensors"
        assert run("encode", picture, "-o", target, "--vae", vae_path, *options).status == 0
        drawn.append(read_latents(target).tensor)
    assert torch.equal(drawn[1], drawn[2]) and not torch.equal(drawn[0], drawn[1])


def test_a_batch_becomes_numbered_pictures(run, vae, vae_path, latents, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    ran = run("decode", latents, "-o", out / "picture.png", "--vae", vae_path, "--json")
    assert ran.status == 0 and names(out) == ["picture_1.png", "picture_2.png"]
    assert ran.json["files"][0]["outputs"] == [str(out / name) for name in names(out)]
    expected = as_written(vae.decode(read_latents(latents).tensor))
    for i, name in enumerate(names(out)):
        assert (read_image(out / name).pixels[0] - expected[i]).abs().max() < 1.5 / 127.5


def test_other_files_and_formats_decode_alike(run, vae_path, tmp_path):
    tensor = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(2))
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    save_file({"latent_tensor": tensor, "latent_format_version_0": torch.tensor([])}, folder / "comfy.latent")
    np.save(folder / "numpy.npy", tensor[0].numpy())
    write_latents(folder / "ours.safetensors", Latents(tensor))
    (folder / "notes.txt").write_text("not latents")
    ran = run("decode", folder, "-o", out, "--format", "webp", "--quality", 100, "--vae", vae_path)
    assert ran.status == 0 and names(out) == ["comfy.webp", "numpy.webp", "ours.webp"]
    pixels = [read_image(out / name).pixels for name in names(out)]
    assert torch.equal(pixels[0], pixels[1]) and torch.equal(pixels[0], pixels[2])
    several = run("decode", folder / "comfy.latent", folder / "numpy.npy", "-o", tmp_path / "two", "--vae", vae_path)
    assert several.status == 0 and names(tmp_path / "two") == ["comfy.png", "numpy.png"]
    jpeg = run("decode", folder / "numpy.npy", "-o", tmp_path / "a.jpg", "--vae", vae_path)
    assert jpeg.status == 0 and Image.open(tmp_path / "a.jpg").format == "JPEG"


def test_flux2_latents_of_comfyui_are_known_by_their_channels(run, tmp_path):
    model = vae_core.AutoencoderKLFlux2(
        block_out_channels=(8, 8, 16, 16), layers_per_block=1, norm_num_groups=4, latent_channels=4
    )
    model.load_state_dict(model.state_dict() | {"bn.running_mean": torch.full((16,), 0.5)})
    model.save_pretrained(tmp_path / "vae")
    vae = vae_core.load(tmp_path / "vae")
    raw = torch.randn(1, 4, 4, 6, generator=torch.Generator().manual_seed(4))
    packed = {"latent_tensor": vae.normalize(raw).contiguous(), "latent_format_version_0": torch.tensor([])}
    save_file(packed, tmp_path / "packed.latent")
    write_latents(tmp_path / "raw.safetensors", Latents(raw))
    for name in ("packed.latent", "raw.safetensors"):
        assert run("decode", tmp_path / name, "-o", tmp_path / f"{name}.png", "--vae", tmp_path / "vae").status == 0
    difference = read_image(tmp_path / "packed.latent.png").pixels - read_image(tmp_path / "raw.safetensors.png").pixels
    assert difference.abs().max() < 1.5 / 127.5


def test_memory_limit_changes_nothing_but_the_way(run, vae, vae_path, tmp_path):
    tensor = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(3))
    source = write_latents(tmp_path / "a.safetensors", Latents(tensor))
    limit = int(0.7 * vae.plan("decode", width=128, height=128, mode="whole").device_bytes)
    assert vae.plan("decode", width=128, height=128, memory_limit=limit).rung != "whole"
    for name, options in {"limited": ["--memory", limit], "whole": ["--mode", "whole"]}.items():
        assert run("decode", source, "-o", tmp_path / f"{name}.png", "--vae", vae_path, *options).status == 0
    difference = read_image(tmp_path / "limited.png").pixels - read_image(tmp_path / "whole.png").pixels
    assert difference.abs().max() < 1.5 / 127.5, "at most one level of 8 bits, from rounding"


def test_other_variants_latents_are_noted(run, vae_path, tmp_path):
    source = write_latents(tmp_path / "a.safetensors", Latents(torch.zeros(1, 4, 2, 2), "playground25"))
    ran = run("decode", source, "-o", tmp_path / "a.png", "--vae", vae_path)
    assert ran.status == 0 and "made by 'playground25'" in ran.err


def test_roundtrip_tells_the_psnr_and_carries_transparency(run, vae_path, picture, tmp_path):
    image = Image.open(picture)
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    image.save(tmp_path / "clear.png")
    out = tmp_path / "out.png"
    ran = run("roundtrip", tmp_path / "clear.png", "-o", out, "--vae", vae_path, "--json")
    assert ran.status == 0
    source, result = read_image(tmp_path / "clear.png"), read_image(out)
    assert ran.json["psnr_db"] == pytest.approx(psnr(result.pixels, source.pixels), abs=0.05)
    assert result.alpha is not None and source.alpha is not None and torch.equal(result.alpha, source.alpha)
    told = run("roundtrip", picture, "--vae", vae_path)
    assert told.status == 0 and told.out.startswith("PSNR ")


def test_encode_says_that_it_drops_transparency(run, vae_path, tmp_path):
    Image.new("RGBA", (16, 16), (1, 2, 3, 4)).save(tmp_path / "clear.png")
    ran = run("encode", tmp_path / "clear.png", "-o", tmp_path / "a.safetensors", "--vae", vae_path)
    assert ran.status == 0 and "transparency" in ran.err


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_dtype(run, vae_path, latents, tmp_path, precision):
    ran = run("decode", latents, "-o", tmp_path / "a.png", "--vae", vae_path, "--dtype", precision, "--device", "cpu")
    assert ran.status == 0


def test_quiet_says_nothing(run, vae_path, latents, tmp_path):
    assert run("decode", latents, "-o", tmp_path / "a.png", "--vae", vae_path, "--quiet") == (0, "", "")


def test_progress_and_result_are_shown(run, vae_path, latents, tmp_path):
    ran = run("decode", latents, "-o", tmp_path / "a.png", "--vae", vae_path, "--tile", 32)
    assert "100 %" in ran.err and "left" in ran.err
    assert ran.out.count("\n") == 1 and "40×24 px" in ran.out
