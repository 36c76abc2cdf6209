"""ComfyUI's AUDIO on one side, sound in files on the other.

AUDIO   a dict: `waveform`, `b c t` in [-1, 1], and `sample_rate` in Hz.
"""

from __future__ import annotations

import wave
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..vae_core.media.video_frames import av_package


def write_wav(file: Path, audio: Mapping[str, Any]) -> None:
    """The first waveform of an AUDIO, in 16 bits: video files hold less than that."""
    waveform = audio["waveform"][0].float().cpu().clamp(-1, 1)
    with wave.open(str(file), "wb") as out:
        out.setnchannels(len(waveform))
        out.setsampwidth(2)
        out.setframerate(int(audio["sample_rate"]))
        out.writeframes((waveform.T * 32767).round().numpy().astype("<i2").tobytes())


def audio_of(file: Path) -> dict[str, Any] | None:
    """The first sound of a video file as AUDIO; None where it has none."""
    av = av_package(file)
    with av.open(str(file)) as container:
        if not container.streams.audio:
            return None
        stream = container.streams.audio[0]
        levels = av.AudioResampler(format="fltp", layout=stream.layout, rate=stream.rate)
        frames = [made for frame in container.decode(stream) for made in levels.resample(frame)] + levels.resample(None)
        if not frames:
            return None
        waveform = np.concatenate([frame.to_ndarray() for frame in frames], axis=1)
        return {"waveform": torch.from_numpy(waveform)[None], "sample_rate": stream.rate}
