/** A request as a program would send it. The key is named, never written out. */

type Body = Record<string, unknown>;

export function asCurl(url: string, body: Body, withKey: boolean): string {
  const key = withKey ? [`  -H "Authorization: Bearer $LLMSERVE_KEY" \\`] : [];
  return [
    `curl ${url}/v1/chat/completions \\`,
    ...key,
    `  -H 'Content-Type: application/json' \\`,
    `  -d '${JSON.stringify(body, null, 2).replaceAll("'", `'\\''`)}'`,
  ].join("\n");
}

export function asPython(url: string, body: Body, withKey: boolean): string {
  const key = withKey ? `os.environ["LLMSERVE_KEY"]` : `"none"`;
  const { stream: _, ...rest } = body;
  const fields = Object.entries(rest).map(([name, value]) => `    ${name}=${python(value, 4)},`);
  return [
    ...(withKey ? ["import os", ""] : []),
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url=${python(`${url}/v1`, 0)}, api_key=${key})`,
    "answer = client.chat.completions.create(",
    ...fields,
    ")",
    "print(answer.choices[0].message.content)",
  ].join("\n");
}

function python(value: unknown, indent: number): string {
  if (value === null || value === undefined) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (typeof value === "string") return JSON.stringify(value);
  if (typeof value !== "object") return String(value);
  const deeper = " ".repeat(indent + 4);
  const [open, close] = Array.isArray(value) ? ["[", "]"] : ["{", "}"];
  const parts = Array.isArray(value)
    ? value.map((one) => python(one, indent + 4))
    : Object.entries(value).map(([name, one]) => `${python(name, 0)}: ${python(one, indent + 4)}`);
  if (parts.length === 0) return open + close;
  return `${open}\n${parts.map((part) => `${deeper}${part},\n`).join("")}${" ".repeat(indent)}${close}`;
}
