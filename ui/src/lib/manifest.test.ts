import { expect, test } from "vitest";
import { outcomeOf } from "./manifest";

const nothing = { live: [], needs_restart: [], failed: [] };

test("a reload says in words what became of it", () => {
  const live = [{ path: "scheduling.srpt_bias", before: "5.0", after: "3.0" }];
  const needs_restart = [{ path: "engine.max_model_len", processes: ["decode-0"] }];
  expect(outcomeOf(nothing)).toBe("Nothing has changed.");
  expect(outcomeOf({ ...nothing, live })).toBe("Changed at once: scheduling.srpt_bias.");
  expect(outcomeOf({ ...nothing, live, needs_restart })).toBe(
    "Changed at once: scheduling.srpt_bias. Left until a restart: engine.max_model_len.",
  );
});
