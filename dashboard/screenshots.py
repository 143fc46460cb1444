"""Pictures of every page, light and dark, wide and narrow: `python dashboard/screenshots.py` writes them into docs/.

They show the ledger of the working folder (CLAIMLAB_HOME), so that the study pictured is the one with the newest finished run.
For the page Live a run of it is started, changed in mid-run, and stopped at the end. docs/dashboard.png and docs/steer.png,
which the README shows, are the pages Study and Live in light, 1,440 pixels wide.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BROWSER = {"args": ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--hide-scrollbars"]}
WIDTHS = (1440, 400)
HEIGHT, TALLEST = 900, 2600


@contextmanager
def server(port: int | None = None) -> Iterator[tuple[str, subprocess.Popen]]:
    """The dashboard on a free port of the loopback address, with its process; ended on leaving."""
    port = port or free_port()
    command = [sys.executable, "-m", "streamlit", "run", str(ROOT / "dashboard" / "server.py"), "--server.port", str(port),
               "--server.fileWatcherType", "none"]  # fmt: skip
    environment = os.environ | {"CLAIMLAB_HOME": os.environ.get("CLAIMLAB_HOME") or str(Path("runs").absolute())}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    try:
        until = time.monotonic() + 60
        while not healthy(address):
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError("the dashboard did not start")
            time.sleep(0.1)
        yield address, process
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:  # it waits for connections that are still open
            process.kill()
            process.wait()


def free_port() -> int:
    """A port of the loopback address that nobody uses."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def healthy(address: str) -> bool:
    """Whether the server answers."""
    try:
        with urllib.request.urlopen(f"{address}/_stcore/health", timeout=2) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False


def pictured() -> str:
    """The address of the study page: the study and run that finished last, else the first study there is."""
    from claimlab.ledger import Ledger
    from claimlab.study import catalogue

    known = [s.slug for s in catalogue() if not s.broken]
    finished = [r for r in Ledger().runs(status="finished") if r["study"] in known and not r["control"]]
    return f"study?study={finished[0]['study']}&run={finished[0]['id']}" if finished else f"study?study={known[0]}"


@contextmanager
def steered(slug: str) -> Iterator[str]:
    """A run of a study that goes on and whose learning rate has been halved on the way; stopped on leaving."""
    from claimlab.ledger import ENDED, Ledger

    book = Ledger()
    known = {row["id"] for row in book.runs()}
    command = [sys.executable, "-m", "claimlab.cli", "run", slug, "--no-kernel"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    run = None
    try:
        while run is None or (run["done"] or 0) < 0.3 * (run["total"] or 1):
            if process.poll() is not None:
                raise RuntimeError(f"the run of {slug} ended before it could be pictured")
            time.sleep(0.2)
            run = next((row for row in book.runs(limit=5) if row["id"] not in known), None)
        settings = book.latest("layers", [run["id"]]).get(run["id"], {}).get("settings", {})
        book.command(run["id"], "set", {"name": "lr", "value": (settings.get("lr") or 1e-3) / 2}, by="screenshots")
        yield run["id"]
    finally:
        process.kill()
        process.wait()
        if run is not None and book.run(run["id"])["status"] not in ENDED:
            book.set_status(run["id"], "stopped", "it was started for a picture")


def settled(page) -> None:
    """Wait until Streamlit has nothing left to do and the charts have been drawn."""
    page.wait_for_selector("[data-testid=stMain] h1", timeout=60_000)
    page.wait_for_function(
        "!document.querySelector('[data-testid=stStatusWidget]') && !document.querySelector('[data-testid=stSkeleton]')"
    )
    page.wait_for_timeout(1500)


def take(page, path: Path) -> None:
    """Write the whole page, up to a height that one still looks at."""
    settled(page)
    page.set_viewport_size({"width": page.viewport_size["width"], "height": HEIGHT})
    tall = page.evaluate("document.querySelector('[data-testid=stMain]').scrollHeight")
    page.set_viewport_size({"width": page.viewport_size["width"], "height": min(max(HEIGHT, tall), TALLEST)})
    page.wait_for_timeout(1200)
    page.screenshot(path=path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--out", type=Path, default=ROOT / "docs")
    parser.add_argument("--study", default="", help="part of the study page's address, as study?study=NAME&run=ID")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    from playwright.sync_api import sync_playwright

    where = options.study or pictured()
    slug = where.partition("study=")[2].partition("&")[0]
    with server() as (address, _), steered(slug) as going, sync_playwright() as play:
        # Live first, while its run goes on
        pages = {"live": f"live?run={going}", "catalogue": "", "study": where, "compare": f"compare?study={slug}", "reports": "reports"}
        browser = play.chromium.launch(executable_path=shutil.which("chromium"), **BROWSER)
        for (name, where), theme, width in itertools.product(pages.items(), ("light", "dark"), WIDTHS):
            page = browser.new_page(viewport={"width": width, "height": HEIGHT}, color_scheme=theme)
            page.goto(f"{address}/{where}")
            take(page, options.out / f"{name}-{theme}-{width}.png")
            page.close()
        browser.close()
    for name, copy in (("study", "dashboard"), ("live", "steer")):
        shutil.copy(options.out / f"{name}-light-1440.png", options.out / f"{copy}.png")
    print(f"pictures in {options.out}")


if __name__ == "__main__":
    main()
