/** Where each process and tier of a cluster is drawn for the room that there is, and what moves between them. Pure. */

import { bytes, rate } from "./format";
import type { RoleView, Status } from "./status";

const TITLE = 26;
const GAP = 10;
const BETWEEN = 24; // groups that stand on each other
const CONNECTOR = 30; // between two tiers
const TIER = 48;
const ROOMY = 76;
const COMPACT = 48;
const MOST_ROOMY = 4; // boxes of a column
const WIDEST = 174;
const NARROW = 620; // below, groups stand on each other
const PHONE = 460;
const LEAST_GAP = 40;
const WORDS_GAP = 108; // in which words fit
const PORT = 8; // at most, between the ends of two edges at a box

interface Group {
  title: string;
  kinds: readonly string[];
}

// From where a request comes to where its answer is made.
const APISERVERS: Group = { title: "Apiservers", kinds: ["apiserver"] };
const ROUTERS: Group = { title: "Routers", kinds: ["router"] };
const PREFILL: Group = { title: "Prefill", kinds: ["prefill"] };
const DECODE: Group = { title: "Decode", kinds: ["decode", "aggregated"] };
const STORE: Group = { title: "KV store", kinds: ["kvmanager"] };

export interface Place {
  x: number;
  y: number;
}

export interface Box extends Place {
  role: RoleView;
}

/** A place in which KV is. used, reusable: parts of it. into, outOf: bytes per second between it and the one above;
 * null for the one that has none above. */
export interface TierBox extends Place {
  name: string;
  kind: string;
  used: number;
  reusable: number;
  size: string;
  into: number | null;
  outOf: number;
}

/** What comes to a box now. */
export interface Inflow extends Place {
  to: string;
  text: string;
  fromLeft: boolean;
}

export interface Edge {
  id: string;
  from: string;
  to: string;
  path: string;
  transport: string;
  /** Bytes per second now; 0: nothing moves. */
  now: number;
  /** Bytes per second of what was moved so far. */
  usual: number;
  /** Pixels. */
  width: number;
}

/** gap: between columns. compact: boxes have two lines instead of three. */
export interface Layout {
  boxes: Box[];
  titles: (Place & { text: string })[];
  tiers: TierBox[];
  edges: Edge[];
  inflows: Inflow[];
  box: { width: number; height: number };
  tierWidth: number;
  gap: number;
  compact: boolean;
  width: number;
  height: number;
}

/** rates: bytes per second now, as ratesOf. width: of the room, in pixels. */
export function layout(status: Status, rates: ReadonlyMap<string, number>, width: number): Layout {
  const room = Math.max(280, width);
  const drawn = room < NARROW ? narrow(status, rates, room) : wide(status, rates, room);
  const edges = edgesOf(drawn, rates);
  return { ...drawn, edges, inflows: inflowsOf(drawn.boxes, edges, drawn.box) };
}

type Drawn = Omit<Layout, "edges" | "inflows">;

function rolesOf(status: Status, group: Group): RoleView[] {
  return status.roles.filter((role) => group.kinds.includes(role.role));
}

/** Columns beside each other. */
function wide(status: Status, rates: ReadonlyMap<string, number>, width: number): Drawn {
  const columns = [[APISERVERS, ROUTERS], [PREFILL], [DECODE], [STORE]]
    .map((groups) => groups.filter((one) => rolesOf(status, one).length > 0))
    .filter((groups) => groups.length > 0);
  const most = Math.max(...columns.map((groups) => groups.flatMap((one) => rolesOf(status, one)).length), 0);
  const compact = most > MOST_ROOMY;
  const boxWidth = Math.min(WIDEST, Math.floor((width - (columns.length - 1) * LEAST_GAP) / Math.max(1, columns.length)));
  const gap = columns.length > 1 ? (width - columns.length * boxWidth) / (columns.length - 1) : 0;
  const drawn = empty(width, { width: boxWidth, height: compact ? COMPACT : ROOMY }, compact, gap);
  drawn.tierWidth = boxWidth;
  columns.forEach((groups, index) => {
    let y = 0;
    for (const group of groups) {
      y = addGroup(drawn, status, group, { x: index * (boxWidth + gap), y }, 1);
      if (group === STORE) y = addTiers(drawn, status, rates, index * (boxWidth + gap), y);
      y += BETWEEN;
    }
  });
  return centred(drawn, boxWidth);
}

