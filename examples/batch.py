"""Runs a batch with OpenAI's client: python examples/batch.py [BASE_URL] [API_KEY]"""

import json
import sys
import time

import openai

BASE_URL = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000/v1"
API_KEY = sys.argv[2] if len(sys.argv) > 2 else "none"
QUESTIONS = ("What is a prefill?", "What is a decode?", "Why are they apart?")


def line(number: int, model: str, question: str) -> str:
    body = {"model": model, "messages": [{"role": "user", "content": question}], "max_tokens": 32}
    request = {"custom_id": f"q{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}
    return json.dumps(request)


def main() -> None:
    client = openai.OpenAI(base_url=BASE_URL, api_key=API_KEY)
    model = next(iter(client.models.list())).id
    lines = "\n".join(line(number, model, question) for number, question in enumerate(QUESTIONS))
    file = client.files.create(file=("questions.jsonl", lines.encode()), purpose="batch")
    batch = client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
    )
    while batch.status not in ("completed", "failed", "expired", "cancelled"):
        time.sleep(1)
        batch = client.batches.retrieve(batch.id)
        print(batch.status, batch.request_counts)
    for name in (batch.output_file_id, batch.error_file_id):
        print(client.files.content(name).text if name else "", end="")


if __name__ == "__main__":
    main()
