import { expect, test } from "vitest";
import { Live } from "./live.svelte";
import { healthOf, speedText, type Pair, type RoleView, type Status } from "./status";
import { layout, ratesOf, widthOf } from "./topology";

function role(name: string, pairs: Partial<Pair>[] | null = null, more: Partial<RoleView> = {}): RoleView {
  const worker = pairs && {
    role: "", available: true, draining: false, slow: false, reason: "", running_requests: 2, waiting_requests: 1,
    used_blocks: 3, total_blocks: 4, stored_blocks: 0, leased_blocks: 0, transferred_bytes: 7, transfer_failures: 0,
    last_transport: "", speeds: [], pairs: pairs as Pair[],
  };
  return { name, role: name.split("-")[0] ?? "", stand: "ready", health: "healthy", restarts: 0, address: "", worker, leads: false, ...more };
}

function status(...roles: RoleView[]): Status {
  return { roles, tiers: [], tenants: [], queued_requests: 5, running_requests: 6, index: { prompt_tokens: 9, cached_tokens: 3 } } as unknown as Status;
}

const shm = (bytes: number): Partial<Pair> => ({ peer: "prefill-0", transport: "shm", chosen: true, transfers: 1, bytes, seconds: 2 });

function cluster(prefill: number, decode: number, kind = "decode"): Status {
  const many = (name: string, count: number, pairs: Partial<Pair>[] | null) => Array.from({ length: count }, (_, at) => role(`${name}-${at}`, pairs));
  const tier = { used_bytes: 3, capacity_bytes: 4, store_bytes: 0, load_bytes: 0 };
  const tiers = [{ name: "memory", kind: "dram", ...tier }, { name: "disk", kind: "nvme", ...tier }, { name: "bucket", kind: "object", ...tier }];
  const roles = [...many("apiserver", 2, null), ...many("router", 3, null), ...many("prefill", prefill, []), ...many(kind, decode, [shm(1)]), ...many("kvmanager", 2, null)];
  return { ...status(...roles), tiers } as unknown as Status;
}

test.each([
  [0.2, 0.25, ["200 ms for 1,000 prompt tokens", "1.25× the speed of its peers"]],
  [0.2, null, ["200 ms for 1,000 prompt tokens", ""]],
])("%f s beside %s s is said so", (own, peers, said) => {
  expect(speedText({ stage: "first token", seconds: own, peers_seconds: peers })).toEqual(said);
  expect(speedText({ stage: "later tokens", seconds: own, peers_seconds: peers })[0]).toBe("200 ms for each later token");
});

test("processes stand in the order in which a request meets them", () => {
  const drawn = layout(status(role("decode-0", []), role("kvmanager-0"), role("prefill-0", []), role("decode-1", []), role("apiserver-0")), new Map(), 1000);
  expect(drawn.titles.map((one) => one.text)).toEqual(["Apiservers", "Prefill", "Decode", "KV store"]);
  const x = Object.fromEntries(drawn.boxes.map((box) => [box.role.name, box.x]));
  expect(x["apiserver-0"]).toBeLessThan(x["prefill-0"] ?? 0);
  expect(x["prefill-0"]).toBeLessThan(x["decode-0"] ?? 0);
});

// From a phone to a wide screen.
const ROOMS = [280, 318, 500, 619, 620, 700, 900, 1036, 1118];

test.each([[1, 1], [1, 2], [2, 4], [4, 12], [8, 8], [15, 1], [0, 2], [0, 16]])("%i and %i workers stand beside each other and within the room", (prefill, decode) => {
  for (const room of ROOMS) {
    const drawn = layout(cluster(prefill, decode, prefill ? "decode" : "aggregated"), new Map(), room);
    const all = [
      ...drawn.boxes.map((box) => ({ ...box, width: drawn.box.width, height: drawn.box.height })),
      ...drawn.tiers.map((tier) => ({ ...tier, width: drawn.tierWidth, height: 48 })),
      ...drawn.titles.map((title) => ({ ...title, y: title.y - 12, width: 1, height: 16 })),
    ];
    expect(drawn.boxes).toHaveLength(7 + prefill + decode);
    expect(drawn.tiers.map((one) => one.name)).toEqual(["device", "memory", "disk", "bucket"]);
    expect(drawn.box.width).toBeGreaterThanOrEqual(120);
    for (const [index, one] of all.entries()) {
      expect(one.x).toBeGreaterThanOrEqual(0);
      expect(one.x + one.width).toBeLessThanOrEqual(room);
      expect(one.y + one.height).toBeLessThanOrEqual(drawn.height);
      const on = all.slice(index + 1).filter((other) => one.x < other.x + other.width && other.x < one.x + one.width && one.y < other.y + other.height && other.y < one.y + one.height);
      expect(on).toEqual([]);
    }
  }
});

