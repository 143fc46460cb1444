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


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request, home, monkeypatch):
    """The ledger in which schedules, their firings and the scheduler's jobs are kept: a file of one's own, or a team's server."""
    if request.param == "postgresql":
        monkeypatch.setenv("CLAIMLAB_LEDGER", request.getfixturevalue("postgres").database())
    return request.param
