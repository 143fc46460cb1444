"""The contract of every study of the lab, found by file."""

import pytest

from claimlab import contract
from claimlab.study import PACKAGE, catalogue

STUDIES = [s for s in catalogue() if s.path.is_relative_to(PACKAGE)]


def test_the_lab_is_not_empty():
    assert {"mixup", "quantum-well-pinn", "fullgrad"} <= {s.slug for s in STUDIES}


@pytest.mark.parametrize("study", STUDIES, ids=lambda s: s.slug)
def test_a_study_keeps_the_contract(study):
    assert contract.missing(study) == []
