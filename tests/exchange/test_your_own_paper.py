"""docs/your-own-paper.md is followed literally: every block is typed, in order, in an empty folder."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from claimlab.study import PACKAGE

PAGE = PACKAGE.parent.parent / "docs" / "your-own-paper.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks() -> list[tuple[str, str]]:
    return BLOCK.findall(PAGE.read_text(encoding="utf-8"))


class Terminal:
    """One shell session: what a block exports or unsets holds for the next ones."""

    def __init__(self, folder: Path, environment: dict[str, str]):
        self.folder, self.environment = folder, environment

    def type(self, text: str) -> str:
        """What the block printed. It fails at the first command that fails; its environment is kept."""
        kept = self.folder / ".environment"
        done = subprocess.run(["bash", "-euo", "pipefail", "-c", f"{text}\nenv -0 > {kept}"], cwd=self.folder, env=self.environment,
                              capture_output=True, text=True, timeout=900)  # fmt: skip
        assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
        self.environment = dict(pair.split("=", 1) for pair in kept.read_text().split("\0") if pair)
        kept.unlink()
        return done.stdout


@pytest.mark.slow
def test_the_page_is_followed_to_its_end(tmp_path):
    site = tmp_path / "site"  # what is installed goes here, and nothing comes from elsewhere
    bare = {k: v for k, v in os.environ.items() if not k.startswith(("CLAIMLAB", "PYTEST"))}
    path = os.pathsep.join([str(Path(sys.executable).parent), bare["PATH"]])
    source = os.pathsep.join([str(PACKAGE.parent), str(site)])
    pip = {"PIP_TARGET": str(site), "PIP_NO_DEPS": "1", "PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0",
           "PIP_DISABLE_PIP_VERSION_CHECK": "1"}  # fmt: skip
    shell = Terminal(tmp_path, {**bare, **pip, "PATH": path, "PYTHONPATH": source, "OMP_NUM_THREADS": "1"})
    said = []
    for kind, text in blocks():
        if kind == "sh":
            said.append(shell.type(text))
        else:
            head, _, _ = text.partition("\n")
            file = tmp_path / head.removeprefix("# ")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text.partition("\n")[2], encoding="utf-8")
    listed, first, shown, tested, ran, _, checked, installed = said
    assert "label_smoothing.ipynb" in listed and "still to write" in first and "not yet" in first
    assert "smoothing = 0.1" in shown and "2 passed" in tested
    whole, control = ran.split("label-smoothing finished")[1:]
    assert "less-sure: Supported" in whole and "no-worse: Supported" in whole and "less-sure: Supported" not in control
    assert [line.strip() for line in checked.splitlines()[1:]] == ["- still to write: label_smoothing.ipynb", "words to write"]
    assert "label-smoothing" in installed and (site / "papers" / "training" / "label_smoothing.ipynb").exists()


def test_every_block_is_typed_or_written():
    for kind, text in blocks():
        assert kind == "sh" or re.match(r"# [\w./-]+\n", text), text[:60]
    assert PAGE.read_text(encoding="utf-8").count("```") == 2 * len(blocks())
