"""Pictures whose sides are no multiple of a latent cell are cropped around their centre, or padded and cut back."""

from __future__ import annotations

import pytest
import torch
from tiny_vaes import some_pixels, tiny_vae

import vae_core


@pytest.mark.parametrize("name", ["sdxl", "flux2", "taesd"])
def test_crop_is_centred(name: str) -> None:
    vae = tiny_vae(name)
    mh, mw = vae.spec.multiple
    x = some_pixels(2 * mh + 5, 3 * mw + mw - 1, batch=2)
    top, left = 5 // 2, (mw - 1) // 2
    cropped = x[..., top : top + 2 * mh, left : left + 3 * mw]
    assert torch.equal(vae.encode(x), vae.encode(cropped))
    assert torch.equal(vae.encode(x, fit="crop"), vae.encode(x))


@pytest.mark.parametrize("name", ["sdxl", "flux2", "taesd"])
def test_a_picture_smaller_than_a_latent_cell(name: str) -> None:
    vae = tiny_vae(name)
    x = some_pixels(5, 3)
    mh, mw = vae.spec.multiple
    z = vae.encode(x, fit="pad")
    assert z.shape[-2:] == (mh // vae.spec.scale.h, mw // vae.spec.scale.w)
    assert vae.decode(z, size=(5, 3)).shape == x.shape
    with pytest.raises(vae_core.InputError, match='unless fit="pad"; got 3×5'):
        vae.encode(x)


@pytest.mark.parametrize("name", ["sdxl", "flux2", "taesd"])
def test_pad_loses_no_pixel(name: str) -> None:
    vae = tiny_vae(name)
    (mh, mw), (h, w) = vae.spec.multiple, (37, 70)
    x = some_pixels(h, w, batch=2)
    below, right = -h % mh, -w % mw
    padded = torch.cat([x, x[..., -1:, :].expand(-1, -1, below, -1)], dim=-2)
    padded = torch.cat([padded, padded[..., -1:].expand(-1, -1, -1, right)], dim=-1)
    z = vae.encode(x, fit="pad")
    assert torch.equal(z, vae.encode(padded))
    back = vae.decode(z, size=(h, w))
    assert back.shape == x.shape
    assert torch.equal(back, vae.decode(z)[..., :h, :w])


def test_sizes_that_fit_are_left_alone() -> None:
    vae = tiny_vae()
    x = some_pixels(32, 48)
    assert torch.equal(vae.encode(x, fit="pad"), vae.encode(x, fit="crop"))
