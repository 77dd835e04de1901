#!/usr/bin/env bash
# Runs an image as production would (user of the image, root read-only, no capabilities, no network), with a cluster
# of simulated engines; asks for its health and for a chat, and stops it.
#   deploy/docker/smoke.sh IMAGE            with docker; ENGINE=podman for another
# ENGINE_RUN_FLAGS: further flags of `run`. Ends with 1 at what does not hold, after the container's log.
set -euo pipefail

image=${1:?which image?}
engine=${ENGINE:-docker}
here=$(cd "$(dirname "$0")" && pwd)
name=llmserve-smoke-$$
manifest=/etc/llmserve/llmserve.yaml
read -ra more <<<"${ENGINE_RUN_FLAGS:-}"
hardened=(--init --read-only --tmpfs /tmp:exec --shm-size 1g --network none --cap-drop ALL --security-opt no-new-privileges)

healthy() { # podman asks when it is told to, docker by itself
  if [[ $engine == *podman ]]; then
    "$engine" healthcheck run "$name" >/dev/null 2>&1
  else
    [[ $("$engine" inspect -f '{{.State.Health.Status}}' "$name") == healthy ]]
  fi
}

finish() {
  local code=$?
  ((code == 0)) || "$engine" logs "$name" 2>&1 | tail -50
  "$engine" rm -f -v "$name" >/dev/null
  exit "$code"
}

"$engine" run -d --name "$name" "${hardened[@]}" "${more[@]}" \
  -v "$here/smoke.yaml:$manifest:ro" "$image" >/dev/null
trap finish EXIT

"$engine" exec "$name" llmserve version
for ((waited = 0; ; waited++)); do
  healthy && break
  [[ $("$engine" inspect -f '{{.State.Running}}' "$name") == true ]] || { echo "ended while it started"; exit 1; }
  ((waited < 600)) || { echo "not healthy after $waited s"; exit 1; }
  sleep 1
done
echo "healthy after $waited s"

"$engine" exec "$name" llmserve doctor -f "$manifest"
"$engine" exec "$name" sh -c 'id -u; ! touch /opt/llmserve/x 2>/dev/null && echo "root is read-only"'
"$engine" exec -i "$name" python - <<'PY'
import json
from urllib.request import Request, urlopen

body = {"model": "SmolLM2-135M-Instruct", "max_tokens": 8, "messages": [{"role": "user", "content": "Hello"}]}
request = Request("http://127.0.0.1:8000/v1/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"})
with urlopen(request, timeout=60) as response:
    answer = json.load(response)
assert answer["usage"]["completion_tokens"] == 8, answer
print("a chat:", answer["usage"])
PY

"$engine" stop -t 60 "$name" >/dev/null
code=$("$engine" inspect -f '{{.State.ExitCode}}' "$name")
[[ $code == 0 ]] || { echo "ended with $code when it was stopped"; exit 1; }
echo "stopped: all processes ended in order"
