"""schedules.toml: everything is checked before anything starts, and a refusal names schedule, key, value and what is allowed."""

import pytest

from claimlab import cli
from claimlab.schedules import plan
from claimlab.study import StudyError

GOOD = """
timezone = "Europe/Berlin"
[nightly]
cron = "30 2 * * mon-fri"
studies = ["toy_blobs"]
profile = "smoke"
retries = 0
[weekly]
cron = "@weekly"
timezone = "UTC"
family = "blobs"
out = "weekly"
"""


def test_a_file_is_read(schedules, own_studies, home):
    found = plan.read(schedules(GOOD))
    nightly, weekly = found["nightly"], found["weekly"]
    assert nightly.slugs == weekly.slugs == ("toy-blobs",) and nightly.cron.zone == "Europe/Berlin" and weekly.cron.zone == "UTC"
    assert nightly.out == home / "reports" / "nightly" and weekly.out == home / "weekly"
    assert (nightly.retries, weekly.retries, weekly.backoff, weekly.profile) == (0, 2, 60, "default")


@pytest.mark.parametrize(
    ("was", "now", "message"),
    [
        ('profile = "smoke"', 'profle = "smoke"', "schedules.toml, nightly: profle = 'smoke': .*did you mean profile"),
        ('profile = "smoke"', 'profile = "huge"', "nightly: profile = 'huge' is not allowed: it must be one of smoke, default, full"),
        ("retries = 0", "retries = 11", r"retries = 11 is not allowed: it must be a whole number in \[0, 10\]"),
        ("retries = 0", "retries = true", "retries = True is not allowed"),
        ("retries = 0", 'retries = "2"', "retries = '2' is not allowed"),
        ("30 2 * * mon-fri", "30 25 * * mon-fri", r"nightly: cron = .* hour '25' must be \*, a number in \[0, 23\]"),
        ('cron = "30 2 * * mon-fri"', "", "nightly: cron is missing"),
        ("Europe/Berlin", "Europe/Berln", "timezone = 'Europe/Berln' is not allowed: .*did you mean Europe/Berlin"),
        ("toy_blobs", "toy_blob", "studies = .*there is no study 'toy_blob'; did you mean toy-blobs"),
        ('family = "blobs"', 'family = "blob"', "weekly: family = 'blob': no study is of that family"),
        ('studies = ["toy_blobs"]', "", "nightly: it must say which studies"),
        ('studies = ["toy_blobs"]', 'studies = "toy_blobs"', "studies = 'toy_blobs' is not allowed: it must be a list of studies"),
        ("[weekly]", "[Weekly Report]", "cannot be read"),
        ("[weekly]", '["Weekly Report"]', "the name is not allowed: it must be small letters"),
        ('out = "weekly"', 'out = "reports/nightly"', "weekly: out = .*nightly writes there"),
        ("retries = 0", 'email = ["ann"]', "nightly: .*email = 'ann' is not allowed: it must be an address"),
        ("retries = 0", 'email = ["ann@example.org"]', "there is no mail server: set CLAIMLAB_SMTP_HOST"),
        ('timezone = "Europe/Berlin"', 'zone = "Europe/Berlin"', "zone is not a key here; there are timezone, and a table"),
    ],
)
def test_a_refusal_names_schedule_key_and_value(schedules, own_studies, was, now, message, capsys, monkeypatch):
    for name in ("HOST", "FROM"):
        monkeypatch.delenv(f"CLAIMLAB_SMTP_{name}", raising=False)
    assert was in GOOD
    file = schedules(GOOD.replace(was, now, 1))
    with pytest.raises(StudyError, match=message):
        plan.read(file)
    assert cli.main(["schedule", "run", "--file", str(file)]) == 2 and capsys.readouterr().err.startswith("claimlab: ")


def test_a_file_that_is_not_there_and_a_name_that_is_not_in_it(schedules, own_studies, tmp_path, capsys):
    assert cli.main(["schedule", "list", "--file", str(tmp_path / "none.toml")]) == 2
    assert "No such file" in capsys.readouterr().err
    assert cli.main(["schedule", "pause", "nigtly", "--file", str(schedules(GOOD))]) == 2
    assert "there is no schedule 'nigtly'" in capsys.readouterr().err