/** Groups on each other; prefill and decode beside each other. */
function narrow(status: Status, rates: ReadonlyMap<string, number>, width: number): Drawn {
  const gap = width < PHONE ? LEAST_GAP : WORDS_GAP;
  const boxWidth = Math.floor((width - gap) / 2);
  const drawn = empty(width, { width: boxWidth, height: COMPACT }, true, gap);
  const right = boxWidth + gap;
  const isApart = [PREFILL, DECODE].every((one) => rolesOf(status, one).length > 0);
  const rows: [Group, number, number][][] = [
    [[APISERVERS, 0, 1], [ROUTERS, right, 1]],
    isApart ? [[PREFILL, 0, 1], [DECODE, right, 1]] : [[PREFILL, 0, 2], [DECODE, 0, 2]],
    [[STORE, 0, 2]],
  ];
  let y = 0;
  for (const row of rows) {
    const ends = row.map(([group, x, across]) => addGroup(drawn, status, group, { x, y }, across));
    y = Math.max(...ends) > y ? Math.max(...ends) + BETWEEN : y;
  }
  drawn.tierWidth = width;
  if (rolesOf(status, STORE).length > 0) addTiers(drawn, status, rates, 0, y - BETWEEN);
  return drawn;
}

function empty(width: number, box: { width: number; height: number }, compact: boolean, gap: number): Drawn {
  return { boxes: [], titles: [], tiers: [], box, tierWidth: 0, gap, compact, width, height: 0 };
}

/** Adds the boxes of a group, `across` of them in a row. Returns where it ends; at.y when it is empty. */
function addGroup(drawn: Drawn, status: Status, group: Group, at: Place, across: number): number {
  const roles = rolesOf(status, group);
  if (roles.length === 0) return at.y;
  const isAggregated = roles.every((role) => role.role === "aggregated");
  drawn.titles.push({ text: isAggregated ? "Workers" : group.title, x: at.x, y: at.y + 13 });
  const { width, height } = drawn.box;
  roles.forEach((role, index) => {
    const [row, column] = [Math.floor(index / across), index % across];
    drawn.boxes.push({ role, x: at.x + column * (width + drawn.gap), y: at.y + TITLE + row * (height + GAP) });
  });
  const end = at.y + TITLE + Math.ceil(roles.length / across) * (height + GAP) - GAP;
  drawn.height = Math.max(drawn.height, end);
  return end;
}

/** Adds the memory of engines and the tiers below it. Returns where they end. */
function addTiers(drawn: Drawn, status: Status, rates: ReadonlyMap<string, number>, x: number, from: number): number {
  let y = from + GAP;
  for (const tier of [device(status), ...status.tiers.map((one) => lower(one, rates))]) {
    drawn.tiers.push({ ...tier, x, y });
    y += TIER + CONNECTOR;
  }
  drawn.height = Math.max(drawn.height, y - CONNECTOR);
  return y - CONNECTOR;
}

type Tier = Omit<TierBox, "x" | "y">;

function device(status: Status): Tier {
  const workers = status.roles.flatMap((role) => role.worker ?? []);
  const total = Math.max(1, sum(workers.map((one) => one.total_blocks)));
  const [used, known] = [sum(workers.map((one) => one.used_blocks)) / total, sum(workers.map((one) => one.stored_blocks)) / total];
  return { name: "device", kind: "device", used, reusable: Math.min(known, 1 - used), size: "", into: null, outOf: 0 };
}

