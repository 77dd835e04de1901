import { expect, test } from "vitest";
import { isComing, placesOf, stateOf, type AdapterPlace, type ServedModel } from "./models";

const at = (tier: string): AdapterPlace => ({ worker: tier, tier, running_requests: 0, error: null });
const model = (state: string, detail: string | null = null) => ({ state, detail }) as ServedModel;

test("an adapter is where it is nearest first", () => {
  expect(placesOf([at("disk"), at("device"), at("disk")])).toBe("device on 1, disk on 2 of 3 workers");
  expect(placesOf([])).toBe("–");
});

test("a model that comes or goes says how far it is", () => {
  expect(stateOf(model("fetching", "downloading a/b: 12%"))).toBe("fetching: downloading a/b: 12%");
  expect(stateOf(model("ready"))).toBe("ready");
  expect(["registered", "ready", "failed", "draining"].map((state) => isComing(model(state)))).toEqual([true, false, false, true]);
});
