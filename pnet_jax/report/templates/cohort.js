"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const make = (tag, text, className) => {
    const element = document.createElement(tag);
    if (text !== undefined) element.textContent = text;
    if (className) element.className = className;
    return element;
  };
  const columns = data.columns;
  const total = data.links.length;
  const filtered = ["status", "parcels", "site", "session", "atlas"];
  const column = Object.fromEntries(columns.map((one) => [one.key, one]));
  const text = (one, row) => (one.kind === "choice" ? one.levels[one.values[row]] : one.values[row]);
  const collator = new Intl.Collator("en", { numeric: true });
  const places = Object.fromEntries(filtered.map((key) => [key, order(column[key].levels)]));
  const searched = ["scan", "subject", "site", "notes"].map((key) => column[key]);
  let haystack = null; // made at the first search
  let sorted = { key: "scan", down: false };
  let found = [];
  let page = 0;

  function order(levels) {
    const place = new Array(levels.length);
    levels.map((level, at) => [level, at]).sort((a, b) => collator.compare(a[0], b[0])).forEach(([, at], rank) => (place[at] = rank));
    return place;
  }

  function comparison(one) {
    const values = one.values;
    if (one.kind === "choice") return (a, b) => places[one.key][values[a]] - places[one.key][values[b]];
    if (one.kind === "number") return (a, b) => values[a] - values[b];
    return (a, b) => collator.compare(values[a], values[b]);
  }

  function missing(one, row) {
    const value = text(one, row);
    return value === null || value === "";
  }

  function search() {
    const words = byId("query").value.toLowerCase().split(/\s+/).filter(Boolean);
    if (words.length && !haystack) haystack = data.links.map((_, row) => searched.map((one) => text(one, row)).join(" ").toLowerCase());
    const chosen = filtered.map((key) => [column[key], byId(`filter-${key}`).value]).filter(([, value]) => value !== "");
    const reason = byId("filter-reason").value;
    const outliers = byId("only-outliers").checked;
    found = [];
    for (let row = 0; row < total; row++) {
      if (chosen.some(([one, value]) => one.values[row] !== Number(value))) continue;
      if (reason !== "" && data.reason[row] !== Number(reason)) continue;
      if (outliers && !data.outliers[row]) continue;
      if (words.length && !words.every((word) => haystack[row].includes(word))) continue;
      found.push(row);
    }
    const one = column[sorted.key];
    const compare = comparison(one);
    const sign = sorted.down ? -1 : 1;
    const there = found.filter((row) => !missing(one, row));
    there.sort((a, b) => sign * compare(a, b) || a - b);
    found = there.concat(found.filter((row) => missing(one, row))); // what is not known comes last in either direction
    page = 0;
    draw();
  }

  function cell(one, row) {
    const value = text(one, row);
    const td = make("td");
    if (one.kind === "number") {
      td.className = "n";
      td.textContent = value === null ? "–" : value.toFixed(one.digits) + (one.unit ? ` ${one.unit}` : "");
      if (data.outliers[row] && data.outliers[row].includes(one.key)) {
        td.classList.add("outlier");
        td.title = "outlier";
      }
    } else if (one.kind === "scan" && data.links[row]) {
      const link = make("a", value);
      link.href = data.links[row];
      td.append(link);
      td.title = value;
    } else if (one.kind === "notes") {
      td.className = "notes";
      td.title = value;
      if (value) {
        const button = make("button", value);
        button.type = "button";
        button.setAttribute("aria-expanded", "false");
        td.append(button);
      }
    } else if ((one.key === "status" || one.key === "parcels") && value) {
      const tone = { ok: "good", personalised: "good", atlas: "plain", fixed: "plain", "no record": "plain" }[value] || "bad";
      td.append(make("span", value, `badge ${tone}`));
    } else td.textContent = value || "–";
    return td;
  }

  function line(shown, row) {
    const tr = make("tr");
    const first = shown.findIndex((one) => one.kind === "number");
    // A scan that failed has no figures: why it failed takes their place.
    if (first > 0 && text(column.status, row) !== "ok" && column.notes.values[row]) {
      const why = cell(column.notes, row);
      why.classList.add("wide");
      why.colSpan = shown.length - first;
      tr.append(...shown.slice(0, first).map((one) => cell(one, row)), why);
    } else tr.append(...shown.map((one) => cell(one, row)));
    return tr;
  }

  function drawHead(shown) {
    const row = make("tr");
    for (const one of shown) {
      const th = make("th", undefined, one.kind === "number" ? "n" : "");
      const button = make("button", one.title);
      button.type = "button";
      button.title = one.hint;
      th.setAttribute("aria-sort", one.key !== sorted.key ? "none" : sorted.down ? "descending" : "ascending");
      button.addEventListener("click", () => {
        sorted = { key: one.key, down: one.key === sorted.key ? !sorted.down : false };
        search();
        document.querySelector(`#table th[aria-sort=${sorted.down ? "descending" : "ascending"}] button`).focus();
      });
      th.append(button);
      row.append(th);
    }
    document.querySelector("#table thead").replaceChildren(row);
  }

  function draw() {
    const size = Number(byId("size").value);
    const pages = Math.max(Math.ceil(found.length / size), 1);
    page = Math.min(Math.max(page, 0), pages - 1);
    const shown = columns.filter((one) => one.shown);
    drawHead(shown);
    const body = found.slice(page * size, (page + 1) * size).map((row) => line(shown, row));
    if (!body.length) {
      const td = make("td", "No scan matches these filters.");
      td.colSpan = shown.length;
      body.push(make("tr"));
      body[0].append(td);
    }
    document.querySelector("#table tbody").replaceChildren(...body);
    const number = (value) => value.toLocaleString("en");
    byId("count").textContent = found.length === total ? `${number(total)} rows` : `${number(found.length)} of ${number(total)} rows`;
    byId("page").textContent = `Page ${number(page + 1)} of ${number(pages)}`;
    byId("previous").disabled = page === 0;
    byId("next").disabled = page === pages - 1;
  }

  function offer(select, names) {
    select.append(new Option("all", ""));
    names.forEach(([name, value]) => select.append(new Option(name.length > 70 ? `${name.slice(0, 69)}…` : name || "none", value)));
    select.closest("label").hidden = names.length < 2;
  }

  function save() {
    const lines = [columns.map((one) => one.key), ...found.map((row) => columns.map((one) => text(one, row) ?? ""))];
    const plain = (value) => String(value).replace(/\s+/g, " ") || "n/a";
    const content = lines.map((line) => line.map(plain).join("\t")).join("\n") + "\n";
    const link = make("a");
    link.href = URL.createObjectURL(new Blob([content], { type: "text/tab-separated-values" }));
    link.download = "scans.tsv";
    link.click();
    URL.revokeObjectURL(link.href);
  }

  function show(what, value) {
    byId("filters").reset();
    if (what === "outliers") byId("only-outliers").checked = true;
    else if (what === "reason") byId("filter-reason").value = data.reasons.indexOf(value);
    else byId(`filter-${what}`).value = column[what].levels.indexOf(value);
    search();
    byId("scans").scrollIntoView();
  }

  for (const key of filtered) {
    const levels = column[key].levels.map((level, at) => [level, at]);
    offer(byId(`filter-${key}`), levels.sort((a, b) => collator.compare(a[0], b[0])));
  }
  offer(byId("filter-reason"), data.reasons.map((reason, at) => [reason, at]));
  byId("only-outliers").closest("label").hidden = !Object.keys(data.outliers).length;
  for (const one of columns.slice(1).filter((other) => !other.empty)) {
    const label = make("label");
    const box = make("input");
    box.type = "checkbox";
    box.checked = one.shown;
    box.addEventListener("change", () => {
      one.shown = box.checked;
      draw();
    });
    label.append(box, ` ${one.title}`);
    byId("columns").append(label);
  }
  let waiting = 0;
  byId("query").addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(search, 150);
  });
  byId("filters").addEventListener("change", search);
  byId("filters").addEventListener("submit", (event) => event.preventDefault());
  byId("filters").addEventListener("reset", () => setTimeout(search));
  byId("size").addEventListener("change", draw);
  byId("previous").addEventListener("click", () => { page--; draw(); });
  byId("next").addEventListener("click", () => { page++; draw(); });
  byId("save").addEventListener("click", save);
  byId("table").addEventListener("click", (event) => {
    const note = event.target.closest("td.notes");
    if (note && note.firstChild) note.firstChild.setAttribute("aria-expanded", String(note.classList.toggle("open")));
  });
  document.addEventListener("click", (event) => {
    const button = event.target.closest("button[data-show]");
    if (button) show(button.dataset.show, button.dataset.value);
  });
  search();
})();
