/** The latest requests of all apiservers, newest first, asked for while the page shows them. */

import { getJson, messageOf } from "./api";

/** A row of GET /admin/v1/requests. */
export interface RequestRow {
  /** An apiserver from its start to its end; `number` is one of its own. */
  instance: string;
  number: number;
  request_id: string;
  tenant: string;
  model: string | null;
  adapter: string | null;
  path: string;
  came_at: string;
  running: boolean;
  status: number | null;
  outcome: string | null;
  error: string | null;
  seconds: number;
  queue_seconds: number;
  first_token_seconds: number | null;
  prompt_tokens: number;
  cached_tokens: number;
  output_tokens: number;
  prefill: string | null;
  decode: string | null;
  transport: string | null;
  fell_back: boolean;
  attempts: number;
}

interface Answer {
  apiserver: string;
  requests: RequestRow[];
  /** What the next question begins after: `INSTANCE:NUMBER` of each instance. */
  after: string;
  /** Why some may be missing. */
  problem: string | null;
}

export interface Filter {
  text: string;
  tenant: string;
  model: string;
  kind: "all" | "running" | "slow" | "failed" | "fell back";
  slowSeconds: number;
}

const MOST_ROWS = 5000;
const PAUSE_MS = 2000;

export class Requests {
  rows = $state.raw<RequestRow[]>([]);
  /** Names of the apiservers. */
  apiservers = $state.raw<string[]>([]);
  problem = $state("");
  private after = "";

  /** Asks again and again until the returned function is called. */
  watch(): () => void {
    const control = new AbortController();
    void this.follow(control.signal);
    return () => control.abort();
  }

  take(answer: Answer): void {
    const instances = instancesOf(answer.after);
    // One that started again numbers its requests anew, and has forgotten those before.
    const known = this.rows.filter((row) => instances.includes(row.instance));
    this.rows = merged(known, answer.requests);
    this.after = answer.after;
    this.apiservers = instances.map((one) => one.split("@")[0] ?? one);
    this.problem = answer.problem ?? "";
  }

  private async follow(signal: AbortSignal): Promise<void> {
    while (!signal.aborted) {
      try {
        const limit = this.after === "" ? MOST_ROWS : 500;
        this.take(await getJson<Answer>(`/admin/v1/requests?after=${encodeURIComponent(this.after)}&limit=${limit}`, signal));
      } catch (error) {
        if (signal.aborted) return;
        this.problem = messageOf(error);
        this.after = "";
      }
      await new Promise((resolve) => setTimeout(resolve, PAUSE_MS));
    }
  }
}

function instancesOf(after: string): string[] {
  return after.split(",").filter(Boolean).map((one) => one.slice(0, one.lastIndexOf(":")));
}

/** Returns what tells a row from all others. */
export function keyOf(row: RequestRow): string {
  return `${row.instance} ${row.number}`;
}

/** Returns all rows, the newest first. A row that came again replaces the one before; one that ran and did not come
 * again was not worth keeping. */
export function merged(known: readonly RequestRow[], fresh: readonly RequestRow[]): RequestRow[] {
  const keys = new Set(fresh.map(keyOf));
  const kept = known.filter((row) => !row.running && !keys.has(keyOf(row)));
  return [...fresh, ...kept].sort(newestFirst).slice(0, MOST_ROWS);
}

function newestFirst(one: RequestRow, other: RequestRow): number {
  if (one.instance === other.instance) return other.number - one.number;
  return one.came_at < other.came_at ? 1 : -1;
}

export function failed(row: RequestRow): boolean {
  return !row.running && ((row.status ?? 0) >= 400 || (row.outcome !== null && row.outcome !== "completed"));
}

export function filtered(rows: readonly RequestRow[], filter: Filter): RequestRow[] {
  const text = filter.text.trim().toLowerCase();
  return rows.filter(
    (row) =>
      (filter.tenant === "" || row.tenant === filter.tenant) &&
      (filter.model === "" || (row.adapter ?? row.model) === filter.model) &&
      ofKind(row, filter) &&
      (text === "" || `${row.request_id} ${row.error ?? ""} ${row.prefill} ${row.decode}`.toLowerCase().includes(text)),
  );
}

function ofKind(row: RequestRow, filter: Filter): boolean {
  switch (filter.kind) {
    case "all":
      return true;
    case "running":
      return row.running;
    case "slow":
      return row.seconds >= filter.slowSeconds;
    case "failed":
      return failed(row);
    case "fell back":
      return row.fell_back || row.attempts > 1;
  }
}

export interface Shown<T> {
  first: number;
  rows: readonly T[];
}

/** Returns the rows that are in sight, and some around them. */
export function inSight<T>(rows: readonly T[], top: number, height: number, rowHeight: number): Shown<T> {
  const first = Math.max(0, Math.floor(top / rowHeight) - 8);
  const last = Math.ceil((top + height) / rowHeight) + 8;
  return { first, rows: rows.slice(first, last) };
}
