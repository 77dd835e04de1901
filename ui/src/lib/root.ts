/** The path under which a proxy serves the apiserver; empty without one. */
export const root = location.pathname.replace(/\/ui(\/.*)?$/, "");
