"""papermill's engine of this lab: cell events go to the ledger, and the kernel is this interpreter's, whatever is installed."""

from __future__ import annotations

import math
import shutil
import sys
import tempfile
import time
import weakref
from contextlib import suppress
from queue import Empty

from jupyter_client.asynchronous import AsyncKernelClient
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import NBClientEngine, papermill_engines

from claimlab import warm
from claimlab.job import ANSI, kernel_environment

NAME = "claimlab"
SAVED = 1.0  # seconds between two writings of the notebook while its cells run


class PromptClient(AsyncKernelClient):
    """Is ready when the kernel is; its parent then listens for a fifth of a second to what papermill passes over anyway."""

    async def wait_for_ready(self, timeout: float | None = None) -> None:
        until = time.monotonic() + (math.inf if timeout is None else timeout)
        while time.monotonic() < until:
            self.kernel_info()
            with suppress(Empty):
                await self.get_shell_msg(timeout=1)
                await self.get_iopub_msg(timeout=0.2)  # connected too
                return
            if not await self.is_alive():
                raise RuntimeError("the kernel died before it was ready")
        raise RuntimeError(f"the kernel was not ready within {timeout:g} s")


class OwnInterpreter(AsyncKernelManager):
    """A kernel of the interpreter that runs now; installed kernel specs may belong to another environment."""

    def __init__(self, **kwargs):
        if sys.platform != "win32":  # sockets in a folder of our own; the machine's TCP ports are open to all its users
            folder = tempfile.mkdtemp(prefix="claimlab-")
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
            kwargs.update(transport="ipc", ip=f"{folder}/kernel")
        super().__init__(**kwargs, client_class=f"{__name__}.{PromptClient.__name__}")

    async def _async_launch_kernel(self, kernel_cmd: list[str], **how) -> None:
        wanted = {name: how.get(name) for name in ("env", "cwd", "stdout", "stderr")}
        if all(wanted.values()) and (forked := warm.fork(self.connection_file, **wanted)):
            self.provisioner.process, self.provisioner.pid, self.provisioner.pgid = forked, forked.pid, forked.pid
            self._reconcile_connection_info(self.provisioner.connection_info)
        else:
            await super()._async_launch_kernel(kernel_cmd, **how)

    async def _async_finish_shutdown(self, waittime: float | None = None, pollinterval: float = 0.01, **more) -> None:
        await super()._async_finish_shutdown(waittime, pollinterval, **more)  # which looks ten times a second

    @property
    def kernel_spec(self) -> KernelSpec:
        argv = [sys.executable, "-m", "claimlab.warm", "-f", "{connection_file}"]
        return KernelSpec(argv=argv, display_name="Python 3", language="python")


class LedgerEngine(NBClientEngine):
    """Executes the notebook of a `job.Job` and tells the ledger what happens to each cell."""

    @classmethod
    def execute_managed_notebook(cls, nb_man, kernel_name, *, job, log_output=False, start_timeout=60,
                                 stdout_file=None, stderr_file=None, **_):  # fmt: skip
        job.cells = nb_man.nb.cells
        _listen(nb_man, job)
        job.client = PapermillNotebookClient(
            nb_man, kernel_name="python3", kernel_manager_class=OwnInterpreter, startup_timeout=start_timeout, timeout=None,
            log_output=log_output, stdout_file=stdout_file, stderr_file=stderr_file,
        )  # fmt: skip
        streams = {"stdout": stdout_file, "stderr": stderr_file}  # what libraries print past Python belongs into the log too
        return job.client.execute(env=kernel_environment(job), cwd=str(job.study.notebook.parent), **streams)


def _listen(nb_man, job) -> None:
    start, complete, exception = nb_man.cell_start, nb_man.cell_complete, nb_man.cell_exception
    save, end, last = nb_man.save, nb_man.notebook_complete, -math.inf

    def save_at_times(**kwargs):  # papermill does twice a cell, which takes longer than most cells
        nonlocal last
        if time.monotonic() - last >= SAVED:
            save(**kwargs)
            last = time.monotonic()

    def notebook_complete(**kwargs):
        nb_man.save = save
        end(**kwargs)

    def tell(kind: str, index: int, **more) -> None:
        job.ledger.event(job.run, kind, payload={"cell": index, "name": job.where(index), **more})

    def cell_start(cell, cell_index=None, **kwargs):
        if job.stopping:
            raise KeyboardInterrupt
        job.cell = cell_index
        if cell.cell_type == "code":
            tell("cell_start", cell_index)
        start(cell, cell_index, **kwargs)

    def cell_complete(cell, cell_index=None, **kwargs):
        complete(cell, cell_index=cell_index, **kwargs)
        if cell.cell_type == "code":
            tell("cell_end", cell_index, seconds=cell.metadata.papermill.get("duration"))

    def cell_exception(cell, cell_index=None, **kwargs):
        exception(cell, cell_index=cell_index, **kwargs)
        tell("error", cell_index, text=ANSI.sub("", str(kwargs.get("exception", "")))[-2000:])

    nb_man.cell_start, nb_man.cell_complete, nb_man.cell_exception = cell_start, cell_complete, cell_exception
    nb_man.save, nb_man.notebook_complete = save_at_times, notebook_complete


papermill_engines.register(NAME, LedgerEngine)
