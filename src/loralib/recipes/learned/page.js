"use strict";
const root = document.documentElement;
const button = document.getElementById("theme");
const themes = ["system", "light", "dark"];
const show = (theme) => {
  root.dataset.theme = theme;
  button.textContent = `Theme: ${theme}`;
};
let theme = "system";
try { theme = localStorage.getItem("loralib-theme") || theme; } catch { /* storage is switched off */ }
show(themes.includes(theme) ? theme : "system");
button.hidden = false;
button.addEventListener("click", () => {
  const next = themes[(themes.indexOf(root.dataset.theme) + 1) % themes.length];
  show(next);
  try { localStorage.setItem("loralib-theme", next); } catch { /* the same */ }
});

const compare = new Intl.Collator("en", { numeric: true }).compare;
const valueOf = (row, at) => {
  const cell = row.cells[at];
  return "value" in cell.dataset ? Number(cell.dataset.value) : cell.textContent;
};
const inOrder = (a, b) => {
  if (a === "" || b === "") return (a === "") - (b === "");
  return typeof a === "number" && typeof b === "number" ? a - b : compare(String(a), String(b));
};
for (const table of document.querySelectorAll("table")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, at) => {
    const sorter = document.createElement("button");
    sorter.type = "button";
    sorter.append(...head.childNodes);
    head.append(sorter);
    sorter.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = [...table.tBodies[0].rows].map((row) => [valueOf(row, at), row]);
      rows.sort(([a], [b]) => (a === "" || b === "" ? inOrder(a, b) : (down ? -1 : 1) * inOrder(a, b)));
      table.tBodies[0].append(...rows.map(([, row]) => row));
    });
  });
}
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((part) => { part.open = true; }));
