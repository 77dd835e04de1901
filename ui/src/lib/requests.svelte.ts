/** The latest requests of this apiserver, newest first, asked for while the page shows them. */

import { getJson, messageOf } from "./api";

/** A row of GET /admin/v1/requests. */
export interface RequestRow {
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
  after: number;
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
  apiserver = $state("");
  problem = $state("");
  private after = 0;

  /** Asks again and again until the returned function is called. */
  watch(): () => void {
    const control = new AbortController();
    void this.follow(control.signal);
    return () => control.abort();
  }

  take(answer: Answer): void {
    // An apiserver that started again begins anew.
    const known = answer.after < this.after || answer.apiserver !== this.apiserver ? [] : this.rows;
    this.rows = merged(known, answer.requests);
    this.after = answer.after;
    this.apiserver = answer.apiserver;
  }

  private async follow(signal: AbortSignal): Promise<void> {
    while (!signal.aborted) {
      try {
        const limit = this.after === 0 ? MOST_ROWS : 500;
        this.take(await getJson<Answer>(`/admin/v1/requests?after=${this.after}&limit=${limit}`, signal));
        this.problem = "";
      } catch (error) {
        if (signal.aborted) return;
        this.problem = messageOf(error);
        this.after = 0;
      }
      await new Promise((resolve) => setTimeout(resolve, PAUSE_MS));
    }
  }
}

/** Returns all rows, the newest first. A row that came again replaces the one before; one that ran and did not come
 * again was not worth keeping. */
export function merged(known: readonly RequestRow[], fresh: readonly RequestRow[]): RequestRow[] {
  const numbers = new Set(fresh.map((row) => row.number));
  const kept = known.filter((row) => !row.running && !numbers.has(row.number));
  return [...fresh, ...kept].sort((one, other) => other.number - one.number).slice(0, MOST_ROWS);
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
