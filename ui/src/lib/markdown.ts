/** Markdown of a model, as HTML that does nothing: no script, no style, no request. */

import DOMPurify from "dompurify";
import { Marked } from "marked";

const TAGS = [
  ..."a b blockquote br code del em h1 h2 h3 h4 h5 h6 hr i li ol p pre s strong".split(" "),
  ..."sub sup table tbody td th thead tr ul".split(" "),
];
const LINKS = /^(https?:|mailto:)/i;
const parser = new Marked({
  gfm: true,
  breaks: true,
  // HTML that a model writes is shown as the text that it is; so is the text of an image.
  renderer: {
    html: ({ text }) => escaped(text),
    image: ({ text, href }) => escaped(text ? `${text} (${href})` : href),
    // Headings of an answer stand below those of the page.
    heading({ tokens, depth }) {
      const level = Math.min(6, depth + 2);
      return `<h${level}>${this.parser.parseInline(tokens)}</h${level}>\n`;
    },
  },
});

export function render(text: string): DocumentFragment {
  const html = parser.parse(text, { async: false });
  const fragment = DOMPurify.sanitize(html, {
    ALLOWED_TAGS: TAGS,
    ALLOWED_ATTR: ["href", "align", "start"],
    ALLOWED_URI_REGEXP: LINKS,
    RETURN_DOM_FRAGMENT: true,
  });
  for (const link of fragment.querySelectorAll("a")) {
    link.target = "_blank";
    link.rel = "noopener noreferrer nofollow";
  }
  for (const wide of fragment.querySelectorAll<HTMLElement>("pre, table")) wide.tabIndex = 0;
  return fragment;
}

function escaped(text: string): string {
  return text.replace(/[&<>"']/g, (letter) => `&#${letter.charCodeAt(0)};`);
}
