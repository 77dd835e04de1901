/** Runs of `llmserve bench` as GET /admin/v1/bench shows them (docs/console.md). */

import { seconds } from "./format";

export interface Spread {
  count: number;
  mean: number;
  p50: number;
  p95: number;
  p99: number;
}

export interface Report {
  about: { model: string; load: string; notes: string[] };
  seconds: number;
  requests: number;
  served: number;
  requests_per_second: number;
  output_tokens_per_second: number;
  prompt_tokens: number;
  cached_tokens: number;
  output_tokens: number;
  failures: { label: string; count: number; message: string }[];
  ttft: Spread;
  tpot: Spread;
  e2e: Spread;
  notes: string[];
}

export interface RunPoint {
  seconds: number;
  requests: number;
  failed: number;
  running: number;
  output_tokens: number;
  ttft: number | null;
  e2e: number | null;
}

export interface Run {
  id: string;
  state: "starting" | "running" | "ended" | "failed";
  started_at: string;
  load: string;
  error: string | null;
  report: Report | null;
  points: RunPoint[];
}

/** A load that a page asks for. */
export interface Wanted {
  users: number;
  requests: number;
  prompt_tokens: number;
  output_tokens: number;
  seconds: number;
}

export function goesOn(run: Run): boolean {
  return run.state === "starting" || run.state === "running";
}

/** Returns how far a run is, or how it was, in a line. */
export function summaryOf(run: Run): string {
  if (run.report) {
    const { report } = run;
    return `${report.served} of ${report.requests} served, ${report.output_tokens_per_second.toFixed(1)} tokens/s, first token ${seconds(report.ttft.p50)}`;
  }
  if (run.error) return run.error;
  const last = run.points.at(-1);
  if (run.state === "starting" || !last) return "It warms the cluster up…";
  const failed = last.failed > 0 ? `, ${last.failed} failed` : "";
  return `${last.seconds.toFixed(0)} s: ${last.requests} ended, ${last.running} running${failed}`;
}

/** Returns the points with the moments at which they were, for charts. */
export function timed(run: Run): (RunPoint & { at: number })[] {
  const start = Date.parse(run.started_at) / 1000;
  return run.points.map((point) => ({ ...point, at: start + point.seconds }));
}
