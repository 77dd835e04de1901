import { expect, test } from "vitest";
import { isComing, partDone, placesOf, stateOf, type AdapterPlace, type ServedModel } from "./models";

const at = (tier: string): AdapterPlace => ({ worker: tier, tier, running_requests: 0, error: null });
const model = (state: string, detail: string | null = null) => ({ state, detail }) as ServedModel;

test("an adapter is where it is nearest first", () => {
  expect(placesOf([at("disk"), at("device"), at("disk")])).toBe("device on 1, disk on 2 of 3 workers");
  expect(placesOf([])).toBe("–");
});

test("a model that comes or goes says how far it is", () => {
  expect(stateOf(model("fetching", "a/b: 0.6 of 2.4 GB, 90 MB/s"))).toBe("fetching: a/b: 0.6 of 2.4 GB, 90 MB/s");
  expect(stateOf(model("ready"))).toBe("ready");
  expect(["registered", "ready", "failed", "draining"].map((state) => isComing(model(state)))).toEqual([true, false, false, true]);
});

test("progress is known of a download", () => {
  expect(partDone(model("fetching", "a/b: 0.6 of 2.4 GB, 90 MB/s"))).toBe(0.25);
  expect(partDone(model("fetching", "a/b: 0.0 of 0.0 GB"))).toBeUndefined();
  expect(partDone(model("starting", "its engines start"))).toBeUndefined();
});
