"""A pad to draw on, by pointer or keyboard: rows of ink in [0, 1], bright on dark."""

from __future__ import annotations

import streamlit as st

SIDE = 28
_HTML = """
<canvas width="280" height="280" tabindex="0" role="application"
  aria-label="Drawing pad. Draw with the pointer, or move with the arrow keys and ink with the space bar."></canvas>
<button type="button">Clear the pad</button>
"""
_CSS = """
canvas { display: block; width: min(280px, 100%); touch-action: none; cursor: crosshair; border-radius: var(--st-base-radius); }
canvas:focus-visible { outline: 3px solid var(--st-primary-color); outline-offset: 2px; }
button { margin-top: 8px; padding: 4px 12px; font: inherit; color: var(--st-text-color); cursor: pointer;
  background: var(--st-secondary-background-color); border: 1px solid var(--st-border-color); border-radius: var(--st-base-radius); }
"""
_JS = """
const SIDE = 28, BRUSH = 1.9

function paint(pad) {
  const at = pad.canvas.getContext("2d"), size = pad.canvas.width / SIDE
  for (let y = 0; y < SIDE; y++) for (let x = 0; x < SIDE; x++) {
    const shade = Math.round(20 + 235 * pad.ink[y][x])
    at.fillStyle = `rgb(${shade},${shade},${shade})`
    at.fillRect(x * size, y * size, size, size)
  }
  if (pad.keyed) {
    at.strokeStyle = "#56B4E9"
    at.strokeRect(pad.x * size - size / 2, pad.y * size - size / 2, size, size)
  }
}

function stroke(pad, x, y) {
  const [fromX, fromY] = pad.last ?? [x, y], steps = 1 + Math.ceil(2 * Math.hypot(x - fromX, y - fromY))
  for (let k = 1; k <= steps; k++) {
    const px = fromX + (x - fromX) * k / steps, py = fromY + (y - fromY) * k / steps
    for (let row = 0; row < SIDE; row++) for (let column = 0; column < SIDE; column++) {
      const ink = BRUSH - Math.hypot(column + 0.5 - px, row + 0.5 - py)
      pad.ink[row][column] = Math.max(pad.ink[row][column], Math.min(1, Math.max(0, ink)))
    }
  }
  pad.last = [x, y]
  paint(pad)
}

const empty = () => Array.from({ length: SIDE }, () => Array(SIDE).fill(0))

export default function ({ parentElement, data, setStateValue }) {
  const canvas = parentElement.querySelector("canvas"), clear = parentElement.querySelector("button")
  if (!canvas || canvas.dataset.ready) return
  canvas.dataset.ready = "yes"
  const pad = { canvas, ink: data?.ink ?? empty(), last: null, x: SIDE / 2, y: SIDE / 2, keyed: false }
  const tell = () => setStateValue("ink", pad.ink.map(row => row.map(v => Math.round(100 * v) / 100)))
  const place = event => {
    const box = canvas.getBoundingClientRect()
    return [(event.clientX - box.left) / box.width * SIDE, (event.clientY - box.top) / box.height * SIDE]
  }
  canvas.onpointerdown = event => {
    canvas.setPointerCapture(event.pointerId)
    pad.keyed = false
    pad.last = null
    stroke(pad, ...place(event))
  }
  canvas.onpointermove = event => { if (pad.last) stroke(pad, ...place(event)) }
  canvas.onpointerup = canvas.onpointercancel = () => { if (pad.last) { pad.last = null; tell() } }
  canvas.onkeydown = event => {
    const move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key]
    if (!move && event.key !== " ") return
    event.preventDefault()
    pad.keyed = true
    if (move) {
      pad.x = Math.min(SIDE - 1, Math.max(1, pad.x + move[0]))
      pad.y = Math.min(SIDE - 1, Math.max(1, pad.y + move[1]))
      pad.last = null
      paint(pad)
    } else {
      pad.last = null
      stroke(pad, pad.x, pad.y)
      pad.last = null
      tell()
    }
  }
  clear.onclick = () => { pad.ink = empty(); pad.last = null; paint(pad); tell() }
  paint(pad)
}
"""
_pad = st.components.v2.component("drawing_pad", html=_HTML, css=_CSS, js=_JS)


def draw(key: str) -> list[list[float]] | None:
    """The pad, and what has been drawn on it: 28 rows of 28 numbers in [0, 1]; None while it is empty."""
    known = st.session_state.get(key)
    ink = (known.get("ink") if known else None) or None
    found = _pad(key=key, data={"ink": ink}, on_ink_change=lambda: None).ink
    return found if found and any(map(any, found)) else None
