"""From a command line to an exit status; the only place that turns errors into words for people.

Exit status: 0 done, 1 failed, 2 bad input, 130 stopped with Ctrl-C; with one sentence on standard error unless done.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Sequence

from ..errors import ExactVAEError
from . import convert, decode, demo, encode, inspect, plan, roundtrip
from .arguments import Parser, add_console_options
from .console import Console, Failed

COMMANDS = (encode, decode, roundtrip, inspect, plan, convert, demo)
"""Each has `add(commands)`, its grammar, and `run(options, console)`, which returns what --json prints."""

DONE, FAILED, BAD_INPUT, STOPPED = 0, 1, 2, 130


def parser() -> argparse.ArgumentParser:
    top = Parser(
        prog="python -m vae_core",
        description="Pictures and clips to latents and back, within any memory limit and without seams.",
        epilog="Exit status: 0 done, 1 failed, 2 bad input, 130 stopped. COMMAND --help tells each command's options.",
    )
    commands = top.add_subparsers(required=True, metavar="COMMAND", parser_class=Parser)
    for module in COMMANDS:
        command = module.add(commands)
        add_console_options(command)
        command.set_defaults(run=module.run)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; `arguments` default to those of the process. Returns the exit status."""
    _survive_narrow_consoles()
    try:
        options = parser().parse_args(arguments)
        result = options.run(options, Console(options.quiet, options.json))
        if options.json:
            print(json.dumps(result, indent=2))
        return DONE
    except KeyboardInterrupt as stop:
        return _end(str(stop) or "stopped", STOPPED)
    except ExactVAEError as error:
        return _end(str(error), BAD_INPUT)
    except (Failed, OSError) as error:
        return _end(str(error), FAILED)


def _survive_narrow_consoles() -> None:
    """A console or file without, say, an arrow in its encoding shows a question mark instead of ending the run."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _end(message: str, status: int) -> int:
    print(f"vae_core: {' '.join(message.split())}", file=sys.stderr)
    return status
