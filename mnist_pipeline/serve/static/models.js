// All versions in the store, and the sweeps.

import { call } from "./api.js";
import { sortable } from "./sort.js";

const COLUMNS = {
  version: "version",
  created_at: "trained (UTC)",
  state: "state",
  test_accuracy: "test accuracy",
  validation_accuracy: "validation accuracy",
  decision: "last decision",
  data: "data",
};

const said = document.getElementById("said");

try {
  const { versions, total, sweeps } = await call("versions");
  said.textContent = total ? `${versions.length} of ${total} versions, the newest first` : "There is no version yet.";
  if (total) show(versions);
  if (sweeps.length) listSweeps(sweeps);
} catch (error) {
  said.textContent = error.message;
}

function show(versions) {
  const section = document.getElementById("versions");
  const table = section.querySelector("table");
  table.tHead.rows[0].append(...["", ...Object.values(COLUMNS)].map((name) => filled("th", name)));
  for (const version of versions) {
    const row = table.tBodies[0].insertRow();
    row.append(filled("td", chooser(version.version)));
    for (const name of Object.keys(COLUMNS)) row.append(filled("td", content(version, name)));
  }
  sortable(section);
  section.hidden = false;
  section.addEventListener("change", offerComparison);
  document.getElementById("compare").addEventListener("click", compareChosen);
}

function content(version, name) {
  const value = version[name];
  if (name === "version") return link(`models/${encodeURIComponent(value)}`, value);
  return typeof value === "number" ? value.toFixed(4) : value ?? "–";
}

function chooser(version) {
  const box = document.createElement("input");
  box.type = "checkbox";
  box.value = version;
  box.setAttribute("aria-label", `compare ${version}`);
  return box;
}

const chosen = () => [...document.querySelectorAll("#versions input:checked")].map((box) => box.value);

const tell = (text) => { document.getElementById("how").textContent = text; };

function offerComparison() {
  document.getElementById("compare").disabled = chosen().length !== 2;
  tell("");
}

// Comparing takes what the service does not have; it shows the pages that the command made.
async function compareChosen() {
  const [first, second] = chosen();
  for (const [one, other] of [[first, second], [second, first]]) {
    let made;
    try {
      made = await call(`versions/${encodeURIComponent(one)}/compared`);
    } catch (error) {
      return tell(error.message);
    }
    if (made.includes(other)) {
      return location.assign(`models/${encodeURIComponent(one)}?compared=${encodeURIComponent(other)}`);
    }
  }
  tell(`The page is made by: python -m mnist_pipeline compare ${first} ${second}`);
}

function listSweeps(sweeps) {
  const section = document.getElementById("sweeps");
  section.querySelector("ul").append(
    ...sweeps.map((name) => filled("li", link(`leaderboards/${encodeURIComponent(name)}`, name))),
  );
  section.hidden = false;
}

function link(href, text) {
  const anchor = filled("a", text);
  anchor.href = href;
  return anchor;
}

function filled(tag, content) {
  const element = document.createElement(tag);
  element.append(content);
  return element;
}
