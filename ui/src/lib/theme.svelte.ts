/** Light, dark, or as the system has it. Kept for this browser. */

const KEY = "llmserve.theme";
const ORDER = ["system", "light", "dark"] as const;
export type ThemeChoice = (typeof ORDER)[number];

class Theme {
  choice = $state<ThemeChoice>(stored());
  private systemIsDark = $state(false);

  constructor() {
    const system = matchMedia("(prefers-color-scheme: dark)");
    this.systemIsDark = system.matches;
    system.addEventListener("change", () => (this.systemIsDark = system.matches));
  }

  /** Whether the page is dark now. */
  get isDark(): boolean {
    return this.choice === "system" ? this.systemIsDark : this.choice === "dark";
  }

  apply(): void {
    document.documentElement.dataset.theme = this.choice;
  }

  next(): void {
    this.choice = ORDER[(ORDER.indexOf(this.choice) + 1) % ORDER.length] ?? "system";
    localStorage.setItem(KEY, this.choice);
    this.apply();
  }
}

function stored(): ThemeChoice {
  const found = localStorage.getItem(KEY);
  return ORDER.find((one) => one === found) ?? "system";
}

export const theme = new Theme();
