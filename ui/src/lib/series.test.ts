import { expect, test } from "vitest";
import { perSecond, shareOf } from "./series";
import type { Point } from "./status";

const at = (second: number, total?: number) => ({ at: second, tiers: total === undefined ? {} : { memory: [0, total] } }) as unknown as Point;

test("a total becomes a rate, and one that begins anew is no loss", () => {
  const points = [at(0, 0), at(2, 20), at(4, 20), at(10, 80), at(11, 5), at(12)];
  expect(perSecond(points, (one) => one.tiers.memory?.[1])).toEqual([null, 10, 5, null, null, null]);
});

test("a share is of what was added lately, and unknown where nothing was", () => {
  const points = [[0, 0, 0], [10, 50, 100], [20, 50, 100], [30, 70, 300], [40, 70, 20]].map(([at, part, whole]) => ({ at: at!, part: part!, whole: whole! }));
  const shares = shareOf(points, (one) => one.part, (one) => one.whole, 15);
  expect(shares).toEqual([null, 0.5, null, 0.1, null]);
});
