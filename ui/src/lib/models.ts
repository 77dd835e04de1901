/** Models and adapters as GET /admin/v1/models and /admin/v1/adapters show them (docs/models.md, docs/adapters.md). */

export interface ServedModel {
  name: string;
  state: string;
  /** What is done now. */
  detail: string | null;
  error: string | null;
  source: string;
  in_manifest: boolean;
  swaps: string | null;
  requests: number;
}

export interface AdapterPlace {
  worker: string;
  tier: string;
  running_requests: number;
  error: string | null;
}

export interface Adapter {
  name: string;
  model: string;
  version: string | null;
  source: string;
  state: string;
  error: string | null;
  rank: number | null;
  size_bytes: number | null;
  pinned: boolean;
  running_requests: number;
  workers: AdapterPlace[];
}

/** Where adapters can be brought, the nearest first. */
export const TIERS = ["device", "dram", "disk"];

/** Returns on how many workers an adapter is how near, the nearest first: "device on 1, disk on 2 workers". */
export function placesOf(workers: readonly AdapterPlace[]): string {
  const tiers = [...TIERS, "source"].map((tier) => [tier, workers.filter((one) => one.tier === tier).length] as const);
  const counts = tiers.filter(([, count]) => count > 0).map(([tier, count]) => `${tier} on ${count}`);
  return counts.length > 0 ? `${counts.join(", ")} of ${workers.length} workers` : "–";
}

/** Returns how a model is, in words. */
export function stateOf(model: ServedModel): string {
  return model.detail ? `${model.state}: ${model.detail}` : model.state;
}

/** Whether a model or an adapter comes or goes. */
export function isComing(one: { state: string }): boolean {
  return ["registered", "fetching", "starting", "draining"].includes(one.state);
}

/** Returns which part of a download is here, 0 to 1; undefined: nothing is known, or something else goes on. */
export function partDone(model: ServedModel): number | undefined {
  const found = /([\d.]+) of ([\d.]+) GB/.exec(model.detail ?? "");
  const [done, total] = [Number(found?.[1]), Number(found?.[2])];
  return total > 0 ? Math.min(1, done / total) : undefined;
}