function lower(tier: Status["tiers"][number], rates: ReadonlyMap<string, number>): Tier {
  return {
    name: tier.name,
    kind: tier.kind,
    used: Math.min(1, tier.used_bytes / Math.max(1, tier.capacity_bytes)),
    reusable: 0,
    size: `${bytes(tier.used_bytes)} of ${bytes(tier.capacity_bytes)}`,
    into: rates.get(tierId(tier.name, "into")) ?? 0,
    outOf: rates.get(tierId(tier.name, "out")) ?? 0,
  };
}

function sum(values: readonly number[]): number {
  return values.reduce((all, one) => all + one, 0);
}

/** Columns that are shorter than the tallest begin lower, so that edges are short. */
function centred(drawn: Drawn, boxWidth: number): Drawn {
  const columns = new Map<number, Place[]>();
  for (const one of [...drawn.boxes, ...drawn.tiers, ...drawn.titles]) columns.set(one.x, [...(columns.get(one.x) ?? []), one]);
  for (const places of columns.values()) {
    const end = Math.max(...places.map((one) => one.y + heightOf(drawn, one)));
    for (const one of places) one.y += (drawn.height - end) / 2;
  }
  return { ...drawn, tierWidth: boxWidth };
}

function heightOf(drawn: Drawn, place: Place): number {
  if ("role" in place) return drawn.box.height;
  return "kind" in place ? TIER : 0;
}

/** An edge goes the way that KV does: from the peer to the worker that fetches it. */
export function edgeId(from: string, to: string, transport: string): string {
  return `${from}>${to}:${transport}`;
}

function tierId(name: string, way: "into" | "out"): string {
  return `tier ${name} ${way}`;
}

type Side = "left" | "right";

/** An edge before it is known where at its boxes it ends. */
interface Link extends Omit<Edge, "path" | "width" | "from" | "to"> {
  from: Box;
  to: Box;
  fromSide: Side;
  toSide: Side;
}

function edgesOf(drawn: Drawn, rates: ReadonlyMap<string, number>): Edge[] {
  const links = linksOf(drawn, rates);
  const ports = portsOf(links, drawn.box.height);
  return links.map((link) => {
    const [start, end] = [`${link.id} from`, `${link.id} to`].map((key) => ports.get(key) ?? { y: 0, room: 0 }) as [Port, Port];
    const { id, transport, now, usual } = link;
    const width = Math.min(widthOf(now), Math.max(1.5, 1.2 * Math.min(start.room, end.room)));
    return { id, transport, now, usual, width, from: link.from.role.name, to: link.to.role.name, path: pathOf(link, start.y, end.y, drawn) };
  });
}

function linksOf({ boxes, box, width }: Drawn, rates: ReadonlyMap<string, number>): Link[] {
  const byName = new Map(boxes.map((one) => [one.role.name, one]));
  return boxes.flatMap((to) =>
    (to.role.worker?.pairs ?? []).flatMap((pair) => {
      const from = byName.get(pair.peer);
      if (!from || !pair.chosen || pair.transfers === 0) return [];
      const id = edgeId(pair.peer, to.role.name, pair.transport);
      const usual = pair.seconds > 0 ? pair.bytes / pair.seconds : 0;
      const loop: Side = from.x + box.width >= width - 1 ? "left" : "right";
      const [fromSide, toSide]: [Side, Side] = from.x === to.x ? [loop, loop] : from.x < to.x ? ["right", "left"] : ["left", "right"];
      return [{ id, transport: pair.transport, now: rates.get(id) ?? 0, usual, from, to, fromSide, toSide }];
    }),
  );
}

/** room: to the next one. */
interface Port {
  y: number;
  room: number;
}

