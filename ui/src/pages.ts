import type { Page } from "./lib/pages.svelte";
import Chat from "./pages/Chat.svelte";
import Cluster from "./pages/Cluster.svelte";
import Kv from "./pages/Kv.svelte";
import Load from "./pages/Load.svelte";
import Manifest from "./pages/Manifest.svelte";
import Models from "./pages/Models.svelte";
import Requests from "./pages/Requests.svelte";
import Tenants from "./pages/Tenants.svelte";

/** All pages, in the order of the navigation. A page is shown to those who have its scope. */
export const PAGES: Page[] = [
  { path: "chat", title: "Chat", icon: "chat", scope: "inference", view: Chat },
  { path: "cluster", title: "Cluster", icon: "cluster", scope: "read", view: Cluster },
  { path: "requests", title: "Requests", icon: "requests", scope: "read", view: Requests },
  { path: "tenants", title: "Tenants", icon: "tenants", scope: "read", view: Tenants },
  { path: "kv", title: "KV", icon: "kv", scope: "read", view: Kv },
  { path: "models", title: "Models", icon: "models", scope: "admin", view: Models },
  { path: "load", title: "Load", icon: "load", scope: "admin", view: Load },
  { path: "manifest", title: "Manifest", icon: "manifest", scope: "admin", view: Manifest },
];
