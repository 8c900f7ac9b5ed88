// Narrows the catalogue by facet, sorts it, and puts two plugins side by side. Without it the tables show everything.
"use strict";
(() => {
  const text = cell => cell.textContent.trim();

  function following(place) {
    let next = place;
    while ((next = next.nextElementSibling)) {
      const table = next.matches("table") ? next : next.querySelector("table");
      if (table) return table;
    }
    return null;
  }

  function control(place, name, choices) {
    const label = document.createElement("label");
    const select = document.createElement("select");
    label.append(name, select);
    for (const [value, words] of choices) select.add(new Option(words, value));
    place.append(label);
    return select;
  }

  function facets(place) {
    const table = following(place);
    const body = table.tBodies[0];
    const rows = [...body.rows];
    const columns = [...table.tHead.rows[0].cells].map(text);
    const values = (row, name) => text(row.cells[columns.indexOf(name)]).split(", ");
    const chosen = place.dataset.facets.split(",").map(name => {
      const all = [...new Set(rows.flatMap(row => values(row, name)))].filter(Boolean).sort();
      return [name, control(place, name, [["", "any"], ...all.map(value => [value, value])])];
    });
    const order = control(place, "sort", [["plugin", "by name"], ["measured on", "newest evidence first"]]);
    const count = document.createElement("output");
    place.append(count);
    const update = () => {
      const shown = rows.filter(row => chosen.every(([name, select]) => !select.value || values(row, name).includes(select.value)));
      const key = row => text(row.cells[columns.indexOf(order.value)]);
      shown.sort((a, b) => order.value === "plugin" ? key(a).localeCompare(key(b)) : key(b).replace("-", "").localeCompare(key(a).replace("-", "")) || text(a.cells[0]).localeCompare(text(b.cells[0])));
      body.replaceChildren(...shown);
      count.textContent = `${shown.length} of ${rows.length} rows`;
    };
    place.addEventListener("change", update);
    update();
  }

  function compare(place) {
    const table = following(place);
    const rows = [...table.tBodies[0].rows];
    const columns = [...table.tHead.rows[0].cells].map(text);
    const choices = rows.map((row, number) => [String(number), text(row.cells[0])]);
    const picks = ["first", "second"].map(name => control(place, name, choices));
    if (rows.length > 1) picks[1].value = "1";
    const update = () => {
      const pair = picks.map(pick => rows[Number(pick.value)]);
      table.tHead.replaceChildren();
      const head = table.tHead.insertRow();
      head.append(document.createElement("td"));
      for (const row of pair) {
        const cell = document.createElement("th");
        cell.scope = "col";
        cell.append(...[...row.cells[0].childNodes].map(node => node.cloneNode(true)));
        head.append(cell);
      }
      table.tBodies[0].replaceChildren(...columns.slice(1).map((name, index) => {
        const line = document.createElement("tr");
        const title = document.createElement("th");
        title.scope = "row";
        title.textContent = name;
        line.append(title, ...pair.map(row => row.cells[index + 1].cloneNode(true)));
        return line;
      }));
    };
    place.addEventListener("change", update);
    update();
  }

  document.addEventListener("DOMContentLoaded", () => {
    document.querySelectorAll(".facets").forEach(facets);
    document.querySelectorAll(".compare").forEach(compare);
    document.querySelector(".md-search")?.setAttribute("aria-label", "Search");
    for (const head of document.querySelectorAll("th:empty")) head.replaceWith(document.createElement("td"));
    for (const wide of document.querySelectorAll(".md-typeset__table, .md-typeset__scrollwrap, .md-typeset pre > code")) wide.tabIndex = 0;
  });
})();
