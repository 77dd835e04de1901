/** Icons as paths in a square of 24. */

export const ICONS = {
  chat: "M4 5h16v11H9l-5 4z",
  cluster: "M9 4h6v5H9zM3 15h6v5H3zM15 15h6v5h-6zM12 9v3M6 15v-3h12v3",
  requests: "M4 6h9M8 12h10M13 18h7",
  tenants: "M9 11a3.5 3.5 0 1 0 0-7 3.5 3.5 0 0 0 0 7zM2.5 20c0-4 2.8-6 6.5-6s6.5 2 6.5 6M16 4.500a3.5 3.5 0 0 1 0 6.500M18 14.500c2.2.8 3.5 2.7 3.5 5.5",
  kv: "M4 6c0-1.7 3.6-3 8-3s8 1.3 8 3-3.6 3-8 3-8-1.3-8-3zM4 6v12c0 1.7 3.6 3 8 3s8-1.3 8-3V6M4 12c0 1.7 3.6 3 8 3s8-1.3 8-3",
  models: "M12 3l8 4.500v9L12 21l-8-4.500v-9zM4 7.500l8 4.5 8-4.500M12 12v9",
  manifest: "M6 3h8l5 5v13H6zM14 3v5h5M9 13h7M9 17h5",
  load: "M3 17a9 9 0 1 1 18 0M12 17l4.500-6M12 17h.01",
  sun: "M12 16a4 4 0 1 0 0-8 4 4 0 0 0 0 8zM12 2v2M12 20v2M2 12h2M20 12h2M5 5l1.4 1.400M17.6 17.600L19 19M5 19l1.4-1.400M17.6 6.400L19 5",
  moon: "M20 14.500A8.5 8.5 0 0 1 9.5 4 8.5 8.5 0 1 0 20 14.500z",
  system: "M3 5h18v12H3zM9 21h6M12 17v4",
  plus: "M12 5v14M5 12h14",
  stop: "M7 7h10v10H7z",
  send: "M5 12h13M12 5l7 7-7 7",
  trash: "M5 7h14M10 7V4h4v3M7 7l1 13h8l1-13",
  copy: "M9 9h11v11H9zM5 15H4V4h11v1",
  edit: "M4 20l1-4L16 5l3 3L8 19zM14 7l3 3",
  again: "M20 12a8 8 0 1 1-2.5-5.800M20 3v4.500h-4.5",
  sliders: "M4 7h10M18 7h2M4 17h4M12 17h8M16 5v4M10 15v4",
  leave: "M14 4h5v16h-5M10 12H3M6 8l-4 4 4 4",
} as const;

export type IconName = keyof typeof ICONS;
