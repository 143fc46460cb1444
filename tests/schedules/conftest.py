"""The study `light`, reports of it without kernels, and files of schedules."""

import pytest
from fixtures.reporting import in_process, study, write_study  # noqa: F401 - fixtures


@pytest.fixture
def schedules(home, tmp_path):
    """Writes a file of schedules and returns its path."""

    def write(text: str):
        path = tmp_path / "schedules.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write
