/** A chat as it is kept, asked for, and read from a stream. */

import { ApiError, call, messageOf } from "./api";
import { readEvents } from "./events";

export interface ToolCall {
  id: string;
  name: string;
  arguments: string;
}

export interface Usage {
  prompt: number;
  completion: number;
  cached: number;
}

/** A turn. toolCallId: of a tool's result. error: why an answer ended before it was whole. */
export interface Turn {
  id: string;
  role: "user" | "assistant" | "tool";
  content: string;
  toolCallId?: string;
  reasoning?: string;
  tools?: ToolCall[];
  model?: string;
  requestId?: string;
  usage?: Usage;
  firstSeconds?: number;
  seconds?: number;
  finish?: string;
  error?: string;
}

/** What a conversation asks with. Empty text: the server's default. schema, tools: JSON. */
export interface Settings {
  model: string;
  system: string;
  temperature: string;
  topP: string;
  maxTokens: string;
  seed: string;
  stop: string;
  schema: string;
  tools: string;
}

export const DEFAULTS: Settings = {
  model: "",
  system: "",
  temperature: "",
  topP: "",
  maxTokens: "512",
  seed: "",
  stop: "",
  schema: "",
  tools: "",
};

/** Returns the body of a request. Errors: Error that names the field which is wrong. */
export function bodyOf(settings: Settings, turns: readonly Turn[]): Record<string, unknown> {
  const body: Record<string, unknown> = {
    model: settings.model,
    messages: [
      ...(settings.system.trim() ? [{ role: "system", content: settings.system }] : []),
      ...turns.map(messageFor),
    ],
  };
  put(body, "temperature", number(settings.temperature, "Temperature"));
  put(body, "top_p", number(settings.topP, "Top-p"));
  put(body, "max_tokens", number(settings.maxTokens, "Max tokens"));
  put(body, "seed", number(settings.seed, "Seed"));
  const stop = settings.stop.split("\n").filter((line) => line !== "");
  put(body, "stop", stop.length > 0 ? stop : undefined);
  const schema = json(settings.schema, "JSON schema");
  put(body, "response_format", schema && { type: "json_schema", json_schema: { name: "answer", schema } });
  const tools = json(settings.tools, "Tools");
  if (tools !== undefined && !Array.isArray(tools)) throw new Error("Tools must be a JSON list.");
  put(body, "tools", tools);
  return body;
}

function messageFor(turn: Turn): Record<string, unknown> {
  if (turn.role === "tool") return { role: "tool", tool_call_id: turn.toolCallId, content: turn.content };
  const calls = turn.tools?.map((tool) => ({
    id: tool.id,
    type: "function",
    function: { name: tool.name, arguments: tool.arguments },
  }));
  return { role: turn.role, content: turn.content, ...(calls?.length ? { tool_calls: calls } : {}) };
}

function put(body: Record<string, unknown>, name: string, value: unknown): void {
  if (value !== undefined) body[name] = value;
}

function number(text: string, field: string): number | undefined {
  if (text.trim() === "") return undefined;
  const value = Number(text);
  if (!Number.isFinite(value)) throw new Error(`${field} must be a number.`);
  return value;
}

function json(text: string, field: string): unknown {
  if (text.trim() === "") return undefined;
  try {
    return JSON.parse(text) as unknown;
  } catch (error) {
    throw new Error(`${field} is not JSON: ${messageOf(error)}`);
  }
}

interface Chunk {
  error?: { message?: string };
  choices?: { delta?: Delta; finish_reason?: string | null }[];
  usage?: {
    prompt_tokens: number;
    completion_tokens: number;
    prompt_tokens_details?: { cached_tokens?: number } | null;
  } | null;
}

interface Delta {
  content?: string | null;
  reasoning?: string | null;
  reasoning_content?: string | null;
  tool_calls?: { index: number; id?: string; function?: { name?: string; arguments?: string } }[];
}

/** Streams an answer into `turn`, and calls `changed` after each piece. The turn says how it ended. */
export async function answer(
  body: Record<string, unknown>,
  turn: Turn,
  signal: AbortSignal,
  changed: () => void,
): Promise<void> {
  const began = performance.now();
  const passed = () => (performance.now() - began) / 1000;
  try {
    const streamed = { ...body, stream: true, stream_options: { include_usage: true } };
    const init = { method: "POST", body: JSON.stringify(streamed), signal };
    const response = await call("/v1/chat/completions", init);
    turn.requestId = response.headers.get("x-request-id") ?? "";
    await read(response, turn, passed, changed);
  } catch (error) {
    if (signal.aborted) turn.finish = "stopped";
    else turn.error = messageOf(error);
    if (error instanceof ApiError && error.requestId) turn.requestId = error.requestId;
  }
  turn.seconds = passed();
  changed();
}

async function read(response: Response, turn: Turn, passed: () => number, changed: () => void): Promise<void> {
  if (!response.body) throw new ApiError("The answer is empty.", 0);
  let whole = false;
  for await (const { data } of readEvents(response.body)) {
    if (data === "[DONE]") {
      whole = true;
      continue;
    }
    take(JSON.parse(data) as Chunk, turn);
    if (turn.content || turn.reasoning || turn.tools) turn.firstSeconds ??= passed();
    changed();
  }
  if (!whole && !turn.error) throw new ApiError("The connection broke before the answer was whole.", 0);
}

/** Adds one event of a stream to a turn. */
export function take(chunk: Chunk, turn: Turn): void {
  if (chunk.error) turn.error = chunk.error.message ?? "The server failed.";
  const choice = chunk.choices?.[0];
  const delta = choice?.delta ?? {};
  turn.content += delta.content ?? "";
  const thought = delta.reasoning ?? delta.reasoning_content;
  if (thought) turn.reasoning = (turn.reasoning ?? "") + thought;
  for (const piece of delta.tool_calls ?? []) addTool((turn.tools ??= []), piece);
  if (choice?.finish_reason) turn.finish = choice.finish_reason;
  if (chunk.usage) {
    turn.usage = {
      prompt: chunk.usage.prompt_tokens,
      completion: chunk.usage.completion_tokens,
      cached: chunk.usage.prompt_tokens_details?.cached_tokens ?? 0,
    };
  }
}

function addTool(tools: ToolCall[], piece: NonNullable<Delta["tool_calls"]>[number]): void {
  const tool = (tools[piece.index] ??= { id: "", name: "", arguments: "" });
  tool.id ||= piece.id ?? "";
  tool.name += piece.function?.name ?? "";
  tool.arguments += piece.function?.arguments ?? "";
}

/** Returns tokens per second after the first one; null when that says nothing. */
export function speedOf(turn: Turn): number | null {
  const tokens = (turn.usage?.completion ?? 0) - 1;
  const time = (turn.seconds ?? 0) - (turn.firstSeconds ?? 0);
  return tokens > 0 && time > 0 ? tokens / time : null;
}