/** Returns where each link ends, by its id and end: in the order of the other ends, so that few cross. */
function portsOf(links: readonly Link[], height: number): Map<string, Port> {
  const sides = new Map<string, { key: string; box: Box; other: number }[]>();
  for (const { id, from, to, fromSide, toSide } of links) {
    const ends = [[`${from.role.name} ${fromSide}`, { key: `${id} from`, box: from, other: to.y }], [`${to.role.name} ${toSide}`, { key: `${id} to`, box: to, other: from.y }]] as const;
    for (const [side, end] of ends) sides.set(side, [...(sides.get(side) ?? []), end]);
  }
  const ports = new Map<string, Port>();
  for (const ends of sides.values()) {
    const step = Math.min(PORT, (height - 14) / ends.length);
    ends.sort((one, another) => one.other - another.other);
    ends.forEach(({ key, box }, index) => ports.set(key, { y: box.y + height / 2 + (index - (ends.length - 1) / 2) * step, room: ends.length > 1 ? step : height }));
  }
  return ports;
}

function pathOf({ from, to, fromSide, toSide }: Link, startY: number, endY: number, { box, gap }: Drawn): string {
  const x = (one: Box, side: Side) => (side === "left" ? one.x : one.x + box.width);
  const [startX, endX] = [x(from, fromSide), x(to, toSide)];
  const bend = startX + Math.min(44, gap - 6) * (fromSide === "left" ? -1 : 1);
  const [first, second] = fromSide === toSide ? [bend, bend] : [(startX + endX) / 2, (startX + endX) / 2];
  return `M${startX} ${startY} C${first} ${startY} ${second} ${endY} ${endX} ${endY}`;
}

/** Returns one for each box to which KV comes now, at the side from which most of it comes. */
function inflowsOf(boxes: readonly Box[], edges: readonly Edge[], box: { width: number; height: number }): Inflow[] {
  const xOf = new Map(boxes.map((one) => [one.role.name, one.x]));
  return boxes.flatMap(({ role, x, y }) => {
    const moving = edges.filter((edge) => edge.to === role.name && edge.now > 0).sort((one, other) => other.now - one.now);
    const [most] = moving;
    if (!most) return [];
    const fromLeft = (xOf.get(most.from) ?? x) < x;
    const transports = [...new Set(moving.map((edge) => edge.transport))].join(" + ");
    const text = `${rate(sum(moving.map((edge) => edge.now)))} ${transports}`;
    return [{ to: role.name, text, fromLeft, x: fromLeft ? x : x + box.width, y: y + box.height / 2 }];
  });
}

/** Returns bytes per second of each way, and into and out of each tier, between two looks. */
export function ratesOf(before: Status | null, now: Status, seconds: number): Map<string, number> {
  const moved = totals(now);
  const earlier = before ? totals(before) : new Map<string, number>();
  const rates = new Map<string, number>();
  for (const [id, bytes] of moved) {
    const since = bytes - (earlier.get(id) ?? bytes);
    if (since > 0 && seconds > 0) rates.set(id, since / seconds);
  }
  return rates;
}

function totals(status: Status): Map<string, number> {
  const all = new Map<string, number>();
  for (const { name, worker } of status.roles) {
    for (const pair of worker?.pairs ?? []) all.set(edgeId(pair.peer, name, pair.transport), pair.bytes);
  }
  for (const tier of status.tiers) {
    all.set(tierId(tier.name, "into"), tier.store_bytes);
    all.set(tierId(tier.name, "out"), tier.load_bytes);
  }
  return all;
}

/** Returns the width of a line for what moves on it: 1.5 for nothing, 9 for 10 GB/s and more. */
export function widthOf(bytesPerSecond: number): number {
  if (bytesPerSecond <= 0) return 1.5;
  return Math.min(9, Math.max(2, 2 + 1.4 * Math.log10(bytesPerSecond / 1e5)));
}

/** Returns text that fits, at about this many pixels a letter. */
export function fitted(text: string, pixels: number, letter = 6.4): string {
  const most = Math.max(3, Math.floor(pixels / letter));
  return text.length <= most ? text : `${text.slice(0, most - 1)}…`;
}
