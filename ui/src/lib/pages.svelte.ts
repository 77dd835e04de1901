/** The pages, and which one is shown: the part of the address after `#/`. */

import type { Component } from "svelte";
import type { IconName } from "./icons";
import type { Scope } from "./session.svelte";

export interface Page {
  path: string;
  title: string;
  icon: IconName;
  scope: Scope;
  view: Component;
}

class Location {
  path = $state(here());

  constructor() {
    addEventListener("hashchange", () => {
      this.path = here();
    });
  }

  get page(): string {
    return this.path.split("/")[0] ?? "";
  }

  /** What follows the page's name, such as the id of a request. */
  get rest(): string {
    return this.path.split("/").slice(1).map(decodeURIComponent).join("/");
  }
}

function here(): string {
  return location.hash.replace(/^#\/?/, "");
}

export const place = new Location();
