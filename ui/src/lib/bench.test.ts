import { expect, test } from "vitest";
import { summaryOf, timed, type Run, type RunPoint } from "./bench";
import { perSecond } from "./series";

const point = (seconds: number, output_tokens: number, more: Partial<RunPoint> = {}): RunPoint => ({
  seconds, requests: 3, failed: 0, running: 2, output_tokens, ttft: null, e2e: null, ...more,
});
const run = (more: Partial<Run> = {}): Run => ({
  id: "1", state: "running", started_at: "2026-01-01T00:00:10+00:00", load: "", error: null, report: null, points: [], ...more,
});

test("a run says how far it is, and how it was", () => {
  expect(summaryOf(run({ state: "starting" }))).toBe("It warms the cluster up…");
  expect(summaryOf(run({ points: [point(2.4, 9)] }))).toBe("2 s: 3 ended, 2 running");
  expect(summaryOf(run({ points: [point(2.4, 9, { failed: 1 })] }))).toBe("2 s: 3 ended, 2 running, 1 failed");
  expect(summaryOf(run({ state: "failed", error: "nobody there", points: [point(1, 1)] }))).toBe("nobody there");
  const report = { served: 4, requests: 5, output_tokens_per_second: 12.34, ttft: { p50: 0.2 } };
  expect(summaryOf(run({ report: report as never }))).toBe("4 of 5 served, 12.3 tokens/s, first token 200 ms");
});

test("its points are drawn at the time of day, and totals as speeds", () => {
  const points = timed(run({ points: [point(0, 0), point(1, 50), point(2, 200)] }));
  expect(points.map((one) => one.at - points[0]!.at)).toEqual([0, 1, 2]);
  expect(points[0]?.at).toBe(Date.UTC(2026, 0, 1, 0, 0, 10) / 1000);
  expect(perSecond(points, (one) => one.output_tokens)).toEqual([null, 50, 100]);
});
