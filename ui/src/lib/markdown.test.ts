import { describe, expect, test } from "vitest";
import { render } from "./markdown";

function html(text: string): string {
  const host = document.createElement("div");
  host.append(render(text));
  return host.innerHTML;
}

describe("Markdown of a model", () => {
  test.each([
    "<script>window.hit = 1</script>",
    "<img src=x onerror=window.hit=1>",
    "![x](https://elsewhere.example/pixel.png)",
    "<iframe srcdoc='<script>1</script>'></iframe>",
    "[link](javascript:window.hit=1)",
    "<a href='JaVaScRiPt:1' onclick=1>go</a>",
    "<svg><animate onbegin=1></svg>",
    "<style>body { display: none }</style>",
    "<form action=https://elsewhere.example><input name=key></form>",
  ])("%s does nothing", (text) => {
    const host = document.createElement("div");
    host.append(render(text));
    expect(host.querySelector("script, img, iframe, svg, style, form, input")).toBeNull();
    for (const one of host.querySelectorAll("*")) {
      for (const { name, value } of one.attributes) {
        expect(name.startsWith("on")).toBe(false);
        expect(value.toLowerCase()).not.toContain("javascript:");
      }
    }
  });

  test("HTML is shown as text", () => {
    expect(html("a <b onclick=1>bold</b> word")).toContain("&lt;b onclick=1&gt;bold&lt;/b&gt;");
  });

  test("what is harmless is drawn", () => {
    expect(html("# Title\n\n- **one**\n\n```py\nx < 1\n```")).toBe(
      '<h3>Title</h3>\n<ul>\n<li><strong>one</strong></li>\n</ul>\n<pre tabindex="0"><code>x &lt; 1\n</code></pre>\n',
    );
  });

  test("links open elsewhere, and tell nothing", () => {
    expect(html("[docs](https://a.example/b)")).toContain('rel="noopener noreferrer nofollow"');
  });
});
