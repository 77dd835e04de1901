/** Sign-in at an OpenID provider: authorization code with PKCE (RFC 7636), as a public client. It keeps nothing but the
 * sign-in that is under way, in this tab's session storage. */

import { root } from "./root";

/** An entry of GET /ui/sign-in.json. */
export interface Provider {
  issuer: string;
  client_id: string;
  scope: string;
  parameters: Record<string, string>;
}

/** access: what calls carry. refresh: gives new ones; empty: none. id: says who signed in. until: ms since 1970. */
export interface Tokens {
  issuer: string;
  access: string;
  refresh: string;
  id: string;
  until: number;
}

/** Why a sign-in failed, in words for who tried. */
export class SignInError extends Error {
  override readonly name = "SignInError";
}

interface Endpoints {
  issuer: string;
  authorization_endpoint: string;
  token_endpoint: string;
  end_session_endpoint?: string;
}

/** A sign-in that is under way. hash: the page to come back to. */
interface Pending {
  issuer: string;
  state: string;
  nonce: string;
  verifier: string;
  hash: string;
}

interface TokenAnswer {
  access_token?: string;
  refresh_token?: string;
  id_token?: string;
  expires_in?: number;
  error?: string;
  error_description?: string;
}

const PENDING = "llmserve.sign-in";
const DEFAULT_SECONDS = 300; // of a token whose answer does not say how long it is valid

export async function providers(): Promise<Provider[]> {
  const answer = await fetch(`${root}/ui/sign-in.json`, { credentials: "omit" });
  return answer.ok ? ((await answer.json()) as { providers: Provider[] }).providers : [];
}

/** Returns where to send the browser. another: as somebody else than before. Errors: SignInError. */
export async function signInUrl(provider: Provider, another: boolean): Promise<string> {
  if (!isSecureContext) throw new SignInError("To sign in, open this page over https.");
  const { authorization_endpoint } = await discover(provider.issuer);
  const [state, nonce, verifier] = [random(), random(), random()];
  const pending: Pending = { issuer: provider.issuer, state, nonce, verifier, hash: location.hash };
  sessionStorage.setItem(PENDING, JSON.stringify(pending));
  return withQuery(authorization_endpoint, {
    ...provider.parameters,
    response_type: "code",
    client_id: provider.client_id,
    redirect_uri: here(),
    scope: provider.scope,
    state,
    nonce,
    code_challenge: await challengeOf(verifier),
    code_challenge_method: "S256",
    ...(another ? { prompt: "login" } : {}),
  });
}

/** Returns the tokens of a sign-in from which the browser has just come back; null: it has not. The address loses what
 * the provider added to it. Errors: SignInError. */
export async function tokensFromReturn(): Promise<Tokens | null> {
  const query = new URLSearchParams(location.search);
  const text = sessionStorage.getItem(PENDING);
  sessionStorage.removeItem(PENDING);
  if (!query.has("code") && !query.has("error")) return null;
  const pending = text ? (JSON.parse(text) as Pending) : null;
  history.replaceState(null, "", location.pathname + (pending?.hash ?? ""));
  if (!pending || query.get("state") !== pending.state) throw new SignInError("This tab did not begin that sign-in. Try again.");
  if ((query.get("iss") ?? pending.issuer) !== pending.issuer) throw new SignInError("Another provider answered than the one that was asked.");
  if (query.has("error")) throw new SignInError(refusal(query.get("error"), query.get("error_description")));
  const fields = { grant_type: "authorization_code", code: query.get("code") ?? "", redirect_uri: here(), code_verifier: pending.verifier };
  return await tokensFor(await providerOf(pending.issuer), fields, pending.nonce);
}

/** Returns fresh tokens for those that soon expire. Errors: SignInError; another one when nobody answers. */
export async function refreshed(tokens: Tokens): Promise<Tokens> {
  if (!tokens.refresh) throw new SignInError("Your sign-in has expired.");
  const fresh = await tokensFor(await providerOf(tokens.issuer), { grant_type: "refresh_token", refresh_token: tokens.refresh }, null);
  return { ...fresh, refresh: fresh.refresh || tokens.refresh, id: fresh.id || tokens.id };
}

/** Returns where the browser signs out at the provider too; null: it has no such page, or does not answer. */
export async function signOutUrl(tokens: Tokens): Promise<string | null> {
  try {
    const { client_id } = await providerOf(tokens.issuer);
    const { end_session_endpoint } = await discover(tokens.issuer);
    return end_session_endpoint ? withQuery(end_session_endpoint, { id_token_hint: tokens.id, client_id, post_logout_redirect_uri: here() }) : null;
  } catch {
    return null;
  }
}

