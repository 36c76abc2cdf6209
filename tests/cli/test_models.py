"""inspect, plan, convert and demo."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import vae_core
from vae_core.checkpoint import open_checkpoint, save_ldm, variants
from vae_core.media import read_image
from vae_core.spec import KL, Variant

ROOT = Path(__file__).resolve().parent.parent.parent


def test_help_lists_every_command():
    done = subprocess.run([sys.executable, "-m", "vae_core", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0
    for name in ("encode", "decode", "roundtrip", "inspect", "plan", "convert", "demo"):
        assert f"\n    {name}" in done.stdout


def test_a_console_without_our_characters_is_survived(vae_path):
    command = [sys.executable, "-m", "vae_core", "plan", "--width", "64", "--height", "64", "--vae", str(vae_path)]
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0 and "64?64 px" in done.stdout, done.stderr


def test_plan_prints_the_rungs(run, vae_path):
    size = ("--width", 256, "--height", 128, "--vae", vae_path)
    told, parsed = run("plan", *size), run("plan", *size, "--json")
    assert told.status == parsed.status == 0
    assert "256×128 px" in told.out and "whole" in told.out
    assert parsed.json["rung"] == "whole" and len(parsed.json["rungs"]) > 1
    encode = run("plan", *size, "--direction", "encode", "--batch", 2, "--json")
    assert encode.json["operations"] > 0 and encode.json["device_bytes"] > 0


def test_plan_under_a_limit_keeps_it(run, vae_path):
    size = ("--width", 256, "--height", 256, "--vae", vae_path, "--json")
    limit = int(0.7 * run("plan", *size).json["device_bytes"])
    limited = run("plan", *size, "--memory", limit).json
    assert limited["rung"] != "whole" and limited["device_bytes"] <= limit


def test_inspect_says_what_and_why(run, vae_path):
    told, parsed = run("inspect", vae_path), run("inspect", vae_path, "--json")
    assert told.status == parsed.status == 0
    assert parsed.json["layout"] and parsed.json["why"] and parsed.json["latent"]["channels"] == 4
    assert all(reason in told.out for reason in parsed.json["why"])


@pytest.mark.parametrize("layout", ["diffusers", "ldm", "flax"])
def test_convert_keeps_the_weights(run, vae, vae_path, tmp_path, layout):
    target = tmp_path / ("out.safetensors" if layout == "ldm" else "out")
    assert run("convert", vae_path, target, "--to", layout).status == 0
    kept = run("convert", vae_path, target, "--to", layout)
    assert kept.status == 2 and "already exists" in kept.err
    assert run("convert", vae_path, target, "--to", layout, "--force").status == 0
    assert [path.name for path in tmp_path.iterdir()] == [target.name]
    converted = vae_core.load(target).net.state_dict()
    for key, weight in vae.net.state_dict().items():
        assert torch.equal(converted[key], weight), key


def test_convert_does_not_turn_a_guess_into_a_fact(run, vae, tmp_path, monkeypatch):
    shown = {name: vae.net.config[name] for name in ("block_out_channels", "norm_num_groups")}
    rows = {
        name: Variant(name, name, KL, {**shown, "scaling_factor": 1 / scale})
        for scale, name in ((5, "sd1"), (8, "sdxl"))
    }
    monkeypatch.setattr(variants, "VARIANTS", rows)
    source, target = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    save_ldm(source, None, vae.net.state_dict())
    told = run("convert", source, target, "--to", "ldm")
    assert told.status == 0 and "nothing tells which" in told.err
    assert open_checkpoint(target).candidates == ("sd1", "sdxl")
    assert run("convert", source, target, "--to", "ldm", "--variant", "sd1", "--force").status == 0
    chosen = open_checkpoint(target)
    assert chosen.candidates == () and chosen.variant.name == "sd1" and chosen.config["scaling_factor"] == 0.2


def test_demo_streams_and_checks_itself(run, tmp_path):
    ran = run("demo", "-o", tmp_path / "demo.png", "--json")
    assert ran.status == 0, ran.err
    assert ran.json["plan"]["rung"] != "whole" and ran.json["largest_difference"] <= 1e-4
    assert read_image(tmp_path / "demo.png").pixels.std() > 0.2, "a photograph, not a grey plane"
