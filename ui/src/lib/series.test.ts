import { expect, test } from "vitest";
import { perSecond } from "./series";
import type { Point } from "./status";

const at = (second: number, total?: number) => ({ at: second, tiers: total === undefined ? {} : { memory: [0, total] } }) as unknown as Point;

test("a total becomes a rate, and one that begins anew is no loss", () => {
  const points = [at(0, 0), at(2, 20), at(4, 20), at(10, 80), at(11, 5), at(12)];
  expect(perSecond(points, (one) => one.tiers.memory?.[1])).toEqual([null, 10, 5, null, null, null]);
});
