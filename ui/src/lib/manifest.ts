/** The manifest in force beside the file, as GET /admin/v1/manifest shows them (docs/console.md). */

export interface DiffLine {
  /** "-": only in force; "+": only in the file; " ": in both. */
  mark: "-" | "+" | " ";
  before: number | null;
  after: number | null;
  text: string;
}

/** What a reload brought; of a manifest that is only looked at, what it would bring. */
export interface Reloaded {
  live: { path: string; before: string; after: string }[];
  needs_restart: { path: string; processes: string[] }[];
  failed: string[];
}

export interface ManifestView extends Reloaded {
  file: string;
  text: string;
  diff: DiffLine[][];
  /** Why the file cannot be brought to the cluster as it is now. */
  problem: string | null;
}

/** Returns what became of a reload, in a sentence. */
export function outcomeOf({ live, needs_restart }: Reloaded): string {
  const parts = [
    live.length > 0 ? `Changed at once: ${live.map((one) => one.path).join(", ")}.` : "",
    needs_restart.length > 0 ? `Left until a restart: ${needs_restart.map((one) => one.path).join(", ")}.` : "",
  ];
  return parts.filter(Boolean).join(" ") || "Nothing has changed.";
}
