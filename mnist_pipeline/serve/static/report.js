// A page of the store: the card of a version, a comparison, a leaderboard.

import { page } from "./api.js";
import { sortable } from "./sort.js";

const [kind, name] = location.pathname.split("/").slice(-2);
const compared = new URLSearchParams(location.search).get("compared");
const said = document.getElementById("said");

function address() {
  if (kind === "leaderboards") return `../sweeps/${name}/leaderboard`;
  return compared ? `../versions/${name}/compared/${encodeURIComponent(compared)}` : `../versions/${name}/card`;
}

const STYLE = /<style>([^]*?)<\/style>/;

try {
  const text = await page(address());
  const style = new CSSStyleSheet(); // a <style> in the page is what the policy of this one forbids
  style.replaceSync(text.match(STYLE)?.[1] ?? "");
  document.adoptedStyleSheets = [style];
  const shown = new DOMParser().parseFromString(text.replace(STYLE, ""), "text/html"); // in which nothing runs
  document.title = shown.title;
  for (const link of shown.querySelectorAll("a[data-version]")) {
    link.href = `../models/${encodeURIComponent(link.dataset.version)}`;
  }
  const report = document.adoptNode(shown.querySelector("main"));
  sortable(report);
  said.replaceWith(report);
} catch (error) {
  said.textContent = error.message;
}