test("tiers say how full they are, and what moves into them and out of them", () => {
  const before = cluster(1, 1);
  const now = { ...before, tiers: before.tiers.map((tier) => ({ ...tier, store_bytes: 500, load_bytes: tier.name === "disk" ? 100 : 0 })) };
  const [device, memory, disk] = layout(now, ratesOf(before, now, 0.5), 900).tiers;
  expect(device).toMatchObject({ used: 0.75, into: null });
  expect(memory).toMatchObject({ used: 0.75, into: 1000, outOf: 0, size: "3 B of 4 B" });
  expect(disk).toMatchObject({ into: 1000, outOf: 200 });
});

test("what comes to a worker is one figure, at the side from which most comes", () => {
  const pairs = [shm(3000), { ...shm(100), peer: "decode-1", transport: "tcp" }];
  const before = status(role("prefill-0", []), role("decode-0", pairs.map((one) => ({ ...one, bytes: 0 }))), role("decode-1", []));
  const now = status(role("prefill-0", []), role("decode-0", pairs), role("decode-1", []));
  const { inflows } = layout(now, ratesOf(before, now, 1), 900);
  expect(inflows).toMatchObject([{ to: "decode-0", text: "3.03 KiB/s shm + tcp", fromLeft: true }]);
});

test("an edge goes the way that KV does, and has its speeds", () => {
  const before = status(role("prefill-0", []), role("decode-0", [shm(1000)]));
  const now = status(role("prefill-0", []), role("decode-0", [shm(3000)]));
  const [edge] = layout(now, ratesOf(before, now, 0.5), 900).edges;
  expect(edge).toMatchObject({ from: "prefill-0", to: "decode-0", transport: "shm", usual: 1500, now: 4000 });
  expect(ratesOf(null, now, 1).size).toBe(0);
});

test.each([
  [{ chosen: false }], [{ transfers: 0 }], [{ peer: "gone-1" }],
])("%o is no edge", (more) => {
  expect(layout(status(role("prefill-0", []), role("decode-0", [{ ...shm(1), ...more }])), new Map(), 900).edges).toEqual([]);
});

test("a worker that started anew has moved nothing backwards", () => {
  const [before, now] = [status(role("decode-0", [shm(9000)])), status(role("decode-0", [shm(10)]))];
  expect(ratesOf(before, now, 1).size).toBe(0);
});

test("edges end apart from each other, and fit a box however many they are", () => {
  const peers = Array.from({ length: 12 }, (_, at) => ({ ...shm(1e12), peer: `prefill-${at}` }));
  const before = status(...peers.map((one) => role(one.peer, [])), role("decode-0", peers.map((one) => ({ ...one, bytes: 0 }))));
  const now = status(...peers.map((one) => role(one.peer, [])), role("decode-0", peers));
  const { edges, box, boxes } = layout(now, ratesOf(before, now, 1), 900);
  const ends = edges.map((edge) => Number(edge.path.split(" ").at(-1)));
  const middle = (boxes.find((one) => one.role.name === "decode-0")?.y ?? 0) + box.height / 2;
  expect(new Set(ends).size).toBe(12);
  for (const [index, edge] of edges.entries()) {
    expect(Math.abs((ends[index] ?? 0) - middle)).toBeLessThan(box.height / 2 - 4);
    expect(edge.width).toBeLessThan(5);
  }
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
