/** How this tab signs in at a provider, stays signed in, and leaves. */

import { refreshed, SignInError, signOutUrl, tokensFromReturn } from "./oidc";
import { session } from "./session.svelte";

const EARLY_MS = 30_000; // before tokens expire, new ones are asked for
let renewing: Promise<void> | null = null;

/** Takes the tokens with which the browser comes back from a provider. */
export async function comeBack(): Promise<void> {
  try {
    const tokens = await tokensFromReturn();
    if (tokens) session.hold(tokens);
  } catch (error) {
    session.problem = error instanceof Error ? error.message : String(error);
  }
}

/** Renews tokens that soon expire, once for all who call. Whoever has none that are valid has to sign in again. */
export async function renewIfDue(): Promise<void> {
  const { tokens } = session;
  if (!tokens || Date.now() < tokens.until - (tokens.refresh ? EARLY_MS : 0)) return;
  renewing ??= renew(tokens).finally(() => (renewing = null));
  await renewing;
}

async function renew(tokens: NonNullable<typeof session.tokens>): Promise<void> {
  try {
    const fresh = await refreshed(tokens);
    if (session.tokens === tokens) session.hold(fresh);
  } catch (error) {
    const why = error instanceof SignInError ? error.message : "Your sign-in has expired.";
    if (error instanceof SignInError || Date.now() >= tokens.until) session.refused(why);
  }
}

/** Signs out here, and at the provider. */
export async function leave(): Promise<void> {
  const url = session.tokens ? await signOutUrl(session.tokens) : null;
  session.signOut();
  if (url) location.assign(url);
}
