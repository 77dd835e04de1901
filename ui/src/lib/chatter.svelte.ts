/** The chat that is on the screen: its answers, one at a time, and what a user does to them. */

import { messageOf } from "./api";
import { answer, bodyOf, type Turn } from "./chat";
import { Conversations, newId, type Conversation } from "./conversations.svelte";

class Chatter {
  readonly conversations = new Conversations(localStorage);
  /** Id of the turn that is being written; empty: none. */
  writing = $state("");
  problem = $state("");
  private control: AbortController | null = null;

  get current(): Conversation {
    return this.conversations.current;
  }

  send(text: string): void {
    this.current.turns.push({ id: newId(), role: "user", content: text });
    void this.go();
  }

  /** Gives the result of a tool call, and lets the model go on once all have one. */
  giveResult(turn: Turn, toolCallId: string, result: string): void {
    const { turns } = this.current;
    turns.push({ id: newId(), role: "tool", content: result, toolCallId });
    const given = new Set(turns.map((one) => one.toolCallId));
    if (turn.tools?.every((tool) => given.has(tool.id))) void this.go();
    else this.conversations.keep(this.current);
  }

  /** Asks again for this answer; what came after it goes. */
  regenerate(turn: Turn): void {
    this.cutAt(turn);
    void this.go();
  }

  /** Asks with another text in place of this one; what came after it goes. */
  edit(turn: Turn, text: string): void {
    this.cutAt(turn);
    this.send(text);
  }

  stop(): void {
    this.control?.abort();
  }

  private cutAt(turn: Turn): void {
    this.stop();
    const { turns } = this.current;
    turns.splice(turns.findIndex((one) => one.id === turn.id));
  }

  /** Returns what is asked for an answer after these turns. Errors: Error that names a wrong setting. */
  body(before?: Turn): Record<string, unknown> {
    const { settings, turns } = this.current;
    const end = before ? turns.findIndex((one) => one.id === before.id) : turns.length;
    return bodyOf(settings, turns.slice(0, end));
  }

  private async go(): Promise<void> {
    const conversation = this.current;
    let body: Record<string, unknown>;
    try {
      body = this.body();
      this.problem = "";
    } catch (error) {
      this.problem = messageOf(error);
      return;
    }
    const control = (this.control = new AbortController());
    const turn: Turn = { id: newId(), role: "assistant", content: "", model: conversation.settings.model };
    conversation.turns.push(turn);
    const index = conversation.turns.length - 1;
    this.writing = turn.id;
    this.conversations.keep(conversation);
    let frame = 0;
    // The screen is drawn as often as it can show something, however fast tokens come.
    const draw = () => {
      frame ||= requestAnimationFrame(() => {
        frame = 0;
        show();
      });
    };
    const show = () => {
      if (conversation.turns[index]?.id === turn.id) conversation.turns[index] = structuredClone(turn);
    };
    await answer(body, turn, control.signal, draw);
    cancelAnimationFrame(frame);
    show();
    if (this.writing === turn.id) this.writing = "";
    this.conversations.keep(conversation);
  }
}

export const chatter = new Chatter();
addEventListener("storage", (event) => chatter.conversations.follow(event, chatter.writing !== ""));
