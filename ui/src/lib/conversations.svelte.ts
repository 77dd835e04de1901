/** The conversations of this browser. They are kept nowhere else. Each has an entry of its own in local storage,
 * so that two tabs that write different ones lose nothing. */

import { DEFAULTS, type Settings, type Turn } from "./chat";

const PREFIX = "llmserve.chat.";

export interface Conversation {
  id: string;
  changedAt: number;
  settings: Settings;
  turns: Turn[];
}

export function newId(): string {
  return Array.from(crypto.getRandomValues(new Uint8Array(8)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

export function titleOf(conversation: Conversation): string {
  const first = conversation.turns.find((turn) => turn.role === "user")?.content.trim() ?? "";
  return first.slice(0, 60) || "New conversation";
}

export class Conversations {
  all = $state<Conversation[]>([]);
  currentId = $state("");
  /** Why the last change was not kept; empty: it was. */
  problem = $state("");

  constructor(private readonly storage: Storage) {
    this.all = stored(storage);
    this.currentId = (this.all[0] ?? this.add()).id;
  }

  get current(): Conversation {
    return this.all.find((one) => one.id === this.currentId) ?? this.add();
  }

  /** Starts one with the settings of the current one, or returns the current one if it is empty. */
  add(): Conversation {
    const before = this.all.find((one) => one.id === this.currentId);
    if (before?.turns.length === 0) return before;
    const settings = { ...DEFAULTS, ...before?.settings };
    this.all.unshift({ id: newId(), changedAt: Date.now(), settings, turns: [] });
    const made = this.all[0] as Conversation; // as the state holds it
    this.currentId = made.id;
    return made;
  }

  remove(id: string): void {
    this.storage.removeItem(PREFIX + id);
    this.forget(id);
  }

  keep(conversation: Conversation): void {
    conversation.changedAt = Date.now();
    try {
      this.storage.setItem(PREFIX + conversation.id, JSON.stringify($state.snapshot(conversation)));
      this.problem = "";
    } catch {
      this.problem = "This browser's storage is full: delete conversations to keep new ones.";
    }
  }

  /** Follows what another tab has written. writing: an answer is being written into the current one here. */
  follow(event: StorageEvent, writing: boolean): void {
    if (!event.key?.startsWith(PREFIX)) return;
    const id = event.key.slice(PREFIX.length);
    const read = parse(event.newValue);
    if (id === this.currentId && (writing || read === null)) return;
    const index = this.all.findIndex((one) => one.id === id);
    if (read === null) this.forget(id);
    else if (index >= 0) this.all[index] = read;
    else this.all.push(read);
    this.all.sort((one, other) => other.changedAt - one.changedAt);
  }

  private forget(id: string): void {
    this.all = this.all.filter((one) => one.id !== id);
    if (this.currentId === id) this.currentId = (this.all[0] ?? this.add()).id;
  }
}

function stored(storage: Storage): Conversation[] {
  const keys = Array.from({ length: storage.length }, (_, index) => storage.key(index) ?? "");
  return keys
    .filter((key) => key.startsWith(PREFIX))
    .map((key) => parse(storage.getItem(key)))
    .filter((one) => one !== null)
    .sort((one, other) => other.changedAt - one.changedAt);
}

function parse(text: string | null): Conversation | null {
  try {
    const read = JSON.parse(text ?? "null") as Conversation | null;
    return read && { ...read, settings: { ...DEFAULTS, ...read.settings } };
  } catch {
    return null;
  }
}
