import { createHash } from "node:crypto";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { svelte } from "@sveltejs/vite-plugin-svelte";
import type { Plugin } from "vite";
import { defineConfig } from "vitest/config";

const BUILT = "../src/llmserve/apiserver/ui";
const INPUTS = ["index.html", "package-lock.json", "package.json", "public/icon.svg", "tsconfig.json", "vite.config.ts"];
// What is bundled; the rest of package.json only builds or tests.
const SHIPPED = ["dompurify", "marked", "svelte", "uplot"];

/** Returns the paths of all that the build is made of. The unit test of the shipped build lists the same. */
function sources(): string[] {
  const below = readdirSync("src", { recursive: true, encoding: "utf8" });
  const files = below.filter((name) => /\.(css|svelte|ts)$/.test(name) && !name.endsWith(".test.ts"));
  return [...INPUTS, ...files.map((name) => `src/${name}`)].sort();
}

function digest(): string {
  const hash = createHash("sha256");
  for (const path of sources()) hash.update(`${path}\0`).update(readFileSync(path)).update("\0");
  return hash.digest("hex");
}

function licence(name: string): string {
  const folder = join("node_modules", name);
  const file = readdirSync(folder).find((entry) => /^licen[cs]e(\.|$)/i.test(entry));
  const { version } = JSON.parse(readFileSync(join(folder, "package.json"), "utf8")) as { version: string };
  return `${name} ${version}\n\n${file ? readFileSync(join(folder, file), "utf8") : ""}`;
}

/** Adds what the build is of, and the licences of what it contains. */
function labels(): Plugin {
  return {
    name: "labels",
    generateBundle() {
      this.emitFile({ type: "asset", fileName: "sources.sha256", source: `${digest()}\n` });
      this.emitFile({
        type: "asset",
        fileName: "licences.txt",
        source: SHIPPED.map(licence).join(`\n${"-".repeat(80)}\n\n`),
      });
    },
  };
}

export default defineConfig({
  base: "/ui/",
  plugins: [svelte(), labels()],
  build: {
    outDir: BUILT,
    emptyOutDir: true,
    target: "es2022",
    modulePreload: false,
    assetsInlineLimit: 0,
    rollupOptions: {
      output: { entryFileNames: "console.js", assetFileNames: "console[extname]", codeSplitting: false },
    },
  },
  server: { proxy: { "^/(v1|admin)/": "http://127.0.0.1:8000" } },
  test: { environment: "jsdom", include: ["src/**/*.test.ts"] },
});
