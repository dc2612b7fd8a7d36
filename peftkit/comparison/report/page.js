"use strict";

// Text and lines use the text colour of the page, for light mode, dark mode and print.
const ink = "currentColor";
const lines = { gridColor: ink, gridOpacity: 0.14, domainColor: ink, tickColor: ink, labelColor: ink, titleColor: ink };
const config = {
  background: null,
  view: { stroke: null },
  axis: lines,
  legend: { labelColor: ink, titleColor: ink },
  title: { color: ink, subtitleColor: ink },
};

function draw() {
  const specs = JSON.parse(document.getElementById("specs").textContent);
  for (const place of document.querySelectorAll("[data-picture]")) {
    const spec = { ...specs[place.dataset.picture], width: "container" };
    spec.autosize = { type: "fit-x", contains: "padding" };
    // The container has a label; hide the content from screen readers.
    const options = { renderer: "svg", actions: false, ast: true, config };
    window.vegaEmbed(place, spec, options).then(() => {
      const picture = place.querySelector("svg");
      if (picture) picture.setAttribute("aria-hidden", "true");
    });
  }
}

function sortBy(table, column, button) {
  const head = button.closest("th");
  const down = head.getAttribute("aria-sort") !== "descending";
  for (const other of table.querySelectorAll("th[aria-sort]")) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
  const body = table.tBodies[0];
  const value = (row) => row.cells[column].dataset.value;
  const rows = [...body.rows].sort((one, other) => {
    const [a, b] = [value(one), value(other)];
    // A row without a value stays at the end in both orders.
    if (a === "" || b === "") return (a === "") - (b === "");
    const order = isNaN(a) || isNaN(b) ? a.localeCompare(b) : a - b;
    return down ? -order : order;
  });
  body.append(...rows);
}

for (const table of document.querySelectorAll("table.sortable")) {
  [...table.tHead.rows[0].cells].forEach((cell, column) => {
    const button = cell.querySelector("button");
    button.addEventListener("click", () => sortBy(table, column, button));
  });
}
window.addEventListener("beforeprint", () => {
  for (const part of document.querySelectorAll("details")) part.open = true;
});
draw();
