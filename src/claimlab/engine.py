"""papermill's engine of this lab: cell events go to the ledger, and the kernel is this interpreter's, whatever is installed."""

from __future__ import annotations

import shutil
import sys
import tempfile
import weakref

from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import NBClientEngine, papermill_engines

from claimlab import warm
from claimlab.job import ANSI, kernel_environment

NAME = "claimlab"


class OwnInterpreter(AsyncKernelManager):
    """A kernel of the interpreter that runs now; installed kernel specs may belong to another environment."""

    def __init__(self, **kwargs):
        if sys.platform != "win32":  # sockets in a folder of our own; the machine's TCP ports are open to all its users
            folder = tempfile.mkdtemp(prefix="claimlab-")
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
            kwargs.update(transport="ipc", ip=f"{folder}/kernel")
        super().__init__(**kwargs)

    async def _async_launch_kernel(self, kernel_cmd: list[str], **how) -> None:
        wanted = {name: how.get(name) for name in ("env", "cwd", "stdout", "stderr")}
        if all(wanted.values()) and (forked := warm.fork(self.connection_file, **wanted)):
            self.provisioner.process, self.provisioner.pid, self.provisioner.pgid = forked, forked.pid, forked.pid
            self._reconcile_connection_info(self.provisioner.connection_info)
        else:
            await super()._async_launch_kernel(kernel_cmd, **how)

    @property
    def kernel_spec(self) -> KernelSpec:
        argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
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


papermill_engines.register(NAME, LedgerEngine)
