/** The record of a request, as GET /v1/requests/{id}/explain shows it (docs/explain.md). */

import { count, rate } from "./format";

export type PhaseName = "prepare" | "queue" | "prefill" | "hand-over" | "decode" | "retry" | "finish";

export interface Phase {
  name: PhaseName;
  begin_seconds: number;
  end_seconds: number;
}

export interface Candidate {
  prefill: string | null;
  decode: string;
  predicted_seconds: number;
  parts: Record<string, number>;
}

export interface Attempt {
  asked_seconds: number;
  placed_seconds: number | null;
  queue: { seconds: number; requests_ahead: number; used_up_seconds: Record<string, number> };
  tenant: { weight: number; share: number };
  prefill: string | null;
  decode: string | null;
  note: string | null;
  handover: { mode: string; reason: string; pull_seconds: number | null; push_seconds: number | null } | null;
  candidates: Candidate[];
  predicted_cached_tokens: number;
  failed_worker: string | null;
  error: string | null;
}

export interface Handover {
  transport: string | null;
  mode: string;
  bytes: number;
  seconds: number;
  fallbacks: string[];
  reason: string | null;
}

export interface Sequence {
  request_id: string;
  outcome: string | null;
  error: string | null;
  adapter: { name: string; version: string } | null;
  prompt_tokens: number;
  output_tokens: number;
  cached_tokens: { device: number; store: number };
  first_token_from: string | null;
  started_seconds: number | null;
  first_token_seconds: number | null;
  ended_seconds: number | null;
  attempts: Attempt[];
  handovers: Handover[];
  phases: Phase[];
}

export interface ExplainRecord {
  request_id: string;
  response_ids: string[];
  trace_id: string | null;
  tenant: string;
  apiserver: string;
  path: string;
  model: string | null;
  came_at: string;
  running: boolean;
  status: number | null;
  error: string | null;
  seconds: number;
  sequences: Sequence[];
}

/** What a phase is, in a few words. */
export function explained(phase: Phase, sequence: Sequence): string {
  const attempt = sequence.attempts.at(-1);
  switch (phase.name) {
    case "prepare":
      return "read, template, tokens";
    case "queue":
      return queueWords(attempt);
    case "prefill":
      return prefillWords(sequence, attempt);
    case "hand-over":
      return handoverWords(sequence.handovers.at(-1));
    case "decode":
      return `${count(sequence.output_tokens)} tokens on ${attempt?.decode ?? "?"}`;
    case "retry":
      return "a worker failed, another went on";
    case "finish":
      return "last bytes to the client";
  }
}

function queueWords(attempt: Attempt | undefined): string {
  const queue = attempt?.queue;
  if (!queue) return "waits for a place";
  const budgets = Object.keys(queue.used_up_seconds);
  return `${queue.requests_ahead === 0 ? "nobody" : count(queue.requests_ahead)} ahead${budgets.length > 0 ? `; no room: ${budgets.join(", ")}` : ""}`;
}

function prefillWords(sequence: Sequence, attempt: Attempt | undefined): string {
  const { device, store } = sequence.cached_tokens;
  const computed = Math.max(0, sequence.prompt_tokens - device - store);
  const predicted = attempt?.predicted_cached_tokens ?? 0;
  const where = attempt?.prefill ?? attempt?.decode ?? "?";
  const parts = [`${count(computed)} tokens computed`];
  if (device > 0) parts.push(`${count(device)} cached`);
  if (store > 0) parts.push(`${count(store)} loaded`);
  if (predicted !== device + store) parts.push(`${count(predicted)} predicted to be cached`);
  return `${parts.join(", ")} on ${where}`;
}

function handoverWords(handover: Handover | undefined): string {
  if (!handover) return "waits for decode";
  if (!handover.transport) return `computed again: ${handover.reason ?? "no way"}`;
  const speed = handover.seconds > 0 ? handover.bytes / handover.seconds : 0;
  const fell = handover.fallbacks.length > 0 ? `; fell back: ${handover.fallbacks.join("; ")}` : "";
  return `${handover.mode} over ${handover.transport}, ${rate(speed)}${fell}`;
}

/** Returns predicted seconds until the first token, of the placement that was chosen; null: not known. */
export function predicted(sequence: Sequence): number | null {
  return sequence.attempts.at(-1)?.candidates[0]?.predicted_seconds ?? null;
}
