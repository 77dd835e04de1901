/** Who uses this page: the key of this tab, and what it allows. */

const KEY = "llmserve.key";

export type Scope = "inference" | "read" | "admin";

/** The answer of /admin/v1/caller. */
export interface Caller {
  tenant: string;
  scopes: Scope[];
  keys: boolean;
  version: string;
}

class Session {
  /** Kept for this tab only, and gone with it. */
  key = $state(sessionStorage.getItem(KEY) ?? "");
  caller = $state<Caller | null>(null);
  /** Why a key is asked for; null: none is needed now. */
  problem = $state<string | null>(null);

  has(scope: Scope): boolean {
    return this.caller?.scopes.includes(scope) ?? false;
  }

  signedIn(key: string, caller: Caller): void {
    this.caller = caller;
    this.problem = null;
    this.key = key;
    if (key) sessionStorage.setItem(KEY, key);
  }

  refused(why: string): void {
    this.problem = this.key ? why : "";
    this.signOut();
  }

  signOut(): void {
    this.key = "";
    this.caller = null;
    this.problem ??= "";
    sessionStorage.removeItem(KEY);
  }
}

export const session = new Session();
