"""An automatic driver: it watches the losses of a run and, when one explodes, goes back to before that and on with smaller steps.

    python examples/agent.py RUN --url http://127.0.0.1:8501 --token-file runs/api_token
"""

import argparse
import json
import time
import urllib.error
import urllib.request
from pathlib import Path

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("run")
parser.add_argument("--url", default="http://127.0.0.1:8501")
parser.add_argument("--token-file", type=Path, default=Path("runs/api_token"))
parser.add_argument("--cut", type=float, default=0.3, help="factor on the learning rate after each explosion")
parser.add_argument("--every", type=float, default=60.0, help="seconds between two checkpoints while all is well")
options = parser.parse_args()
HEADERS = {"Authorization": f"Bearer {options.token_file.read_text().strip()}", "Content-Type": "application/json"}


def ask(path, body=None):
    url = f"{options.url}/api/runs/{options.run}{path}"
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body and json.dumps(body).encode(), HEADERS)) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as refused:  # a refusal is JSON as well: {"ok": false, "reason": ...}
        return json.load(refused)


def tell(verb, arm=None, **payload):
    answer = ask("/commands", {"verb": verb, "arm": arm, "payload": payload, "by": "agent"})
    print(verb, payload or "", answer.get("text") or answer["reason"], flush=True)
    return answer


cursor, first, now, rates, safe, saved, renewed = 0, {}, {}, {}, None, -1e9, -1e9
try:
    while (page := ask(f"/metrics?cursor={cursor}")).get("status") in ("queued", "starting", "running", "paused"):
        if time.monotonic() > renewed + 60:  # a lease for two minutes: it ends by itself should the agent die
            renewed, _ = time.monotonic(), tell("drive", seconds=120)
        losses = [((arm, seed), value) for _, arm, seed, _, metric, value in page["points"] if metric == "loss"]
        cursor, now = page["cursor"], now | dict(losses)
        first = {key: value for key, value in reversed(losses) if value is not None} | first
        burst = {key[0] for key, value in now.items() if value is None or value > 3 * first[key]}  # null: not finite
        if burst and safe and tell("pause")["ok"] and tell("rollback", checkpoint=safe)["ok"]:
            events = ask("/events?limit=5000")["events"]
            for arm in burst:  # `layers` tells what an arm began with
                began = [e["payload"]["settings"]["lr"] for e in events if e["kind"] == "layers" and e["arm"] == arm][-1]
                rates[arm] = rates.get(arm, began) * options.cut
                tell("set", arm, name="lr", value=rates[arm])
            tell("resume")
            cursor, now = [e["payload"]["cursor"] for e in events if e["kind"] == "rollback"][-1], {}
        elif not burst and time.monotonic() > saved + options.every and all(v <= first[k] for k, v in now.items()):
            safe, saved = tell("checkpoint").get("new") or safe, time.monotonic()
        time.sleep(0 if page["more"] else 0.5)
finally:
    tell("drive", seconds=0)
