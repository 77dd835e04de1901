import { expect, test } from "vitest";
import { Live } from "./live.svelte";
import { healthOf, type Pair, type RoleView, type Status } from "./status";
import { BOX, layout, ratesOf, widthOf } from "./topology";

function role(name: string, pairs: Partial<Pair>[] | null = null, more: Partial<RoleView> = {}): RoleView {
  const worker = pairs && {
    role: "", available: true, draining: false, slow: false, reason: "", running_requests: 2, waiting_requests: 1,
    used_blocks: 3, total_blocks: 4, stored_blocks: 0, leased_blocks: 0, transferred_bytes: 7, transfer_failures: 0,
    last_transport: "", pairs: pairs as Pair[],
  };
  return { name, role: name.split("-")[0] ?? "", stand: "ready", health: "healthy", restarts: 0, address: "", worker, leads: false, ...more };
}

function status(...roles: RoleView[]): Status {
  return { roles, tiers: [], tenants: [], queued_requests: 5, running_requests: 6 } as unknown as Status;
}

const shm = (bytes: number): Partial<Pair> => ({ peer: "prefill-0", transport: "shm", chosen: true, transfers: 1, bytes, seconds: 2 });

test("processes stand in the order in which a request meets them, and never on each other", () => {
  const drawn = layout(status(role("decode-0", []), role("kvmanager-0"), role("prefill-0", []), role("decode-1", []), role("apiserver-0")), new Map());
  expect(drawn.titles.map((one) => one.text)).toEqual(["Apiservers", "Prefill", "Decode", "KV store"]);
  const x = Object.fromEntries(drawn.boxes.map((box) => [box.role.name, box.x]));
  expect(x["apiserver-0"]).toBeLessThan(x["prefill-0"] ?? 0);
  expect(x["prefill-0"]).toBeLessThan(x["decode-0"] ?? 0);
  for (const one of drawn.boxes) {
    expect(one.y + BOX.height).toBeLessThanOrEqual(drawn.height);
    expect(one.x + BOX.width).toBeLessThanOrEqual(drawn.width);
    const same = drawn.boxes.filter((box) => Math.abs(box.x - one.x) < BOX.width && Math.abs(box.y - one.y) < BOX.height);
    expect(same).toEqual([one]);
  }
});

test("an edge goes the way that KV does, and has its speeds", () => {
  const before = status(role("prefill-0", []), role("decode-0", [shm(1000)]));
  const now = status(role("prefill-0", []), role("decode-0", [shm(3000)]));
  const [edge] = layout(now, ratesOf(before, now, 0.5)).edges;
  expect(edge).toMatchObject({ from: "prefill-0", to: "decode-0", transport: "shm", usual: 1500, now: 4000 });
  expect(ratesOf(null, now, 1).size).toBe(0);
});

test.each([
  [{ chosen: false }], [{ transfers: 0 }], [{ peer: "gone-1" }],
])("%o is no edge", (more) => {
  expect(layout(status(role("prefill-0", []), role("decode-0", [{ ...shm(1), ...more }])), new Map()).edges).toEqual([]);
});

test("a worker that started anew has moved nothing backwards", () => {
  const [before, now] = [status(role("decode-0", [shm(9000)])), status(role("decode-0", [shm(10)]))];
  expect(ratesOf(before, now, 1).size).toBe(0);
});

test("more that moves is never drawn thinner", () => {
  const widths = [0, 1, 1e5, 1e6, 1e8, 1e10, 1e13].map(widthOf);
  expect(widths).toEqual([...widths].sort((one, other) => one - other));
  expect(widths.at(-1)).toBe(9);
});

test.each([
  [role("decode-0", []), "good"],
  [role("decode-0", [], { stand: "restarting" }), "bad"],
  [role("router-0", null, { health: "no answer" }), "bad"],
  [role("decode-0", null, { stand: "drained" }), "away"],
])("health %#", (one, expected) => {
  expect(healthOf(one)[0]).toBe(expected);
});

test("the status is followed, and old moments are forgotten", () => {
  const live = new Live();
  live.take("history", JSON.stringify({ points: [{ at: 10 }, { at: 400 }] }), 410);
  live.take("status", JSON.stringify(status(role("decode-0", []))), 410);
  expect(live.points.map((one) => one.at)).toEqual([400, 410]);
  expect(live.points[1]).toMatchObject({ queued_requests: 5, running_requests: 6, workers: { "decode-0": [2, 1, 0.75, 7] } });
  expect(live.status?.roles[0]?.name).toBe("decode-0");
});
