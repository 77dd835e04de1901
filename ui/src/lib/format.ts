/** Figures as text for people. */

const BYTE_UNITS = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];

export function bytes(value: number): string {
  let unit = 0;
  while (value >= 1024 && unit < BYTE_UNITS.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${unit === 0 || value >= 100 ? Math.round(value) : value.toPrecision(3)} ${BYTE_UNITS[unit]}`;
}

/** value: bytes per second. */
export function rate(value: number): string {
  return `${bytes(value)}/s`;
}

export function seconds(value: number | null): string {
  if (value === null) return "–";
  if (value >= 120) return duration(value);
  if (value >= 10) return `${value.toFixed(1)} s`;
  if (value >= 1) return `${value.toFixed(2)} s`;
  if (value >= 0.1) return `${(1000 * value).toFixed(0)} ms`;
  return `${(1000 * value).toFixed(1)} ms`;
}

/** Returns a long time in its two largest units. */
export function duration(value: number): string {
  const whole = Math.floor(value);
  const parts: [number, string][] = [
    [Math.floor(whole / 86400), "d"],
    [Math.floor(whole / 3600) % 24, "h"],
    [Math.floor(whole / 60) % 60, "min"],
    [whole % 60, "s"],
  ];
  const first = parts.findIndex(([count]) => count > 0);
  if (first < 0) return "0 s";
  return parts
    .slice(first, first + 2)
    .map(([count, unit]) => `${count} ${unit}`)
    .join(" ");
}

const COUNT = new Intl.NumberFormat("en");

export function count(value: number): string {
  return COUNT.format(value);
}

/** ratio: 0 to 1. */
export function percent(ratio: number): string {
  return `${(100 * ratio).toFixed(ratio > 0 && ratio < 0.1 ? 1 : 0)}%`;
}

/** Returns the time of day of an ISO date, in this browser's zone. */
export function clock(iso: string): string {
  return new Date(iso).toLocaleTimeString("en-GB");
}
