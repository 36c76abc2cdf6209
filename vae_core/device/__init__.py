"""Devices: memory, number formats, copies, and builds of torch that are known to be bad. The only user of torch.cuda."""

from .builds import known_problems
from .copies import Ferry
from .dtypes import default_dtype
from .formats import channels_innermost
from .memory import (
    MeasuredPeak,
    default_device,
    disk_bytes,
    free_bytes,
    host_bytes,
    parse_bytes,
    parse_limit,
    ran_out_of,
    release,
    total_bytes,
)

__all__ = [
    "Ferry",
    "MeasuredPeak",
    "channels_innermost",
    "default_device",
    "default_dtype",
    "disk_bytes",
    "free_bytes",
    "host_bytes",
    "known_problems",
    "parse_bytes",
    "parse_limit",
    "ran_out_of",
    "release",
    "total_bytes",
]
