"""Kernels that need not start from nothing: a process that has imported what notebooks import forks itself for each of them.

Only on Linux; elsewhere, and wherever it fails, a kernel starts from nothing. The process has no thread of Python's own, has
computed nothing and drawn no random number when it forks. It ends, and its kernels with it, when whoever started it ends.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

IMPORTS = (
    "claimlab.lightly", "torch", "numpy", "pandas", "plotly.graph_objects", "plotly.io", "pyarrow.parquet", "scipy.stats", "psutil",
    "ipykernel.kernelapp", "ipykernel.ipkernel", "ipykernel.debugger", "claimlab.notebook", "claimlab.runner", "claimlab.live",
    "claimlab.export", "claimlab.figures", "claimlab.models",
)  # fmt: skip
PATIENCE = 60.0  # seconds for which a new kernel is waited for
_running: list[Warm] = []


@contextmanager
def kernels() -> Iterator[None]:
    """Inside, kernels of this process are forked where that is possible."""
    if not sys.platform.startswith("linux"):
        yield
        return
    one = Warm()
    _running.append(one)
    try:
        yield
    finally:
        _running.remove(one)
        one.close()


def fork(connection: str, **how: Any) -> Forked | None:
    """A kernel for a connection file, or None where one has to start from nothing."""
    with suppress(OSError):
        return _running[-1].fork(connection, **how) if _running else None
    return None


class Warm:
    """The process that forks, seen from the one that needs kernels."""

    def __init__(self):
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.lock = threading.Lock()
        with theirs, open(os.devnull, "r+b") as nothing:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "claimlab.warm", str(theirs.fileno())], pass_fds=[theirs.fileno()], start_new_session=True,
                stdin=nothing, stdout=nothing, stderr=nothing,
            )  # fmt: skip

    def fork(self, connection: str, *, env: dict[str, str], cwd: str, stdout, stderr) -> Forked:
        """A new kernel with this environment and working folder, whose output goes to two open files. OSError if there is none."""
        mine, line = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        asked = json.dumps({"connection": connection, "env": env, "cwd": cwd}).encode()
        with line, self.lock:
            socket.send_fds(self.control, [asked], [line.fileno(), stdout.fileno(), stderr.fileno()])
        mine.settimeout(PATIENCE)
        if not (told := mine.recv(32)):
            raise OSError("no kernel could be forked")
        return Forked(int(told), mine)

    def close(self) -> None:
        self.control.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Forked:
    """A process that another one has forked, with what is needed of subprocess.Popen. `line` tells how it ended."""

    stdin = stdout = stderr = None

    def __init__(self, pid: int, line: socket.socket):
        self.pid, self.returncode, self.line = pid, None, line

    def poll(self) -> int | None:
        return self._told(0.0)

    def wait(self, timeout: float | None = None) -> int:
        if self._told(timeout) is None:
            raise subprocess.TimeoutExpired("a kernel", timeout)
        return self.returncode

    def _told(self, timeout: float | None) -> int | None:
        if self.returncode is None and select.select([self.line], [], [], timeout)[0]:
            told = self.line.recv(32)
            self.returncode = int(told) if told else -signal.SIGKILL  # nobody is left to tell: nor is the kernel
            self.line.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


# ---- in the process that forks


def prepare() -> None:
    """What every kernel would do first, done once for all: import, read this package's sources, load what drawing needs."""
    for name in IMPORTS:
        importlib.import_module(name)
    import pandas as pd

    from claimlab import figures, provenance
    from claimlab.ledger import COLUMNS

    provenance.read_package()
    table = pd.DataFrame([("arm", seed, step, "metric", 0.0) for seed in range(2) for step in range(2)], columns=COLUMNS)
    figures.curve(table, "metric", title="", y_title="").to_json()
    gc.collect()
    gc.freeze()  # or the first collection in each kernel would copy every page that it looks at


def serve(control: socket.socket) -> None:
    """Fork a kernel for each message, tell of each how it ended, and go when nobody is there to ask."""
    prepare()
    lines: dict[int, socket.socket] = {}
    read, write = os.pipe()
    os.set_blocking(write, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(write)
    while True:
        ready, _, _ = select.select([control, read], [], [])
        if read in ready:
            os.read(read, 4096)
            _reap(lines)
        if control in ready:
            message, files, _, _ = socket.recv_fds(control, 1 << 20, 3)
            if not message:
                break
            _answer(json.loads(message), files, lines, [control.fileno(), read, write])
    for pid in lines:
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)


def _reap(lines: dict[int, socket.socket]) -> None:
    with suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            with lines.pop(ended[0]) as line, suppress(OSError):
                line.send(str(os.waitstatus_to_exitcode(ended[1])).encode())


def _answer(asked: dict[str, Any], files: list[int], lines: dict[int, socket.socket], mine: list[int]) -> None:
    line = socket.socket(fileno=files[0])
    try:
        pid = os.fork()
    except OSError:
        pid = -1
    if pid == 0:
        _kernel(asked, line, files[1:], [*mine, *(one.fileno() for one in lines.values())])
    for one in files[1:]:
        os.close(one)
    if pid > 0:
        lines[pid] = line
    else:
        line.close()


def _kernel(asked: dict[str, Any], line: socket.socket, output: list[int], not_mine: list[int]) -> None:
    """Become the kernel; never returns."""
    try:
        parent = os.getppid()
        os.setsid()
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for number, file in enumerate(output, 1):
            os.dup2(file, number)
        os.environ.clear()
        os.environ.update(asked["env"])
        os.chdir(asked["cwd"])
        sys.path[:0] = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p and p not in sys.path]
        line.send(str(os.getpid()).encode())
        for one in (*not_mine, *output, line.detach()):
            os.close(one)
        become(["-f", asked["connection"], f"--IPKernelApp.parent_handle={parent}"])
    finally:  # nothing of the process that forked goes on here
        os._exit(1)


def become(argv: list[str]) -> NoReturn:
    """Be a kernel, and end with it: tearing down an interpreter that holds torch takes two seconds, which people wait for."""
    code = 1
    try:
        from ipykernel.kernelapp import IPKernelApp

        IPKernelApp.launch_instance(argv=argv)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    if sys.argv[1] == "-f":
        become(sys.argv[1:])
    with socket.socket(fileno=int(sys.argv[1])) as given:
        serve(given)
