// Tables of class "sortable": a click on a heading sorts by it, a second one the other way round.

export function sortable(root) {
  for (const table of root.querySelectorAll("table.sortable")) {
    for (const [column, heading] of [...table.tHead.rows[0].cells].entries()) {
      if (!heading.textContent) continue;
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = heading.textContent;
      button.addEventListener("click", () => sort(table, column, heading));
      heading.replaceChildren(button);
    }
  }
}

function sort(table, column, heading) {
  const down = heading.getAttribute("aria-sort") === "ascending";
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", down ? "descending" : "ascending");
  const rows = [...table.tBodies[0].rows].map((row) => [value(row.cells[column]), row]);
  rows.sort(([a], [b]) => order(a, b, down));
  table.tBodies[0].append(...rows.map(([, row]) => row));
}

// What is not known comes last, either way.
function order(a, b, down) {
  if (a === "" || b === "") return (a === "") - (b === "");
  const before = typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
  return down ? -before : before;
}

function value(cell) {
  const whole = cell.querySelector("data")?.value;
  const text = (whole ?? cell.textContent).trim();
  if (text === "" || text === "–") return "";
  return Number.isNaN(Number(text)) ? text : Number(text);
}
