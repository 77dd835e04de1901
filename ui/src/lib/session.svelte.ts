/** Who uses this page: the key or the tokens of this tab, and what they allow. */

import type { Tokens } from "./oidc";

const KEY = "llmserve.key";
const TOKENS = "llmserve.tokens";

export type Scope = "inference" | "read" | "admin";

/** The answer of /admin/v1/caller. */
export interface Caller {
  tenant: string;
  scopes: Scope[];
  keys: boolean;
  version: string;
}

class Session {
  /** Of a sign-in at a provider. Like a key, they are kept for this tab only, and gone with it. */
  tokens = $state.raw<Tokens | null>(JSON.parse(sessionStorage.getItem(TOKENS) ?? "null"));
  caller = $state<Caller | null>(null);
  /** Why somebody has to sign in; null: nobody has to now. */
  problem = $state<string | null>(null);
  /** Whoever signed in may not come in, so that the provider has to ask who it is. */
  another = $state(false);
  private apiKey = $state(sessionStorage.getItem(KEY) ?? "");

  /** What calls carry; empty: nothing. */
  get key(): string {
    return this.tokens?.access ?? this.apiKey;
  }

  has(scope: Scope): boolean {
    return this.caller?.scopes.includes(scope) ?? false;
  }

  /** Carries these from now on. */
  hold(credential: string | Tokens): void {
    const isKey = typeof credential === "string";
    [this.apiKey, this.tokens] = isKey ? [credential, null] : ["", credential];
    keep(KEY, this.apiKey);
    keep(TOKENS, this.tokens ? JSON.stringify(this.tokens) : "");
  }

  signedIn(caller: Caller): void {
    this.caller = caller;
    this.problem = null;
    this.another = false;
  }

  /** another: it is known who asks, and that is not enough. */
  refused(why: string, another = false): void {
    this.problem = this.key ? why : (this.problem ?? "");
    this.another = another;
    this.signOut();
  }

  signOut(): void {
    this.hold("");
    this.caller = null;
    this.problem ??= "";
  }
}

function keep(name: string, text: string): void {
  if (text) sessionStorage.setItem(name, text);
  else sessionStorage.removeItem(name);
}

export const session = new Session();
