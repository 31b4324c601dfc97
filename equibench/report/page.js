"use strict";
// Sorting, filtering, recipes in a dialog, and the CSV. Without this script the page reads the same.
const all = (selector, within = document) => [...within.querySelectorAll(selector)];
const byId = (id) => document.getElementById(id);
const payload = JSON.parse(byId("payload").textContent);

// Sorting: a button in each head of a single column; rows without a number stay below.

function columnOf(th) {
  // the last head of a column stands in the second row of the head where published numbers are beside ours
  const table = th.closest("table");
  const cells = [...table.tHead.rows].flatMap((row) => [...row.cells]);
  const leaves = [];
  const second = table.tHead.rows[1] ? [...table.tHead.rows[1].cells] : [];
  for (const cell of table.tHead.rows[0].cells) {
    if (cell.colSpan > 1) leaves.push(...second.splice(0, cell.colSpan));
    else leaves.push(cell);
  }
  return cells.includes(th) ? leaves.indexOf(th) : -1;
}

function keyOf(row, column) {
  const cell = row.cells[column];
  if (column === 0) return cell.textContent.trim().toLowerCase();
  return cell.dataset.v === undefined ? null : Number(cell.dataset.v);
}

function sort(th) {
  const body = th.closest("table").tBodies[0];
  const column = columnOf(th);
  const before = th.getAttribute("aria-sort");
  // numbers first fall, names first rise
  const rising = before ? before === "descending" : column === 0;
  const compare = (a, b) => {
    const [one, other] = [keyOf(a, column), keyOf(b, column)];
    if (one === null || other === null) return (one === null) - (other === null);
    const order = one < other ? -1 : one > other ? 1 : 0;
    return rising ? order : -order;
  };
  body.append(...[...body.rows].sort(compare));
  all("th[aria-sort]", th.closest("table")).forEach((other) => other.removeAttribute("aria-sort"));
  th.setAttribute("aria-sort", rising ? "ascending" : "descending");
}

for (const th of all("thead th")) {
  if (th.colSpan > 1) continue;
  const button = document.createElement("button");
  button.type = "button";
  button.append(...th.childNodes);
  if (th.title) button.title = th.title;
  button.addEventListener("click", () => sort(th));
  th.append(button);
}

// Filters: rows by name, columns by task and data, sections by profile and data.

const filters = byId("filters");
const has = (text, value) => !value || (text || "").split(" ").includes(value);

function filter() {
  const value = (key) => byId(`f-${key}`)?.value || "";
  const name = value("row").trim().toLowerCase();
  let shown = 0;
  for (const section of all("main > section[data-profile]")) {
    section.hidden = !has(section.dataset.profile, value("profile")) || !has(section.dataset.data, value("data"));
    for (const table of all("table", section)) {
      const byRow = table.querySelector("tr[data-t]") !== null;
      for (const cell of all("thead th[data-t], tbody td[data-t]", table)) {
        const task = cell.dataset.t === "" ? byRow || !value("task") : has(cell.dataset.t, value("task"));
        cell.hidden = !task || (cell.dataset.d !== "" && !has(cell.dataset.d, value("data")));
      }
      let rows = 0;
      for (const row of table.tBodies[0].rows) {
        const named = row.cells[0].textContent.toLowerCase().includes(name);
        row.hidden = !named || !has(row.dataset.t || value("task"), value("task"));
        rows += !row.hidden;
      }
      const columns = all("tbody tr:first-child td", table).filter((cell) => !cell.hidden).length;
      table.parentElement.hidden = !rows || !columns;
      shown += !table.parentElement.hidden && !section.hidden;
    }
  }
  byId("f-said").textContent = `${shown} table${shown === 1 ? "" : "s"} shown`;
}

filters.hidden = false;
byId("still").hidden = true;
filters.addEventListener("input", filter);
filters.addEventListener("submit", (event) => event.preventDefault());
filters.addEventListener("reset", () => setTimeout(filter));

// A number's recipe, in a dialog; its own close button, Escape and a click beside it close it.

const dialog = byId("recipe");
document.addEventListener("click", (event) => {
  const link = event.target.closest("td a[href^='#']");
  const recipe = link && byId(link.hash.slice(1))?.closest("details");
  if (recipe && !event.ctrlKey && !event.metaKey) {
    event.preventDefault();
    byId("recipe-title").textContent = recipe.querySelector("summary").textContent;
    const parts = [...recipe.children].slice(1).map((part) => part.cloneNode(true));
    parts[0].removeAttribute("id");
    byId("recipe-body").replaceChildren(...parts);
    dialog.showModal();
  } else if (event.target === dialog) {
    dialog.close();
  }
});

// The CSV of a section, made of the page's payload.

function csv(source) {
  const text = (value) => {
    const said = value === null || value === undefined ? "" : String(value);
    return /[",\n]/.test(said) ? `"${said.replaceAll('"', '""')}"` : said;
  };
  return [source.columns, ...source.rows].map((row) => row.map(text).join(",")).join("\n");
}

for (const button of all("button[data-csv]")) {
  button.parentElement.hidden = false;
  button.addEventListener("click", () => {
    const source = payload.sources[Number(button.dataset.csv)];
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([csv(source) + "\n"], { type: "text/csv" }));
    link.download = `${source.path.replaceAll(/[^\w.-]+/g, "-")}.csv`;
    link.click();
    URL.revokeObjectURL(link.href);
  });
}
