/** Points of the history as lines of charts. */

import type { Point } from "./status";

export const COLORS = ["--phase-prefill", "--phase-decode", "--phase-queue", "--phase-hand-over", "--bad", "--muted"];

// Totals that workers report once a second make no steps over such a time.
const WINDOW_SECONDS = 4;

/** Returns the growth of a total per second; null where it is not known, or has begun anew. */
export function perSecond(points: readonly Point[], total: (point: Point) => number | undefined): (number | null)[] {
  let first = 0;
  return points.map((point) => {
    while ((points[first]?.at ?? point.at) < point.at - WINDOW_SECONDS) first += 1;
    const from = points[first];
    const [before, now] = [from && total(from), total(point)];
    if (!from || before === undefined || now === undefined || from.at >= point.at || now < before) return null;
    return (now - before) / (point.at - from.at);
  });
}
