import { expect, test } from "vitest";
import { filtered, inSight, merged, Requests, type Filter, type RequestRow } from "./requests.svelte";

function row(number: number, more: Partial<RequestRow> = {}): RequestRow {
  return {
    instance: "a@1", number, request_id: `r${number}`, tenant: "red", model: "m", adapter: null, path: "/v1/completions", came_at: "",
    running: false, status: 200, outcome: "completed", error: null, seconds: 1, queue_seconds: 0, first_token_seconds: 0.1,
    prompt_tokens: 1, cached_tokens: 0, output_tokens: 1, prefill: "prefill-0", decode: "decode-0", transport: "shm",
    fell_back: false, attempts: 1, ...more,
  };
}

const ALL: Filter = { text: "", tenant: "", model: "", kind: "all", slowSeconds: 5 };
const numbers = (rows: readonly RequestRow[]) => rows.map((one) => one.number);

test("new rows come first, and what ran is replaced by what became of it", () => {
  const known = [row(3, { running: true }), row(2, { running: true }), row(1)];
  const all = merged(known, [row(4), row(3)]);
  expect(numbers(all)).toEqual([4, 3, 1]);
  expect(all[1]?.running).toBe(false);
});

test("rows of several apiservers are together, and those of one that started again are forgotten", () => {
  const requests = new Requests();
  const take = (after: string, ...rows: RequestRow[]) => requests.take({ apiserver: "a", requests: rows, after, problem: null });
  const of = (instance: string, number: number, second: number) => row(number, { instance, came_at: `2026-01-01T00:00:0${second}` });
  take("a@1:7,b@1:7", of("a@1", 7, 1), of("b@1", 7, 3));
  take("a@1:8,b@1:7", of("a@1", 8, 4));
  expect(requests.rows.map((one) => `${one.instance}:${one.number}`)).toEqual(["a@1:8", "b@1:7", "a@1:7"]);
  expect(requests.apiservers).toEqual(["a", "b"]);
  take("a@1:8,b@2:1", of("b@2", 1, 5));
  expect(requests.rows.map((one) => `${one.instance}:${one.number}`)).toEqual(["b@2:1", "a@1:8", "a@1:7"]);
});

test.each([
  [{ kind: "running" }, [5]],
  [{ kind: "slow" }, [4]],
  [{ kind: "failed" }, [3, 2]],
  [{ kind: "fell back" }, [4, 1]],
  [{ tenant: "blue" }, [5]],
  [{ model: "sql" }, [1]],
  [{ text: "  R4 " }, [4]],
  [{ text: "decode-9" }, [2]],
] as [Partial<Filter>, number[]][])("%o", (filter, expected) => {
  const rows = [
    row(5, { running: true, status: null, outcome: null, tenant: "blue" }),
    row(4, { seconds: 5, fell_back: true }),
    row(3, { status: 429, outcome: null }),
    row(2, { outcome: "failed", decode: "decode-9" }),
    row(1, { adapter: "sql", attempts: 2 }),
  ];
  expect(numbers(filtered(rows, { ...ALL, ...filter }))).toEqual(expected);
});

test("of 5,000 rows only those in sight are drawn", () => {
  const rows = Array.from({ length: 5000 }, (_, index) => index);
  expect(inSight(rows, 0, 400, 40)).toEqual({ first: 0, rows: rows.slice(0, 18) });
  expect(inSight(rows, 40000, 400, 40)).toEqual({ first: 992, rows: rows.slice(992, 1018) });
});
