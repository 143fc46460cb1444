"""Sweeps: a claim over a whole space of knobs. ?sweep=NAME&claim=ID&knob=K&knob2=K reopens a view."""

import streamlit as st
from panels import picking, planning, response, store, sweeps, typed
from panels.wording import humanised, plain

st.title("Sweeps", anchor=False)
with store.guarded():
    known = {row["name"]: row for row in sweeps.book().sweeps()}
    whole = {one.slug: one for one in store.studies() if not one.broken}
    planning.awaited(known)
if whole:
    with st.expander("Start a sweep", icon=":material/add:", key="start-a-sweep", expanded=not known, on_change="rerun") as new:
        if new.open:
            planning.form(whole)
if not known:
    st.info("A sweep runs one study over many settings of its knobs and says in what share of them each claim holds. Its runs "
            "appear here and on the page Live at once.", title="No sweep yet", icon=":material/grid_on:")  # fmt: skip
    st.stop()

one, other = st.columns(2)
name = picking.choice("Sweep", "sweep", list(known), usual=next(iter(known)), scope="any", place=one,
                      format_func=lambda n: sweeps.named(known[n]))  # fmt: skip
row = known[name]
if row["study"] not in whole:
    st.error(f"The study {plain(row['study'])} of this sweep is not here, or is broken.", icon=":material/error:")
    st.stop()
study = whole[row["study"]]
st.caption(f"{plain(study.slug)}: {plain(study.paper.question)}")
with store.guarded():
    sweeps.progress(row)
    command = planning.controls(row)
    if row["kind"] == "tune":
        st.header("Tuned arms", anchor="tuned")
        sweeps.tuned(study, row)
    found = sweeps.gathered(row)

if row["kind"] != "tune":
    claims = {claim.id: claim for claim in study.claims}
    first = next((c for c in claims if sweeps.usable(found, claims[c])), study.claims[0].id)
    claim = claims[picking.choice("Claim", "claim", list(claims), usual=first, scope=f"sweep-{study.slug}", place=other,
                                  format_func=humanised)]  # fmt: skip
    st.caption(plain(claim.text))
    st.header("Where it holds", anchor="holds")
    shown = sweeps.share(claim, found, row)
    usable = sweeps.usable(found, claim)
    if usable:
        if row["kind"] == "sensitivity":
            st.header("Which knob moves it", anchor="influence")
            sweeps.influence(claim, found, row)
        st.header("All settings", anchor="settings")
        response.parallel(study, usable, claim)
        turned = {knob.name: knob for knob in response.varying(study, usable)}
        if turned:
            st.header("Over one knob", anchor="response")
            left, right = st.columns(2)
            across = turned[picking.choice("Knob", "knob", list(turned), usual=next(iter(turned)), scope=f"{name}-{claim.id}", place=left,
                                           format_func=humanised)]  # fmt: skip
            response.response(study, usable, claim, across)
            others = [knob for knob in turned if knob != across.name]
            if others:
                up = picking.choice("Second knob, for the heat map", "knob2", others, usual=others[0],
                                    scope=f"{name}-{claim.id}-{across.name}", place=right, format_func=humanised)  # fmt: skip
                response.heat(usable, claim, across, turned[up])
        st.header("Best settings", anchor="best")
        sweeps.best(study, claim, found)

with st.expander("Copy the commands", icon=":material/terminal:"):
    typed.show([f"claimlab sweep show {name}", f"claimlab sweep show {name} --csv {name}.csv", *command])
