"""A real ComfyUI on the CPU for tests: started in a temporary folder, talked to over HTTP and its websocket, stopped again.

    with ComfyServer(packs={"exact-vae": checkout}, models={"vae/some.safetensors": file}) as server:
        run = server.run(prompt)                    # prompt: ComfyUI's API format
        assert run.status == "success", run.error
        picture = server.output(run.outputs["9"]["images"][0])

COMFYUI_PATH names ComfyUI's folder, COMFYUI_PYTHON an interpreter that has its requirements (else: the one that runs).
Nothing is written outside the temporary folder. For Linux and macOS.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import Any, NamedTuple

import websocket

START_S = 300
"""ComfyUI starts in some ten seconds; its packages may lie on a slow disk."""
POLL_S = 0.1

Prompt = Mapping[str, Mapping[str, Any]]
Answer = Any
"""JSON, parsed; bytes where the server sends something else; None where it sends nothing."""


class Event(NamedTuple):
    """One message of the websocket: "progress", "progress_state", "executed", …, and "preview" with a Preview."""

    kind: str
    data: Any


class Preview(NamedTuple):
    picture: bytes
    """A JPEG or PNG file."""
    about: Mapping[str, Any]
    """What the server says of it: node_id, prompt_id, image_type, …"""


class Rejected(Exception):
    """ComfyUI refused to queue the prompt; `answer` is what it sent: "error" and "node_errors"."""

    def __init__(self, answer: Any) -> None:
        super().__init__(json.dumps(answer, indent=1))
        self.answer = answer


@dataclass(frozen=True)
class Run:
    """What became of a prompt."""

    prompt_id: str
    status: str
    """success, error or interrupted."""
    outputs: Mapping[str, Mapping[str, Any]]
    """Node id -> the `ui` of its result, as the history keeps it."""
    messages: Sequence[tuple[str, Mapping[str, Any]]]
    """The history's account: execution_start, execution_cached, execution_success, …"""
    events: Sequence[Event] = ()
    """All that the websocket sent to the client that queued the prompt, in order."""

    def of(self, kind: str) -> list[Any]:
        """The data of all events of one kind."""
        return [event.data for event in self.events if event.kind == kind]

    @property
    def executed(self) -> dict[str, Any]:
        """Node id -> the `ui` that the browser got."""
        return {data["node"]: data["output"] for data in self.of("executed")}

    @property
    def previews(self) -> list[Preview]:
        return self.of("preview")

    @property
    def cached(self) -> set[str]:
        """The nodes whose results were still there."""
        return {node for kind, data in self.messages if kind == "execution_cached" for node in data["nodes"]}

    @property
    def error(self) -> Mapping[str, Any] | None:
        """node_id, node_type, exception_type, exception_message and traceback of the node that failed."""
        return next((data for kind, data in self.messages if kind == "execution_error"), None)


