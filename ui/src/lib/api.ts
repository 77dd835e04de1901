/** Calls to the apiserver that serves this page. */

import { root } from "./root";
import { session } from "./session.svelte";
import { renewIfDue } from "./sign-in";

/** An answer that is an error. status 0: none came. */
export class ApiError extends Error {
  constructor(
    message: string,
    readonly status: number,
    readonly requestId = "",
  ) {
    super(message);
    this.name = "ApiError";
  }
}

/** Returns an answer that is no error. Errors: ApiError; AbortError when `init.signal` is aborted. */
export async function call(path: string, init: RequestInit = {}): Promise<Response> {
  const headers = new Headers(init.headers);
  await renewIfDue();
  if (session.key) headers.set("authorization", `Bearer ${session.key}`);
  if (init.body !== undefined) headers.set("content-type", "application/json");
  let answer: Response;
  try {
    answer = await fetch(root + path, { ...init, headers, credentials: "omit" });
  } catch (error) {
    if (error instanceof DOMException && error.name === "AbortError") throw error;
    throw new ApiError("The server does not answer.", 0);
  }
  if (answer.ok) return answer;
  const failure = await failureOf(answer);
  if (failure.status === 401) session.refused(failure.message);
  throw failure;
}

export async function getJson<T>(path: string, signal?: AbortSignal): Promise<T> {
  return (await (await call(path, signal ? { signal } : {})).json()) as T;
}

export async function sendJson<T>(method: string, path: string, body?: unknown): Promise<T> {
  const init = body === undefined ? { method } : { method, body: JSON.stringify(body) };
  return (await (await call(path, init)).json()) as T;
}

async function failureOf(answer: Response): Promise<ApiError> {
  const text = await answer.text();
  let message = text || answer.statusText;
  try {
    const body = JSON.parse(text) as { error?: { message?: string } | string; message?: string; failed?: string[] };
    message = (typeof body.error === "string" ? body.error : body.error?.message) ?? body.message ?? body.failed?.join("; ") ?? message;
  } catch {
    // Not JSON, as what a proxy answers.
  }
  return new ApiError(message, answer.status, answer.headers.get("x-request-id") ?? "");
}

/** Returns what to show of an error of any kind. */
export function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
