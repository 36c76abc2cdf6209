"""The small picture that fills in while a decode runs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vae_core.geometry import grid, slices


@pytest.mark.parametrize(("h", "w"), [(9, 7), (200, 33), (65, 130)])
@pytest.mark.parametrize("tile", [64, 97, 4096])
def test_tiles_make_up_the_thinned_picture(exact, sdxl, h, w, tile):
    watch, finished = exact.part("nodes.watch"), exact.part("vae_core.stream").Finished
    result = torch.rand(2, 3, h * 8, w * 8) * 2 - 1
    preview = watch.Preview(sdxl.hosted.vae, torch.randn(2, 4, h, w))
    for image in (0, 1):
        for region in grid(result.shape[2:], (tile, tile)):
            preview.paste(finished(image, region, result[image : image + 1][slices(region)]))
    expected: Tensor = result[0, :, :: preview.step, :: preview.step]
    assert torch.equal(preview.canvas, expected) and max(expected.shape) <= 512


def test_what_is_finished_at_once_may_be_smaller_than_the_latents_are(exact, sdxl):
    watch, finished = exact.part("nodes.watch"), exact.part("vae_core.stream").Finished
    preview = watch.Preview(sdxl.hosted.vae, torch.randn(1, 4, 200, 33))
    result = torch.rand(1, 3, 1597, 260) * 2 - 1
    preview.show(result)
    thin = result[0, :, :: preview.step, :: preview.step]
    assert torch.equal(preview.canvas, thin)
    (*_, last) = grid((1600, 264), (64, 64))
    preview.paste(finished(0, last, torch.zeros(1, 3, last[0].size, last[1].size)))
    row, column = (-(-span.start // preview.step) for span in last)
    assert (preview.canvas[:, row:, column:] == 0).all() and torch.equal(preview.canvas[:, :row], thin[:, :row])


def test_a_message_is_sent_only_when_something_is_new(exact, sdxl):
    preview = exact.part("nodes.watch").Preview(sdxl.hosted.vae, torch.randn(1, 4, 8, 8))
    kind, picture, _ = preview.message()
    assert kind == "JPEG" and picture.size == (64, 64) and preview.message() is None
