import { expect, test } from "vitest";
import { filtered, inSight, merged, Requests, type Filter, type RequestRow } from "./requests.svelte";

function row(number: number, more: Partial<RequestRow> = {}): RequestRow {
  return {
    number, request_id: `r${number}`, tenant: "red", model: "m", adapter: null, path: "/v1/completions", came_at: "",
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

test("another apiserver's rows do not mix with these, nor those of one that started again", () => {
  const requests = new Requests();
  requests.take({ apiserver: "a", requests: [row(7)], after: 7 });
  requests.take({ apiserver: "a", requests: [row(8)], after: 8 });
  expect(numbers(requests.rows)).toEqual([8, 7]);
  requests.take({ apiserver: "b", requests: [row(1)], after: 9 });
  expect(numbers(requests.rows)).toEqual([1]);
  requests.take({ apiserver: "b", requests: [row(2)], after: 2 });
  expect(numbers(requests.rows)).toEqual([2]);
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
