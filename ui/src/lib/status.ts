import { seconds } from "./format";

/** The cluster as GET /admin/v1/status shows it (docs/console.md). */

export interface Pair {
  peer: string;
  transport: string;
  chosen: boolean;
  breaker: string;
  reason: string;
  bytes_per_second: number;
  transfers: number;
  bytes: number;
  seconds: number;
  failures: number;
}

/** How long a worker took in the last minute: a median. peers_seconds: the others'; null: too few requests. */
export interface SpeedView {
  stage: "first token" | "later tokens";
  seconds: number;
  peers_seconds: number | null;
}

export interface WorkerView {
  role: string;
  available: boolean;
  draining: boolean;
  slow: boolean;
  reason: string;
  running_requests: number;
  waiting_requests: number;
  used_blocks: number;
  total_blocks: number;
  stored_blocks: number;
  leased_blocks: number;
  transferred_bytes: number;
  transfer_failures: number;
  last_transport: string;
  pairs: Pair[];
  speeds: SpeedView[];
}

export interface RoleView {
  name: string;
  role: string;
  stand: string;
  health: string;
  restarts: number;
  address: string;
  worker: WorkerView | null;
  leads: boolean;
}

export interface TierView {
  name: string;
  kind: string;
  blocks: number;
  used_bytes: number;
  capacity_bytes: number;
  hit_blocks: number;
  hit_tokens: number;
  load_bytes: number;
  store_bytes: number;
  pinned_blocks: number;
}

/** A beginning of prompts that was found cached often; hash: that of its last block. */
export interface HotPrefix {
  block_hash: string;
  tenant: string;
  blocks: number;
  tokens: number;
  uses: number;
  idle_seconds: number;
}

export interface TenantView {
  name: string;
  weight: number;
  queued_requests: number;
  running_requests: number;
  refused_requests: number;
  wait_seconds: number;
  served_tokens: number;
}

export interface Status {
  healthy: boolean;
  cluster: string;
  stand: string;
  model: string;
  uptime_seconds: number;
  queued_requests: number;
  running_requests: number;
  directory_blocks: number;
  open_leases: number;
  leased_blocks: number;
  orphan_blocks: number;
  queue_limit_requests: number;
  roles: RoleView[];
  tiers: TierView[];
  tenants: TenantView[];
  budgets: { name: string; used_ratio: number | null; refused_requests: number }[];
  adapters: Record<string, unknown>[];
  index: { followed: string[]; away: string[]; blocks: number; proof: string; hottest: HotPrefix[]; prompt_tokens: number; cached_tokens: number };
  problems: string[];
}

/** A moment, as in the event `history`. */
export interface Point {
  at: number;
  queued_requests: number;
  running_requests: number;
  workers: Record<string, [running: number, waiting: number, used: number, fetched: number]>;
  tenants: Record<string, [queued: number, running: number, served: number, refused: number]>;
  tiers: Record<string, [used: number, hitTokens: number]>;
  prompts: [tokens: number, cached: number];
}

export function pointOf(status: Status, at: number): Point {
  const point: Point = {
    at,
    queued_requests: status.queued_requests,
    running_requests: status.running_requests,
    workers: {},
    tenants: {},
    tiers: {},
    prompts: [status.index.prompt_tokens, status.index.cached_tokens],
  };
  for (const { name, worker } of status.roles) {
    if (!worker) continue;
    const used = worker.used_blocks / Math.max(1, worker.total_blocks);
    point.workers[name] = [worker.running_requests, worker.waiting_requests, used, worker.transferred_bytes];
  }
  for (const one of status.tenants) {
    point.tenants[one.name] = [one.queued_requests, one.running_requests, one.served_tokens, one.refused_requests];
  }
  for (const one of status.tiers) point.tiers[one.name] = [one.used_bytes, one.hit_tokens];
  return point;
}

/** Returns a worker's speed as people say it, and against its peers (1.1×: it is faster than they are). */
export function speedText({ stage, seconds: own, peers_seconds: peers }: SpeedView): [string, string] {
  const unit = stage === "first token" ? "for 1,000 prompt tokens" : "for each later token";
  return [`${seconds(own)} ${unit}`, peers === null || own === 0 ? "" : `${(peers / own).toFixed(2)}× the speed of its peers`];
}

export type Health = "good" | "warn" | "bad" | "away";

/** Returns how a process is, and in words why it is not well. */
export function healthOf(role: RoleView): [Health, string] {
  if (role.stand === "drained") return ["away", "drained"];
  if (role.worker?.draining) return ["warn", "drains"];
  if (role.stand !== "ready") return ["bad", role.health ? `${role.stand}: ${role.health}` : role.stand];
  if (role.health !== "healthy") return ["bad", role.health];
  if (role.worker && !role.worker.available) return ["bad", role.worker.reason || "gets no requests"];
  if (role.worker?.slow) return ["warn", `avoided: ${role.worker.reason}`];
  return ["good", ""];
}
