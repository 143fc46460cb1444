"""The layers of an arm's network as a table: how large, whether held, and buttons that hold, free or draw them anew."""

from __future__ import annotations

import streamlit as st
from panels import condition, steer, typed
from panels.wording import plain

SHOWN, SHORT = 40, 16


def panel(run: str, here: condition.Condition, arm: str | None, why: str) -> None:
    """The table; without an arm, the layers that any arm has: a button then meets every arm that has the layer."""
    met = {name: one for name, one in here.arms.items() if arm in (None, name) and one.layers}
    if not met:
        st.caption("The layers are known once the arm trains; an arm that does not train by gradient has none.")
        return
    names = list(dict.fromkeys(layer for one in met.values() for layer in one.layers))
    st.caption(
        f"Layers of {', '.join(met)}. Held: the layer does not learn. Drawn anew: fresh weights, a member from its own seed."
    )
    with st.container(key="layers"):
        for layer in names[:SHOWN]:
            _row(run, layer, met, arm, why)
    if len(names) > SHOWN:
        st.caption(f"{len(names) - SHOWN} more; these can be named on the command line:")
        typed.show([typed.steer(run, "freeze", {"layer": names[SHOWN]}, arm)])


def _row(run: str, layer: str, met: dict[str, condition.Arm], arm: str | None, why: str) -> None:
    having = {name: one for name, one in met.items() if layer in one.layers}
    held = [name for name, one in having.items() if layer in one.frozen]
    state = "learns" if not held else "held" if len(held) == len(having) else f"held in {', '.join(held)}"
    size = sorted({one.layers[layer] for one in having.values()})
    with st.container(horizontal=True, vertical_alignment="center", border=False):
        icon = ":material/lock:" if held else ":material/lock_open:"
        facts = f"{' or '.join(f'{n:,}' for n in size)} parameters, {state}"
        st.markdown(f"{icon} **{plain(layer)}** :small[{plain(facts)}]", width="stretch")
        verb = "unfreeze" if held else "freeze"
        _button(run, layer, verb, "Free" if held else "Hold", arm, why)
        _button(run, layer, "reset", "Draw anew", arm, why)


def _button(run: str, layer: str, verb: str, text: str, arm: str | None, why: str) -> None:
    told = why or typed.steer(run, verb, {"layer": layer}, arm)
    label = plain(f"{text} {layer}" if len(layer) <= SHORT else text)  # a label of its own tells a screen reader which
    st.button(label, key=f"{verb}-{layer}", disabled=bool(why), help=plain(told), on_click=steer.send,
              args=(run, verb, {"layer": layer}, arm))  # fmt: skip
