"""nbformat without the grammar of internet addresses: it checks notebooks as it did, and who wants the grammar gets it."""

import subprocess
import sys

PROGRAM = """
import sys
from claimlab.lightly import nbformat
assert "rfc3987_syntax" not in sys.modules and "lark" not in sys.modules
nbformat.validate(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1")]))
wrong = nbformat.v4.new_notebook()
wrong.cells.append({"cell_type": "poem"})
try:
    nbformat.validate(wrong)
except nbformat.ValidationError as refusal:
    print(str(refusal).splitlines()[0])
import rfc3987_syntax
print(rfc3987_syntax.is_valid_syntax("iri", "https://example.org/é"))
"""


def test_the_grammar_is_left_out_and_nothing_else():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    refusal, iri = done.stdout.splitlines()
    assert "'poem'" in refusal and iri == "True"
