"""Commands over many settings of one study: sweep, sensitivity, tune."""

from __future__ import annotations

import argparse
import difflib
from pathlib import Path
from typing import TYPE_CHECKING

from claimlab import study as studies
from claimlab.params import PROFILES, KnobError, pairs
from claimlab.study import StudyError

if TYPE_CHECKING:
    from claimlab.sweeps.plan import Plan

VERBS = ("list", "show", "stop")


def register(add) -> None:
    """Add the commands of this module."""
    one = add("sweep", sweep, "run one study over a grid or a sample of its knobs; or `sweep list`, `sweep show NAME`, `sweep stop NAME`",
              reads=True)  # fmt: skip
    one.add_argument("study", metavar="STUDY", help="a study, or list, show, stop")
    one.add_argument("sweep", nargs="?", metavar="NAME", help="of a sweep to show or stop")
    one.add_argument("--grid", action="append", default=[], metavar="KNOB=A,B,C", help="values of a knob, or low..high:n; repeat for more")
    one.add_argument("--sample", type=int, default=0, metavar="N", help="settings drawn evenly from the knob space; best a power of two")
    one.add_argument("--over", action="append", default=[], metavar="KNOB[=LOW..HIGH]",
                     help="draw this knob (:log or :linear at the end); default: all but steps and those given a value")  # fmt: skip
    one.add_argument("--method", choices=("sobol", "lhs"), default="sobol", help="Sobol' points or a Latin hypercube")
    one.add_argument("--design-seed", type=int, default=0, metavar="N", help="another draw of the same kind")
    one.add_argument("--csv", type=Path, metavar="FILE", help="write the table of all settings")
    _common(one, seeds=5)
    one = add("sensitivity", sensitivity, "which knob moves a claim: Sobol' or Morris indices of its effect over the knobs", reads=True)
    one.add_argument("study")
    one.add_argument("--claim", help="the id of a claim; not needed where there is one")
    one.add_argument("--method", choices=("sobol", "morris"), default="sobol", help="Morris needs fewer runs and says less")
    one.add_argument("--size", type=int, default=16, metavar="N",
                     help="base points (runs: N x (knobs + 2)) or trajectories (N x (knobs + 1)); best a power of two")  # fmt: skip
    one.add_argument("--over", action="append", default=[], metavar="KNOB[=LOW..HIGH]", help="a knob to move; default: all but steps")
    one.add_argument("--design-seed", type=int, default=0, metavar="N", help="another draw of the same kind")
    _common(one, seeds=5)
    one = add("tune", tune, "the same grid of a knob for every arm, on development seeds that are never judged", reads=True)
    one.add_argument("study")
    one.add_argument("--knob", dest="tuned", required=True, metavar="KNOB", help="the knob to tune, as lr")
    one.add_argument("--grid", default="", metavar="A,B,C", help="its values, or low..high:n (default: a tenth to ten times its value)")
    one.add_argument("--metric", default="", help="the metric that decides (default: the study's validation metric, else its claim's)")
    one.add_argument("--better", choices=("higher", "lower"), default="", help="which way that metric is better")
    _common(one, seeds=5, fixed=("-p", "--set"))


def _common(one: argparse.ArgumentParser, seeds: int, fixed: tuple[str, ...] = ("-p", "--knob")) -> None:
    one.add_argument(*fixed, dest="fixed", action="append", default=[], metavar="KNOB=VALUE",
                     help="a knob that all runs share; repeat for more")  # fmt: skip
    one.add_argument("--seeds", type=int, default=seeds, metavar="S", help=f"repetitions of each setting (default {seeds})")
    one.add_argument("--profile", choices=PROFILES, default="default")
    one.add_argument("--engine", default="local", metavar="ENGINE", help="local, dask-local, or dask://host:port")
    one.add_argument("--jobs", type=int, metavar="N", help="runs at a time (default: one a core)")
    one.add_argument("--name", default="", help="of the sweep (default: one that the same command finds again)")


def sweep(options) -> int:
    from claimlab.sweeps import console

    if options.study in VERBS:
        if (options.study == "list") != (options.sweep is None):
            raise StudyError("sweep list takes no name" if options.sweep else f"sweep {options.study} needs the name of a sweep")
        return getattr(console, f"{options.study}_sweep" if options.sweep else "list_sweeps")(options)
    if options.sweep is not None:
        raise StudyError(f"what is {options.sweep!r}? a sweep is started with `claimlab sweep STUDY --grid ...`")
    return console.run(planned(options), options)


def sensitivity(options) -> int:
    from claimlab.sweeps import console

    claim = _claim(studies.find(options.study), options.claim)
    return console.analyse(planned(options), claim, options)


def tune(options) -> int:
    from claimlab.sweeps import console

    return console.tune(planned(options), options)


# ---- what the words of a command stand for


def planned(options) -> Plan:
    """The plan of one of these commands, with nothing started; KnobError or StudyError where its words do not go together."""
    return {sweep: _swept, sensitivity: _analysed, tune: _tuned}[options.act](options)


def _swept(options) -> Plan:
    from claimlab.sweeps import plan, space

    study = studies.find(options.study)
    fixed, grids = pairs(options.fixed), [space.grid(study, text) for text in options.grid]
    if options.over and not options.sample:
        raise KnobError("--over says what --sample N draws from; give both")
    drawn = [space.over(study, text) for text in options.over]
    if options.sample and not drawn:
        drawn = space.free(study, [*fixed, *(axis.knob.name for axis in grids)])
    return plan.make(study, grids, drawn, sample=options.sample, method=options.method, seeds=options.seeds, fixed=fixed,
                     profile=options.profile, design_seed=options.design_seed)  # fmt: skip


def _analysed(options) -> Plan:
    from claimlab.sweeps import sensitivity, space

    study, fixed = studies.find(options.study), pairs(options.fixed)
    drawn = [space.over(study, text) for text in options.over] or space.free(study, fixed)
    return sensitivity.design(study, drawn, options.method, size=options.size, seeds=options.seeds, fixed=fixed, profile=options.profile,
                              design_seed=options.design_seed)  # fmt: skip


def _tuned(options) -> Plan:
    from claimlab.sweeps import tuning

    study = studies.find(options.study)
    return tuning.design(study, options.tuned, options.grid, seeds=options.seeds, fixed=pairs(options.fixed), profile=options.profile)


def _claim(study, name: str | None):
    known = {claim.id: claim for claim in study.claims}
    if name is None and len(known) == 1:
        return study.claims[0]
    if name not in known:
        near = difflib.get_close_matches(name or "", known, n=1, cutoff=0.4)
        said = f"{study.slug} has no claim {name!r}" if name else "say which claim with --claim"
        raise StudyError(said + (f"; did you mean {near[0]}?" if near else "") + f" Claims: {', '.join(known)}")
    return known[name]
