"""A real headless Chromium, and the dashboard's own script for serving and taking pictures.

A text is awaited as the `first` of its kind: while a page is drawn anew, what it replaces may stand beside it for a moment.
"""

import importlib.util
import shutil
from pathlib import Path

import pytest

CHROMIUM = shutil.which("chromium")
SCRIPT = Path(__file__).resolve().parents[2] / "dashboard" / "screenshots.py"


def pytest_collection_modifyitems(items):
    missing = pytest.mark.skip(reason="Chromium is missing (on Debian: apt-get install chromium)")
    for item in items:
        if item.get_closest_marker("browser") and CHROMIUM is None:
            item.add_marker(missing)


@pytest.fixture(scope="module")
def screenshots():
    spec = importlib.util.spec_from_file_location("screenshots", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def browser(screenshots):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        one = play.chromium.launch(executable_path=CHROMIUM, **screenshots.BROWSER)
        yield one
        one.close()
