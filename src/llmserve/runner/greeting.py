"""What `llmserve up` prints when the cluster is ready. Pure."""

import json

from llmserve.config.schema import Manifest

_QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


def greeting(
    manifest: Manifest, base_urls: tuple[str, ...], seconds: float, log_dir: str, metrics: str = ""
) -> str:
    """metrics: HOST:PORT of the page of all metrics, if there is one."""
    model, url = manifest.models.primary.served_name, base_urls[0]
    keyed = bool(manifest.security.api_keys)
    others = [f"  and at {other}/v1" for other in base_urls[1:]]
    lines = [
        "",
        f"Ready after {seconds:.0f} s. {model} is at {url}/v1",
        *others,
        "",
        *_curl(url, model, keyed),
        "",
        *_python(url, model, keyed),
        "",
        f"  Logs: {log_dir}",
        *([f"  Metrics: http://{metrics}/metrics"] if metrics else []),
        "  State: llmserve status    Stop: Ctrl-C, or llmserve down",
        "",
    ]
    return "\n".join(lines)


def _curl(url: str, model: str, keyed: bool) -> list[str]:
    body = json.dumps({"model": model, "messages": _QUESTION, "temperature": 0})
    key = [r'    -H "Authorization: Bearer $LLMSERVE_API_KEY" \ '.rstrip(" ")] if keyed else []
    return [
        f"  curl {url}/v1/chat/completions \\",
        "    -H 'Content-Type: application/json' \\",
        *key,
        f"    -d '{body}'",
    ]


def _python(url: str, model: str, keyed: bool) -> list[str]:
    key = 'os.environ["LLMSERVE_API_KEY"]' if keyed else '"none"'
    return [
        *(["  import os"] if keyed else []),
        "  from openai import OpenAI",
        f'  client = OpenAI(base_url="{url}/v1", api_key={key})',
        f'  answer = client.chat.completions.create(model="{model}",',
        f'      messages=[{{"role": "user", "content": "{_QUESTION[0]["content"]}"}}], temperature=0)',
        "  print(answer.choices[0].message.content)",
    ]
