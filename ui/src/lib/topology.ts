/** Where each process of a cluster is drawn, and what moves between them. Pure. */

import type { RoleView, Status } from "./status";

export const BOX = { width: 172, height: 74 };
const GAP = 16;
const COLUMN = 236;
const TOP = 34;
// From where a request comes to where its answer is made.
const COLUMNS = [["apiserver"], ["router"], ["prefill"], ["decode", "aggregated"], ["kvmanager"]];
const TITLES = ["Apiservers", "Routers", "Prefill", "Decode", "KV store"];

export interface Box {
  role: RoleView;
  x: number;
  y: number;
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
  /** Where its words stand. */
  label: { x: number; y: number };
}

export interface Layout {
  boxes: Box[];
  titles: { text: string; x: number }[];
  edges: Edge[];
  width: number;
  height: number;
}

/** rates: bytes per second now, by edgeId. */
export function layout(status: Status, rates: ReadonlyMap<string, number>): Layout {
  const columns = COLUMNS.map((kinds) => status.roles.filter((role) => kinds.includes(role.role)));
  const used = columns.map((roles, index) => ({ roles, title: TITLES[index] ?? "" })).filter((one) => one.roles.length > 0);
  const tallest = Math.max(1, ...used.map((one) => one.roles.length));
  const height = TOP + tallest * (BOX.height + GAP);
  const boxes = used.flatMap(({ roles }, column) => {
    const free = (tallest - roles.length) * (BOX.height + GAP);
    return roles.map((role, row) => ({ role, x: column * COLUMN, y: TOP + free / 2 + row * (BOX.height + GAP) }));
  });
  const titles = used.map(({ title }, column) => ({ text: title, x: column * COLUMN + BOX.width / 2 }));
  const width = (used.length - 1) * COLUMN + BOX.width;
  return { boxes, titles, edges: edgesOf(boxes, rates), width, height };
}

/** An edge goes the way that KV does: from the peer to the worker that fetches it. */
export function edgeId(from: string, to: string, transport: string): string {
  return `${from}>${to}:${transport}`;
}

function edgesOf(boxes: Box[], rates: ReadonlyMap<string, number>): Edge[] {
  const byName = new Map(boxes.map((box) => [box.role.name, box]));
  return boxes.flatMap((to) =>
    (to.role.worker?.pairs ?? []).flatMap((pair) => {
      const from = byName.get(pair.peer);
      if (!from || !pair.chosen || pair.transfers === 0) return [];
      const id = edgeId(pair.peer, to.role.name, pair.transport);
      const usual = pair.seconds > 0 ? pair.bytes / pair.seconds : 0;
      const now = rates.get(id) ?? 0;
      return [{ id, from: pair.peer, to: to.role.name, transport: pair.transport, now, usual, ...drawn(from, to) }];
    }),
  );
}

function drawn(from: Box, to: Box): { path: string; label: { x: number; y: number } } {
  const right = to.x > from.x;
  const [startX, endX] = right ? [from.x + BOX.width, to.x] : [from.x, to.x + BOX.width];
  const [startY, endY] = [from.y + BOX.height / 2, to.y + BOX.height / 2];
  if (from.x === to.x) {
    const bend = from.x + BOX.width + 44;
    const edge = from.x + BOX.width;
    return { path: `M${edge} ${startY} C${bend} ${startY} ${bend} ${endY} ${edge} ${endY}`, label: { x: bend - 10, y: (startY + endY) / 2 } };
  }
  const middle = (startX + endX) / 2;
  return {
    path: `M${startX} ${startY} C${middle} ${startY} ${middle} ${endY} ${endX} ${endY}`,
    label: { x: middle, y: (startY + endY) / 2 },
  };
}

/** Returns bytes per second of each way between two looks. */
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
  return all;
}

/** Returns the width of a line for what moves on it: 1.5 for nothing, 9 for 10 GB/s and more. */
export function widthOf(bytesPerSecond: number): number {
  if (bytesPerSecond <= 0) return 1.5;
  return Math.min(9, Math.max(2, 2 + 1.4 * Math.log10(bytesPerSecond / 1e5)));
}