/** The address that is registered at the provider. */
function here(): string {
  return `${location.origin}${root}/ui`;
}

async function providerOf(issuer: string): Promise<Provider> {
  const found = (await providers()).find((one) => one.issuer === issuer);
  if (!found) throw new SignInError(`This cluster does not take tokens of ${issuer} any more.`);
  return found;
}

/** nonce: of a new sign-in; null: its tokens are renewed. */
async function tokensFor(provider: Provider, fields: Record<string, string>, nonce: string | null): Promise<Tokens> {
  const { token_endpoint } = await discover(provider.issuer);
  const body = new URLSearchParams({ ...provider.parameters, ...fields, client_id: provider.client_id });
  const answer = await fetch(token_endpoint, { method: "POST", body, credentials: "omit", redirect: "error" });
  const given = (await answer.json()) as TokenAnswer;
  if (!answer.ok || !given.access_token) throw new SignInError(refusal(given.error ?? null, given.error_description ?? null));
  if (nonce !== null) checkIdentity(given.id_token ?? "", provider, nonce);
  return {
    issuer: provider.issuer,
    access: given.access_token,
    refresh: given.refresh_token ?? "",
    id: given.id_token ?? "",
    until: Date.now() + 1000 * (given.expires_in ?? DEFAULT_SECONDS),
  };
}

/** Checks that a token of identity answers this very sign-in. It came from the provider itself, whose signature is
 * therefore not needed; the apiserver checks that of what calls carry. Errors: SignInError. */
export function checkIdentity(token: string, provider: Provider, nonce: string): void {
  const claims = claimsOf(token);
  const audience = [claims.aud].flat();
  if (claims.iss !== provider.issuer || claims.nonce !== nonce || !audience.includes(provider.client_id)) {
    throw new SignInError("The provider's answer is not that of this sign-in. Try again.");
  }
}

function claimsOf(token: string): { iss?: unknown; aud?: unknown; nonce?: unknown } {
  try {
    const bytes = Uint8Array.from(atob((token.split(".")[1] ?? "").replaceAll("-", "+").replaceAll("_", "/")), (one) => one.charCodeAt(0));
    return JSON.parse(new TextDecoder().decode(bytes)) as object;
  } catch {
    return {};
  }
}

async function discover(issuer: string): Promise<Endpoints> {
  let found: Endpoints;
  try {
    const answer = await fetch(`${issuer.replace(/\/$/, "")}/.well-known/openid-configuration`, { credentials: "omit", redirect: "error" });
    found = (await answer.json()) as Endpoints;
  } catch {
    throw new Error(`${issuer} does not answer.`);
  }
  if (found.issuer !== issuer) throw new SignInError(`${issuer} says that it is another issuer.`);
  return checkedEndpoints(found);
}

/** Returns endpoints that can be trusted. Errors: SignInError. */
export function checkedEndpoints(found: Endpoints): Endpoints {
  for (const url of [found.authorization_endpoint, found.token_endpoint, found.end_session_endpoint]) {
    if (url !== undefined && !isSafe(url)) throw new SignInError(`${found.issuer} names an address that cannot be used: ${url}`);
  }
  if (new URL(found.token_endpoint).origin !== new URL(found.issuer).origin) {
    throw new SignInError(`${found.issuer} gives tokens at another origin, which this page does not ask.`);
  }
  return found;
}

function isSafe(text: string): boolean {
  if (!URL.canParse(text)) return false;
  const { protocol, hostname } = new URL(text);
  return protocol === "https:" || (protocol === "http:" && ["localhost", "127.0.0.1", "[::1]"].includes(hostname));
}

function refusal(error: string | null, description: string | null): string {
  if (error === "access_denied") return "The sign-in was cancelled.";
  if (error === "invalid_grant") return "Your sign-in has expired.";
  return `The provider refused the sign-in: ${description || error || "it gave no token"}`;
}

function withQuery(url: string, fields: Record<string, string>): string {
  const whole = new URL(url);
  for (const [name, value] of Object.entries(fields)) whole.searchParams.set(name, value);
  return whole.href;
}

function random(): string {
  return base64Url(crypto.getRandomValues(new Uint8Array(32)));
}

/** Returns the code challenge of a verifier, by SHA-256. */
export async function challengeOf(verifier: string): Promise<string> {
  return base64Url(new Uint8Array(await crypto.subtle.digest("SHA-256", new TextEncoder().encode(verifier))));
}

function base64Url(bytes: Uint8Array): string {
  return btoa(String.fromCharCode(...bytes)).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}
