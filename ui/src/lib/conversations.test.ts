import { beforeEach, expect, test } from "vitest";
import { Conversations, titleOf } from "./conversations.svelte";

beforeEach(() => localStorage.clear());

function written(text: string): Conversations {
  const store = new Conversations(localStorage);
  store.current.turns.push({ id: "1", role: "user", content: text });
  store.keep(store.current);
  return store;
}

test("what was written is there again", () => {
  written("hello");
  const again = new Conversations(localStorage);
  expect(again.all.map(titleOf)).toEqual(["hello"]);
  expect(again.current.turns[0]?.content).toBe("hello");
});

test("a new one has the settings of the one before, and an empty one is not left behind", () => {
  const store = written("hello");
  store.current.settings.model = "m";
  const made = store.add();
  expect(made.settings.model).toBe("m");
  expect(store.add().id).toBe(made.id);
  expect(store.all).toHaveLength(2);
});

test("what is deleted is gone, and there is always one", () => {
  const store = written("hello");
  store.remove(store.currentId);
  expect(store.all.map(titleOf)).toEqual(["New conversation"]);
  expect(localStorage.length).toBe(0);
});

test("another tab's conversations appear, change and go", () => {
  const store = written("here");
  const key = "llmserve.chat.other";
  const other = { id: "other", changedAt: Date.now() + 5, settings: {}, turns: [] };
  store.follow(new StorageEvent("storage", { key, newValue: JSON.stringify(other) }), false);
  expect(store.all.map((one) => one.id)).toEqual(["other", store.currentId]);
  expect(store.all[0]?.settings.maxTokens).toBe("512");
  store.follow(new StorageEvent("storage", { key, newValue: null }), false);
  expect(store.all).toHaveLength(1);
});

test("a conversation that two tabs show is the same in both, but not while an answer comes here", () => {
  const store = written("here");
  const key = `llmserve.chat.${store.currentId}`;
  const there = { ...store.current, turns: [{ id: "2", role: "user", content: "there" }] };
  const event = new StorageEvent("storage", { key, newValue: JSON.stringify(there) });
  store.follow(event, true);
  expect(titleOf(store.current)).toBe("here");
  store.follow(event, false);
  expect(titleOf(store.current)).toBe("there");
  store.follow(new StorageEvent("storage", { key, newValue: null }), false);
  expect(titleOf(store.current)).toBe("there");
});

test("a full storage is said", () => {
  const full = { length: 0, key: () => null, setItem: () => { throw new DOMException("full"); } };
  const store = new Conversations(full as unknown as Storage);
  store.keep(store.current);
  expect(store.problem).toContain("storage is full");
});
