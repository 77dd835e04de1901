import { beforeEach, expect, test, vi } from "vitest";
import { challengeOf, checkedEndpoints, checkIdentity, signInUrl, tokensFromReturn, type Provider } from "./oidc";

const PROVIDER: Provider = { issuer: "https://login.test/realm", client_id: "console", scope: "openid x", parameters: { audience: "llm", state: "mine" } };
const ENDPOINTS = { issuer: PROVIDER.issuer, authorization_endpoint: "https://login.test/auth?a=1", token_endpoint: "https://login.test/token" };

function token(claims: object): string {
  return `e30.${btoa(JSON.stringify(claims)).replaceAll("=", "")}.`;
}

function returnWith(query: string): void {
  history.replaceState(null, "", `/ui?${query}`);
}

beforeEach(() => {
  sessionStorage.clear();
  history.replaceState(null, "", "/ui#/kv");
  vi.stubGlobal("isSecureContext", true);
  vi.stubGlobal("fetch", (url: string) => Promise.resolve(Response.json(url.endsWith("sign-in.json") ? { providers: [PROVIDER] } : ENDPOINTS)));
});

test("a challenge is that of RFC 7636, appendix B", async () => {
  expect(await challengeOf("dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk")).toBe("E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM");
});

test("the manifest's parameters replace none of those that protect a sign-in", async () => {
  const query = new URL(await signInUrl(PROVIDER, true)).searchParams;
  expect(Object.fromEntries(query)).toMatchObject({ a: "1", audience: "llm", client_id: "console", scope: "openid x", prompt: "login", code_challenge_method: "S256" });
  expect(query.get("state")).toHaveLength(43);
});

test.each([
  ["code=c&state=other", "did not begin"],
  ["code=c", "did not begin"],
  ["code=c&state=S&iss=https://evil.test", "Another provider"],
  ["error=access_denied&state=S", "was cancelled"],
  ["error=server_error&error_description=down&state=S", "refused the sign-in: down"],
])("a return with %s is refused, and leaves no trace", async (query, why) => {
  const wanted = new URL(await signInUrl(PROVIDER, false)).searchParams.get("state") ?? "";
  returnWith(query.replace("state=S", `state=${wanted}`));
  await expect(tokensFromReturn()).rejects.toThrow(why);
  expect([location.search, location.hash]).toEqual(["", "#/kv"]);
  expect(sessionStorage.length).toBe(0);
});

test("a return without a sign-in is refused, and a visit is none", async () => {
  returnWith("code=c&state=s");
  await expect(tokensFromReturn()).rejects.toThrow("did not begin");
  expect(await tokensFromReturn()).toBeNull();
});

test.each([{ nonce: "other" }, { iss: "https://evil.test" }, { aud: "else" }, { aud: [] }])("an identity with %o is refused", (wrong) => {
  const right = { iss: PROVIDER.issuer, aud: ["console"], nonce: "n" };
  expect(() => checkIdentity(token(right), PROVIDER, "n")).not.toThrow();
  expect(() => checkIdentity(token({ ...right, ...wrong }), PROVIDER, "n")).toThrow("not that of this sign-in");
  expect(() => checkIdentity("", PROVIDER, "n")).toThrow("not that of this sign-in");
});

test.each([
  { authorization_endpoint: "javascript:alert(1)" },
  { authorization_endpoint: "http://login.test/auth" },
  { end_session_endpoint: "data:text/html,x" },
  { token_endpoint: "https://elsewhere.test/token" },
])("%o is not used", (wrong) => {
  expect(checkedEndpoints({ ...ENDPOINTS })).toEqual(ENDPOINTS);
  expect(() => checkedEndpoints({ ...ENDPOINTS, ...wrong })).toThrow(PROVIDER.issuer);
});