@dataclass
class ComfyServer:
    """A server with `packs` (folder or file name in custom_nodes -> source), `models` and `inputs` (name -> file).

    A model's name begins with its kind, as in "vae/some.safetensors"; it may be a folder. All of them are linked; packs are
    copied with `copy_packs`. `arguments` are added to ComfyUI's command line.
    """

    packs: Mapping[str, Path] = field(default_factory=dict)
    models: Mapping[str, Path] = field(default_factory=dict)
    inputs: Mapping[str, Path] = field(default_factory=dict)
    arguments: Sequence[str] = ()
    copy_packs: bool = False
    comfyui: Path = field(default_factory=lambda: Path(os.environ["COMFYUI_PATH"]).resolve())
    python: str = field(default_factory=lambda: os.environ.get("COMFYUI_PYTHON", sys.executable))

    def __enter__(self) -> ComfyServer:
        with ExitStack() as stack:
            folder = tempfile.TemporaryDirectory(prefix="comfyui-", ignore_cleanup_errors=True)
            self.folder = Path(stack.enter_context(folder)).resolve()
            self._fill_folder()
            self.port = _free_port()
            self.process = self._launch()
            stack.callback(self._stop)
            self._wait_until_ready()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def add_model(self, name: str, source: Path) -> None:
        """Links a file or folder as models/`name`; ComfyUI lists it at once."""
        _link(source, self.folder / "models" / name)

    def add_input(self, name: str, source: Path) -> None:
        """Links a file into the folder that LoadImage reads from."""
        _link(source, self.folder / "input" / name)

    def log(self) -> str:
        """All that the server has printed."""
        return (self.folder / "server.log").read_text(encoding="utf-8", errors="replace")

    def get(self, path: str) -> Answer:
        """Raises urllib.error.HTTPError for any status but 200."""
        with self._open(path) as reply:
            return _answer(reply)

    def post(self, path: str, body: Any) -> tuple[int, Answer]:
        """Sends JSON; returns the status, whichever it is, and the answer."""
        try:
            with self._open(path, json.dumps(body).encode()) as reply:
                return reply.status, _answer(reply)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, _answer(error)

    def object_info(self, node: str) -> dict[str, Any]:
        """What the browser learns of a node type. Raises KeyError for an unknown one."""
        return self.get(f"/object_info/{node}")[node]

    def queue(self, prompt: Prompt, client_id: str | None = None) -> str:
        """Queues a prompt for `client_id`, who gets its events; returns its id. Raises Rejected."""
        status, answer = self.post("/prompt", {"prompt": prompt, **({"client_id": client_id} if client_id else {})})
        if status != 200:
            raise Rejected(answer)
        return answer["prompt_id"]

    def run(self, prompt: Prompt, timeout_s: float = 120, on_event: Callable[[Event], None] | None = None) -> Run:
        """Runs a prompt to its end; `on_event` is called with each event as it comes, and may interrupt.

        Raises Rejected, and TimeoutError where the end does not come in time; the prompt is interrupted then, as it is
        when `on_event` raises.
        """
        deadline = time.monotonic() + timeout_s
        client_id = uuid.uuid4().hex
        with closing(self._connect(client_id)) as connection:
            prompt_id = self.queue(prompt, client_id)
            events = []
            try:
                for event in self._events(connection, deadline):
                    events.append(event)
                    if on_event is not None:
                        on_event(event)
                    if event.kind in _ENDS and event.data["prompt_id"] == prompt_id:
                        break
            except BaseException:
                self._abandon(prompt_id)
                raise
        return self.wait(prompt_id, events=events)

    def wait(self, prompt_id: str, timeout_s: float = 120, events: Sequence[Event] = ()) -> Run:
        """Waits for the end of a prompt that was queued. Raises TimeoutError."""
        deadline = time.monotonic() + timeout_s
        while not (history := self.get(f"/history/{prompt_id}")):  # written shortly after the last event
            if time.monotonic() > deadline:
                self._abandon(prompt_id)
                raise TimeoutError(f"the prompt did not end in time; the server's log:\n{self.log()}")
            time.sleep(POLL_S)
        entry = history[prompt_id]
        messages = [(kind, data) for kind, data in entry["status"]["messages"]]
        interrupted = any(kind == "execution_interrupted" for kind, _ in messages)
        status = "interrupted" if interrupted else entry["status"]["status_str"]
        return Run(prompt_id, status, entry["outputs"], messages, tuple(events))

    def interrupt(self) -> None:
        """Stops the prompt that runs, as the browser's button does."""
        self.post("/interrupt", {})

    def output(self, entry: Mapping[str, str]) -> Path:
        """The file that a node wrote, by its entry in `Run.outputs`: filename, subfolder and type."""
        return self.folder / entry["type"] / entry["subfolder"] / entry["filename"]

    def _fill_folder(self) -> None:
        for name in ("models", "custom_nodes", "input", "output", "temp", "user"):
            (self.folder / name).mkdir()
        for name, source in self.packs.items():
            target = self.folder / "custom_nodes" / name
            if self.copy_packs:
                shutil.copytree(source, target, ignore=_NOT_COPIED)
            else:
                _link(source, target)
        for name, source in self.models.items():
            self.add_model(name, source)
        for name, source in self.inputs.items():
            self.add_input(name, source)

    def _launch(self) -> subprocess.Popen[bytes]:
        options = {
            "--listen": "127.0.0.1",
            "--port": str(self.port),
            "--base-directory": str(self.folder),
            "--database-url": "sqlite:///:memory:",
        }
        flags = ("--cpu", "--disable-auto-launch", "--disable-api-nodes")
        quiet = {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        with (self.folder / "server.log").open("wb") as log:
            return subprocess.Popen(
                [
                    self.python,
                    "main.py",
                    *(part for option in options.items() for part in option),
                    *flags,
                    *self.arguments,
                ],
                cwd=self.comfyui,
                env=os.environ | quiet,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                preexec_fn=_end_with_parent,
            )

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_S
        while True:
            if self.process.poll() is not None:
                raise RuntimeError(f"ComfyUI ended with {self.process.returncode} before it was ready:\n{self.log()}")
            try:
                self._open("/system_stats", timeout_s=5).close()
                return
            except (OSError, HTTPException):  # nothing listens yet, or not ComfyUI
                if time.monotonic() > deadline:
                    raise TimeoutError(f"ComfyUI was not ready after {START_S} s:\n{self.log()}") from None
            time.sleep(POLL_S)

    def _stop(self) -> None:
        ways = ((signal.SIGINT, 15), (signal.SIGTERM, 5), (signal.SIGKILL, 5))
        for sign, patience_s in ways:
            self.process.send_signal(sign)  # does nothing once it has ended
            try:
                self.process.wait(patience_s)
                return
            except subprocess.TimeoutExpired:
                continue

    def _open(self, path: str, body: bytes | None = None, timeout_s: float = 60) -> Any:
        url = f"http://127.0.0.1:{self.port}{urllib.parse.quote(path, safe='/?&=%:,')}"
        headers = {"Content-Type": "application/json"} if body is not None else {}
        return _DIRECT.open(urllib.request.Request(url, body, headers), timeout=timeout_s)

    def _connect(self, client_id: str) -> websocket.WebSocket:
        connection = websocket.create_connection(f"ws://127.0.0.1:{self.port}/ws?clientId={client_id}", timeout=60)
        # Else previews come without the node they belong to. The server's reply says that it has taken note.
        connection.send(json.dumps({"type": "feature_flags", "data": {"supports_preview_metadata": True}}))
        while _event(connection.recv()).kind != "feature_flags":
            pass
        return connection

    def _events(self, connection: websocket.WebSocket, deadline: float) -> Iterator[Event]:
        try:
            while True:
                connection.settimeout(max(deadline - time.monotonic(), 0.001))
                yield _event(connection.recv())
        except websocket.WebSocketTimeoutException:
            raise TimeoutError(f"the prompt did not end in time; the server's log:\n{self.log()}") from None
        except websocket.WebSocketConnectionClosedException:
            raise RuntimeError(f"the server went away:\n{self.log()}") from None

    def _abandon(self, prompt_id: str) -> None:
        """Leaves the server free for the next prompt, if it is still there."""
        try:
            self.post("/queue", {"delete": [prompt_id]})
            self.interrupt()
        except OSError:
            pass


_ENDS = ("execution_success", "execution_error", "execution_interrupted")
_NOT_COPIED = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "venv")
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Opens addresses of this machine; a proxy in the environment would not reach them."""


def _answer(reply: Any) -> Answer:
    body = reply.read()
    return json.loads(body) if reply.headers.get_content_type() == "application/json" else body or None


def _event(message: str | bytes) -> Event:
    """Text is JSON. Bytes begin with a number for their kind; previews and texts follow a header with its length."""
    if isinstance(message, str):
        parsed = json.loads(message)
        return Event(parsed["type"], parsed["data"])
    kind, number = struct.unpack(">II", message[:8])
    if kind == 1:  # a preview as nodes of old send it; the second number is its format
        return Event("preview", Preview(message[8:], {}))
    head, rest = message[8 : 8 + number], message[8 + number :]
    if kind == 3:
        return Event("progress_text", {"node": head.decode(), "text": rest.decode()})
    if kind == 4:
        return Event("preview", Preview(rest, json.loads(head)))
    raise ValueError(f"the server sent binary data of an unknown kind, {kind}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    target.symlink_to(source.resolve(strict=True), target_is_directory=source.is_dir())


_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def _end_with_parent() -> None:
    """Linux kills the server when the thread that started it is gone, however that came about."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
