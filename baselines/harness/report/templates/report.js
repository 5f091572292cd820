"use strict";
const value = (row, i) => {
  const text = row.cells[i] ? row.cells[i].textContent.trim() : "";
  const found = text.replaceAll(",", "").match(/^[-+±]?\s*(\d[\d.]*(e[-+]?\d+)?)/i);
  return found ? [0, Number(found[0].replace(/[±\s]/g, "")), text] : [text ? 1 : 2, 0, text];
};
const sort = head => {
  const table = head.closest("table"), i = head.cellIndex;
  const up = head.getAttribute("aria-sort") !== "ascending";
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", up ? "ascending" : "descending");
  const order = (a, b) => a[0] - b[0] || (up ? 1 : -1) * (a[1] - b[1] || a[2].localeCompare(b[2]));
  const rows = [...table.tBodies[0].rows].map(row => [value(row, i), row]);
  rows.sort((a, b) => order(a[0], b[0])).forEach(([, row]) => {
    row.classList.remove("same");
    table.tBodies[0].append(row);
  });
};
for (const head of document.querySelectorAll("thead th")) {
  head.addEventListener("click", () => sort(head));
  head.addEventListener("keydown", event => { if (event.key === "Enter") sort(head); });
}
const dialog = document.querySelector("dialog");
dialog.addEventListener("click", () => dialog.close());
for (const button of document.querySelectorAll("button.card")) {
  button.addEventListener("click", () => {
    dialog.replaceChildren(button.querySelector("img").cloneNode());
    dialog.showModal();
  });
}
