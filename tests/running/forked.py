"""Processes of their own for tests: each as `python -c` would start it, but forked from one that has imported torch.

torch alone, and what it imports with its first optimizer, takes seven seconds of CPU in each new process; all else that
is imported there takes five more. Whoever asks for no child pays nothing.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO, NamedTuple

ROOT = Path(__file__).parents[2]
PARENT = """
import gc, json, os, signal, socket, sys

# also what torch imports with its first optimizer, and numba with its first kernel
import pandas, scipy.optimize, torch, torch._dynamo
import lbw_sim.cli.app, lbw_sim.live, lbw_sim.plots, lbw_sim.report, lbw_sim.stress.suite, lbw_sim.tune
from lbw_sim.replay import kernel_files, kernels

kernel_files.compiled(kernels.extraction())
# no child looks for garbage in what was imported: a fifth of its time
gc.freeze()
asked = socket.socket(fileno=int(sys.argv[1]))
while True:
    message, descriptors, _, _ = socket.recv_fds(asked, 1 << 20, 2)
    if not message:
        sys.exit()
    if not (child := os.fork()):
        break
    for descriptor in descriptors:
        os.close(descriptor)
    asked.send(b"%d" % child)
    asked.send(b"%d" % os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

asked.close()
job = json.loads(message)
os.setsid()
os.chdir(job["folder"])
for descriptor, place in zip([os.open(os.devnull, os.O_RDONLY), *descriptors], range(3)):
    os.dup2(descriptor, place)
    os.close(descriptor)
sys.argv[1:] = job["arguments"]
exec(compile(job["code"], "<child>", "exec"), {"__name__": "__main__"})
"""


class Ended(NamedTuple):
    """What came of a child."""

    returncode: int
    stdout: str
    stderr: str


class Child:
    """A process at work, in a session of its own."""

    def __init__(self, process_id: int, stdout: IO[bytes], parent: socket.socket) -> None:
        self.pid = process_id
        self.stdout = stdout
        """What it prints, as it comes: nothing is read before it is asked for."""
        self._parent = parent

    def kill(self) -> None:
        """It, and what it has started."""
        os.killpg(self.pid, signal.SIGKILL)

    def wait(self, seconds: float = 300.0) -> int:
        """The exit code, or a signal's number below 0; it is killed if it has not ended by then."""
        if not select.select([self._parent], [], [], seconds)[0]:
            self.kill()
        self.stdout.close()
        return int(self._parent.recv(20))


class Forked:
    """Starts processes, one at a time."""

    def __init__(self) -> None:
        self._parent: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, code: str, *arguments: object, folder: Path = ROOT, stderr: int = 2) -> Child:
        """Let a new process run `code` in a folder, `arguments` in its `sys.argv`. `wait` for it before the next."""
        reading, writing = os.pipe()
        with os.fdopen(writing, "wb") as stdout:
            process_id = self._ask(code, arguments, folder, [stdout.fileno(), stderr])
        return Child(process_id, os.fdopen(reading, "rb", buffering=0), self._connected())

    def run(self, code: str, *arguments: object, folder: Path = ROOT, seconds: float = 300.0) -> Ended:
        """Let a new process run `code` to its end."""
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            process_id = self._ask(code, arguments, folder, [out.fileno(), err.fileno()])
            ended = Child(process_id, open(os.devnull, "rb"), self._connected()).wait(seconds)  # noqa: SIM115
            said = [(file.seek(0), file.read().decode())[1] for file in (out, err)]
        return Ended(ended, *said)

    def _ask(self, code: str, arguments: tuple[object, ...], folder: Path, descriptors: list[int]) -> int:
        job = {"code": code, "arguments": list(map(str, arguments)), "folder": str(folder)}
        parent = self._connected()
        socket.send_fds(parent, [json.dumps(job).encode()], descriptors)
        return int(parent.recv(20))

    def _connected(self) -> socket.socket:
        if self._parent is None:
            self._parent, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            # what tests import of this folder, their children may, too
            path = os.pathsep.join(map(str, [ROOT, Path(__file__).parent, os.environ.get("PYTHONPATH", ROOT)]))
            self._process = subprocess.Popen(
                [sys.executable, "-c", PARENT, str(theirs.fileno())], pass_fds=[theirs.fileno()],
                env={**os.environ, "PYTHONPATH": path}, stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
            theirs.close()
        return self._parent

    def close(self) -> None:
        """End the parent."""
        if self._parent is not None and self._process is not None:
            self._parent.close()
            self._process.wait()
