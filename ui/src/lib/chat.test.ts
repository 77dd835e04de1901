import { expect, test } from "vitest";
import { bodyOf, DEFAULTS, speedOf, take, type Turn } from "./chat";
import { readEvents } from "./events";
import { asCurl, asPython } from "./snippets";

const ASKED: Turn = { id: "1", role: "user", content: "it's?" };

function bodyFrom(...pieces: string[]): ReadableStream<Uint8Array> {
  const encoder = new TextEncoder();
  return new ReadableStream({
    start(control) {
      for (const piece of pieces) control.enqueue(encoder.encode(piece));
      control.close();
    },
  });
}

test("events are read however their bytes are cut", async () => {
  const found = [];
  for await (const event of readEvents(bodyFrom("data: {\"a", "\":1}\n", "\nevent: status\r\ndata: x\r\n\r\n: alive\n\n", "data: half"))) {
    found.push(event);
  }
  expect(found).toEqual([
    { event: "message", data: '{"a":1}' },
    { event: "status", data: "x" },
  ]);
});

test("only what is set is sent", () => {
  const settings = { ...DEFAULTS, model: "m", maxTokens: "", temperature: "0", stop: "a\n\nb", schema: "{}" };
  expect(bodyOf(settings, [ASKED])).toEqual({
    model: "m",
    messages: [{ role: "user", content: "it's?" }],
    temperature: 0,
    stop: ["a", "b"],
    response_format: { type: "json_schema", json_schema: { name: "answer", schema: {} } },
  });
});

test.each([
  [{ seed: "x" }, "Seed must be a number."],
  [{ schema: "{" }, "JSON schema is not JSON"],
  [{ tools: "{}" }, "Tools must be a JSON list."],
])("%o is refused by name", (wrong, message) => {
  expect(() => bodyOf({ ...DEFAULTS, ...wrong }, [])).toThrow(message);
});

test("calls and results of tools go back to the model", () => {
  const turns: Turn[] = [
    { id: "2", role: "assistant", content: "", tools: [{ id: "c1", name: "sum", arguments: "{}" }] },
    { id: "3", role: "tool", content: "3", toolCallId: "c1" },
  ];
  expect(bodyOf(DEFAULTS, turns).messages).toEqual([
    { role: "assistant", content: "", tool_calls: [{ id: "c1", type: "function", function: { name: "sum", arguments: "{}" } }] },
    { role: "tool", tool_call_id: "c1", content: "3" },
  ]);
});

test("a stream fills a turn", () => {
  const turn: Turn = { id: "2", role: "assistant", content: "" };
  take({ choices: [{ delta: { reasoning: "hm" } }] }, turn);
  take({ choices: [{ delta: { content: "a" } }] }, turn);
  take({ choices: [{ delta: { tool_calls: [{ index: 0, id: "c", function: { name: "f", arguments: "{" } }] } }] }, turn);
  take({ choices: [{ delta: { tool_calls: [{ index: 0, function: { arguments: "}" } }] }, finish_reason: "tool_calls" }] }, turn);
  take({ choices: [], usage: { prompt_tokens: 5, completion_tokens: 11, prompt_tokens_details: { cached_tokens: 4 } } }, turn);
  expect(turn).toMatchObject({ content: "a", reasoning: "hm", finish: "tool_calls", usage: { prompt: 5, completion: 11, cached: 4 } });
  expect(turn.tools).toEqual([{ id: "c", name: "f", arguments: "{}" }]);
  expect(speedOf({ ...turn, firstSeconds: 1, seconds: 3 })).toBe(5);
  expect(speedOf(turn)).toBeNull();
});

test("snippets name the key, and quote for their language", () => {
  const body = bodyOf({ ...DEFAULTS, model: "m", maxTokens: "7" }, [ASKED]);
  const curl = asCurl("http://h:1", body, true);
  expect(curl).toContain("Bearer $LLMSERVE_KEY");
  expect(curl).toContain(`it'\\''s?`);
  const python = asPython("http://h:1", { ...body, logprobs: true, stop: [] }, false);
  expect(python).toContain('base_url="http://h:1/v1", api_key="none"');
  expect(python).toContain('"content": "it\'s?",');
  expect(python).toContain("    logprobs=True,\n    stop=[],\n");
});
