"""What is written for other schedulers, read by their own parsers: systemd's where it is installed, a YAML parser, a shell."""

import re
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
import yaml

from claimlab import cli
from claimlab.schedules import exporting, plan
from claimlab.schedules.calendar import Calendar
from claimlab.schedules.cron import Cron
from claimlab.study import StudyError

TOML = """
timezone = "Europe/Berlin"
[nightly]
cron = "30 2 * * mon-fri"
studies = ["toy-blobs"]
[monthly]
cron = "0 6 1 * 1"
all = true
"""


@pytest.fixture
def file(home, own_studies, tmp_path, monkeypatch):
    folder = tmp_path / "100 % of it"
    folder.mkdir()
    monkeypatch.chdir(folder)
    (folder / "schedules.toml").write_text(TOML, encoding="utf-8")
    return folder / "schedules.toml"


def exported(kind, file, capsys):
    out = file.parent / "exported"
    assert cli.main(["schedule", "export", kind, "--file", str(file), "-o", str(out)]) == 0
    return [Path(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd is not installed here")
def test_systemd_takes_the_units(file, capsys):
    written = exported("systemd", file, capsys)
    assert {p.suffix for p in written} == {".service", ".timer"} and len(written) == 4
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", *map(str, written)], capture_output=True, text=True)
    ours = [line for line in done.stderr.splitlines() if "claimlab" in line or str(file.parent) in line]
    assert not ours, done.stderr
    service = next(p for p in written if p.name == "claimlab-nightly.service").read_text(encoding="utf-8")
    assert f"WorkingDirectory={str(file.parent).replace('%', '%%')}" in service


def test_a_line_for_cron_runs_the_schedule(file, capsys, tmp_path):
    (path,) = exported("cron", file, capsys)
    text = path.read_text(encoding="utf-8")
    line = next(line for line in text.splitlines() if " nightly " in line and not line.startswith("#"))
    assert line.startswith("30 2 * * mon-fri ") and "CRON_TZ=Europe/Berlin" in text
    assert not re.search(r"(?<!\\)%", line)  # cron ends a command at a bare percent sign
    whole = line.split(" ", 5)[5].replace("\\%", "%")
    book = Calendar()
    book.pause("nightly")
    book.close()
    rests = subprocess.run(["sh", "-c", whole], capture_output=True, text=True, cwd=tmp_path)
    assert rests.returncode == 0 and "it is paused" in rests.stderr
    act = whole.replace("schedule run nightly", "schedule list nightly --json")
    said = subprocess.run(["sh", "-c", act], capture_output=True, text=True, cwd=tmp_path)
    assert said.returncode == 0 and '"name": "nightly"' in said.stdout, said.stderr


@pytest.mark.skipif(not shutil.which("crontab"), reason="cron is not installed here: its own parser cannot be asked")
def test_cron_takes_the_table(file, capsys):
    (path,) = exported("cron", file, capsys)
    assert subprocess.run(["crontab", "-T", str(path)], capture_output=True).returncode == 0


def test_github_takes_the_workflow_and_its_times_are_those_of_the_zone(file, capsys):
    one = plan.read(file)["nightly"]
    path = next(p for p in exported("github", file, capsys) if "nightly" in p.name)
    found = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert set(found) == {"name", True, "permissions", "concurrency", "jobs"}  # YAML 1.1 reads the key `on` as true
    crons = [entry["cron"] for entry in found[True]["schedule"]]
    assert len(crons) == 2 and found[True]["workflow_dispatch"] == {}
    report = found["jobs"]["report"]
    assert report["needs"] == "clock" and report["steps"][-2]["run"] == "claimlab schedule run nightly --file schedules.toml"
    assert found["jobs"]["clock"]["steps"][0]["env"]["DUE"] == "${{ github.event.schedule }}"
    year = datetime(2026, 1, 1, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC)
    ran = {moment for text in crons for moment in Cron(text).times(year[0]) if moment < year[1] and guard(found, text, moment)}
    wanted = {moment for moment in one.cron.times(year[0]) if moment < year[1]}
    assert ran == wanted and len(ran) > 250


def guard(found, text, moment):
    """Whether the workflow goes on when GitHub starts it for the line `text` at `moment`: its own shell text, with a clock of ours."""
    script = found["jobs"]["clock"]["steps"][0]["run"]
    offset = moment.astimezone(ZoneInfo("Europe/Berlin")).strftime("%z")
    key = (text, offset)
    if key not in GUARDED:
        fixed = re.sub(r"\$\(TZ='Europe/Berlin' date \+%z\)", offset, script).replace('>> "$GITHUB_OUTPUT"', "")
        done = subprocess.run(["sh", "-c", fixed], capture_output=True, text=True, env={"DUE": text})
        GUARDED[key] = done.stdout.strip() == "go=yes"
    return GUARDED[key]


GUARDED: dict[tuple[str, str], bool] = {}


def test_a_night_that_is_another_day_in_utc_moves_with_its_day_of_the_week_or_is_refused():
    tokyo = Cron("0 3 * * mon", "Asia/Tokyo")
    moved = exporting.in_utc(tokyo, timedelta(hours=9))
    start = datetime(2026, 1, 1, tzinfo=UTC)
    assert list(islice(Cron(moved).times(start), 5)) == list(islice(tokyo.times(start), 5)) and moved == "0 18 * * 0"
    for text, zone, offset in (("0 3 1 * *", "Asia/Tokyo", 9), ("0 0,12 * * mon", "Asia/Tokyo", 9)):
        with pytest.raises(StudyError, match="cannot be written for GitHub"):
            exporting.in_utc(Cron(text, zone), timedelta(hours=offset))
    india = Cron("*/30 * * * *", "Asia/Kolkata")
    half = exporting.in_utc(india, timedelta(hours=5, minutes=30))
    assert list(islice(Cron(half).times(start), 5)) == list(islice(india.times(start), 5))


def test_github_refuses_what_it_cannot_say(file, capsys):
    assert cli.main(["schedule", "export", "github", "monthly", "--file", str(file)]) == 0  # 06:00 stays on its day
    assert cli.main(["schedule", "export", "gitlab", "--file", str(file)]) == 2
    assert "one of cron, systemd, github" in capsys.readouterr().err
    assert sys.executable in exporting.crontab(plan.read(file).values(), file)
