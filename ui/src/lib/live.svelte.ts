/** The cluster's status as it comes, for all pages that show it. It is followed while one of them is open, and found
 * again when the connection was lost. */

import { call, messageOf } from "./api";
import { readEvents } from "./events";
import { pointOf, type Point, type Status } from "./status";

const HISTORY_SECONDS = 300;
const LONGEST_PAUSE_MS = 5000;

export class Live {
  status = $state.raw<Status | null>(null);
  points = $state.raw<Point[]>([]);
  /** Why nothing comes now; empty: it does. */
  problem = $state("");
  private watchers = 0;
  private control: AbortController | null = null;

  /** Follows the status until the returned function is called. */
  watch(): () => void {
    this.watchers += 1;
    if (!this.control) void this.follow((this.control = new AbortController()).signal);
    return () => {
      this.watchers -= 1;
      if (this.watchers > 0) return;
      this.control?.abort();
      this.control = null;
    };
  }

  take(event: string, data: string, at: number): void {
    if (event === "history") this.points = (JSON.parse(data) as { points: Point[] }).points;
    if (event !== "status") return;
    const status = JSON.parse(data) as Status;
    this.status = status;
    const from = at - HISTORY_SECONDS;
    this.points = [...this.points.filter((one) => one.at >= from), pointOf(status, at)];
  }

  private async follow(signal: AbortSignal): Promise<void> {
    let pause = 250;
    while (!signal.aborted) {
      try {
        const { body } = await call("/admin/v1/events", { signal });
        if (!body) return;
        for await (const { event, data } of readEvents(body)) {
          this.take(event, data, Date.now() / 1000);
          this.problem = "";
          pause = 250;
        }
        if (!signal.aborted) this.problem = "The connection was lost. Looking for it again…";
      } catch (error) {
        if (signal.aborted) return;
        this.problem = messageOf(error);
      }
      await new Promise((resolve) => setTimeout(resolve, pause));
      pause = Math.min(2 * pause, LONGEST_PAUSE_MS);
    }
  }
}

export const live = new Live();
