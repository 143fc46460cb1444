"""A PostgreSQL server of the tests' own: Debian's binaries, a temporary folder, a free port of the loopback address."""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from itertools import count
from pathlib import Path

BINARIES = next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda p: -int(p.parent.name))), None)
MISSING = "PostgreSQL is missing (on Debian: apt-get install postgresql)"


def _user() -> dict[str, str]:
    """Who runs the server: it refuses to be run by root."""
    if os.getuid():
        return {}
    known = {one.pw_name for one in pwd.getpwall()}
    return {"user": "postgres" if "postgres" in known else "nobody"}


class Server:
    """Started on `start`, ended on `stop`; each `database` is new and empty."""

    def __init__(self):
        self.folder = Path(tempfile.mkdtemp(prefix="claimlab-postgres-"))
        self.who, self.numbers, self.process = _user(), count(1), None
        if self.who:
            shutil.chown(self.folder, self.who["user"])
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._do("initdb", "-D", str(self.folder / "data"), "-U", "lab", "--auth=trust", "--encoding=UTF8", "--locale=C.UTF-8", "--no-sync")

    def _do(self, name: str, *words: str) -> str:
        done = subprocess.run([BINARIES / name, *words], capture_output=True, text=True, cwd=self.folder, **self.who)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def start(self) -> "Server":
        """Returns when it takes connections."""
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c fsync=off -c max_connections=60"
        self._do("pg_ctl", "-D", str(self.folder / "data"), "-l", str(self.folder / "log"), "-o", options, "-w", "start")
        return self

    def stop(self, mode: str = "fast") -> None:
        """Returns when it has ended; `immediate` is as if it had crashed."""
        self._do("pg_ctl", "-D", str(self.folder / "data"), "-m", mode, "-w", "stop")

    def database(self) -> str:
        """The URL of a new database."""
        name = f"lab_{next(self.numbers)}"
        self._do("createdb", "-h", "127.0.0.1", "-p", str(self.port), "-U", "lab", name)
        return f"postgresql+psycopg://lab@127.0.0.1:{self.port}/{name}"

    def remove(self) -> None:
        self.stop("immediate")
        shutil.rmtree(self.folder)
