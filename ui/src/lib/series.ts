/** Points of the history as lines of charts. */

export const COLORS = ["--phase-prefill", "--phase-decode", "--phase-queue", "--phase-hand-over", "--bad", "--muted"];

/** Over how many seconds shares of prompts are taken: requests end one by one. */
export const SHARE_SECONDS = 30;

// Totals that workers report once a second make no steps over such a time.
const WINDOW_SECONDS = 4;

/** Returns the growth of one total as a part of another's, over the seconds before each point; null where nothing grew or
 * a total has begun anew. */
export function shareOf<T extends { at: number }>(points: readonly T[], part: (point: T) => number, whole: (point: T) => number, seconds: number): (number | null)[] {
  let first = 0;
  return points.map((point) => {
    while ((points[first]?.at ?? point.at) < point.at - seconds) first += 1;
    const from = points[first] ?? point;
    const [grown, all] = [part(point) - part(from), whole(point) - whole(from)];
    return all > 0 && grown >= 0 ? Math.min(1, grown / all) : null;
  });
}

/** Returns the growth of a total per second; null where it is not known, or has begun anew. */
export function perSecond<T extends { at: number }>(points: readonly T[], total: (point: T) => number | undefined): (number | null)[] {
  let first = 0;
  return points.map((point) => {
    while ((points[first]?.at ?? point.at) < point.at - WINDOW_SECONDS) first += 1;
    const from = points[first];
    const [before, now] = [from && total(from), total(point)];
    if (!from || before === undefined || now === undefined || from.at >= point.at || now < before) return null;
    return (now - before) / (point.at - from.at);
  });
}
