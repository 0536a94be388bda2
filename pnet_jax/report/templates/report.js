"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const all = (selector) => [...document.querySelectorAll(selector)];
  const bytes = (text) => Uint8Array.from(atob(text), (one) => one.charCodeAt(0)).buffer;
  const written = (value) => (Number.isFinite(value) ? String(Number(value.toPrecision(3))).replace("-", "−") : "n/a");
  const K = data.names.length;
  const place = new Int32Array(K);
  data.order.forEach((parcel, at) => (place[parcel] = at));
  const rows = all("#parcel-table tbody tr");
  const rowOf = rows.slice();
  let chosen = -1;

  // Maps: the parcel of each pixel.
  let pixels = null;
  if (data.plate) {
    pixels = new Int16Array(data.plate.width * data.plate.height);
    const runs = new Uint16Array(bytes(data.plate.runs));
    let at = 0;
    for (let k = 0; k < runs.length; k += 2) {
      pixels.fill(runs[k] - 1, at, at + runs[k + 1]);
      at += runs[k + 1];
    }
  }
  const plates = pixels ? all(".plate[data-linked]") : [];
  const tip = document.createElement("div");
  tip.className = "tip";
  tip.hidden = true;
  tip.setAttribute("aria-hidden", "true");
  document.body.append(tip);

  function pixelAt(plate, event) {
    const box = plate.getBoundingClientRect();
    const x = Math.floor(((event.clientX - box.left) / box.width) * data.plate.width);
    const y = Math.floor(((event.clientY - box.top) / box.height) * data.plate.height);
    const inside = x >= 0 && y >= 0 && x < data.plate.width && y < data.plate.height;
    return inside ? pixels[y * data.plate.width + x] : -1;
  }

  function say(event, text) {
    tip.hidden = !text;
    tip.textContent = text;
    tip.style.left = `${Math.min(event.clientX + 14, document.documentElement.clientWidth - tip.offsetWidth - 4)}px`;
    tip.style.top = `${event.clientY + 18}px`;
  }

  function mark(plate) {
    const canvas = plate.querySelector("canvas");
    const { width, height } = data.plate;
    canvas.width = width;
    canvas.height = height;
    if (chosen < 0) return;
    const context = canvas.getContext("2d");
    const image = context.createImageData(width, height);
    const dark = matchMedia("(prefers-color-scheme: dark)").matches;
    const dim = plate.dataset.linked === "dim";
    for (let at = 0; at < pixels.length; at++) {
      const own = pixels[at] === chosen;
      const beside = !own && (pixels[at - 1] === chosen || pixels[at + 1] === chosen || pixels[at - width] === chosen || pixels[at + width] === chosen);
      if (beside) image.data.set(dark ? [255, 255, 255, 255] : [0, 0, 0, 255], 4 * at);
      else if (dim && !own && pixels[at] >= 0) image.data.set(dark ? [22, 27, 34, 175] : [255, 255, 255, 175], 4 * at);
    }
    context.putImageData(image, 0, 0);
  }

  for (const plate of plates) {
    plate.append(document.createElement("canvas"));
    plate.addEventListener("mousemove", (event) => {
      const parcel = pixelAt(plate, event);
      say(event, parcel < 0 ? "" : `${data.names[parcel]} (${data.sides[parcel]})`);
    });
    plate.addEventListener("mouseleave", () => (tip.hidden = true));
    plate.addEventListener("click", (event) => choose(pixelAt(plate, event), "plate"));
  }

  // Matrices: the values, and the cell under the pointer or the keyboard.
  const grid = byId("matrix");
  let matrix = null;
  let cell = [0, 0];

  function value(row, column) {
    if (row === column) return NaN;
    const { codes, directed, largest } = matrix;
    const [low, high] = row < column ? [row, column] : [column, row];
    const code = directed ? codes[row * K + column] : codes[(high * (high - 1)) / 2 + low];
    return code === -32768 ? NaN : (code / 32767) * largest;
  }

  function drawMatrix() {
    matrix = data.matrices[Number(byId("measure").value)];
    matrix.codes = matrix.codes || new Int16Array(bytes(matrix.values));
    const canvas = grid.querySelector("canvas");
    canvas.width = canvas.height = K;
    const context = canvas.getContext("2d");
    const image = context.createImageData(K, K);
    const colours = data.ramp.map((one) => [1, 3, 5].map((at) => parseInt(one.slice(at, at + 2), 16)));
    const middle = (colours.length - 1) / 2;
    for (let i = 0; i < K; i++) {
      for (let j = 0; j < K; j++) {
        const found = value(data.order[i], data.order[j]);
        const level = Math.round(middle * (1 + Math.max(-1, Math.min(1, found / matrix.limit))));
        image.data.set([...(Number.isFinite(found) ? colours[level] : [156, 163, 175]), 255], 4 * (i * K + j));
      }
    }
    context.putImageData(image, 0, 0);
    byId("scale-low").textContent = written(-matrix.limit);
    byId("scale-high").textContent = written(matrix.limit);
    drawChosen();
  }

  function read([i, j]) {
    const [row, column] = [data.order[i], data.order[j]];
    const [one, other] = matrix.directed ? [data.names[column], data.names[row]] : [data.names[row], data.names[column]];
    if (row === column) return data.names[row];
    return `${one} ${matrix.directed ? "→" : "–"} ${other}: ${written(value(row, column))}`;
  }

  function point(where, focus) {
    cell = where;
    byId("value").textContent = read(cell);
    const cursor = grid.querySelector(".cursor");
    cursor.hidden = !focus;
    Object.assign(cursor.style, { top: `${(100 * cell[0]) / K}%`, left: `${(100 * cell[1]) / K}%`, width: `${100 / K}%`, height: `${100 / K}%` });
  }

  function cellAt(event) {
    const box = grid.querySelector("canvas").getBoundingClientRect();
    const at = (share) => Math.max(0, Math.min(K - 1, Math.floor(share * K)));
    return [at((event.clientY - box.top) / box.height), at((event.clientX - box.left) / box.width)];
  }

  function drawChosen() {
    for (const [name, side, length] of [[".row", "top", "height"], [".column", "left", "width"]]) {
      const line = grid.querySelector(name);
      line.hidden = chosen < 0;
      if (chosen >= 0) Object.assign(line.style, { [side]: `${(100 * place[chosen]) / K}%`, [length]: `${100 / K}%` });
    }
  }

  if (grid) {
    byId("measure").addEventListener("change", () => { drawMatrix(); if (chosen >= 0) describe(); });
    grid.addEventListener("mousemove", (event) => {
      point(cellAt(event), false);
      say(event, read(cell));
    });
    grid.addEventListener("mouseleave", () => (tip.hidden = true));
    grid.addEventListener("click", (event) => choose(data.order[cellAt(event)[0]], "matrix"));
    grid.addEventListener("keydown", (event) => {
      const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
      if (step) point(cell.map((at, k) => (at + step[k] + K) % K), true);
      else if (event.key === "Enter" || event.key === " ") choose(data.order[cell[0]], "matrix");
      else return;
      event.preventDefault();
    });
    grid.addEventListener("focus", () => point(cell, grid.matches(":focus-visible")));
    grid.addEventListener("blur", () => (grid.querySelector(".cursor").hidden = true));
    drawMatrix();
  }

  // The chosen parcel.
  function describe() {
    const said = byId("chosen");
    if (chosen < 0) {
      said.textContent = "No parcel is selected.";
      return;
    }
    const values = matrix ? data.names.map((_, other) => [other, value(chosen, other)]).filter(([, one]) => Number.isFinite(one)) : [];
    const largest = values.sort((a, b) => Math.abs(b[1]) - Math.abs(a[1])).slice(0, 3);
    const edges = largest.map(([other, one]) => `${data.names[other]} (${written(one)})`).join(", ");
    said.textContent = `Selected: ${data.names[chosen]}.${edges ? ` Strongest edges: ${edges}.` : ""}`;
  }

  function choose(parcel, from) {
    if (parcel < 0) return;
    chosen = parcel === chosen ? -1 : parcel;
    rowOf.forEach((row, k) => {
      row.classList.toggle("chosen", k === chosen);
      row.querySelector("button").setAttribute("aria-pressed", String(k === chosen));
    });
    plates.forEach(mark);
    if (grid) drawChosen();
    all(".glass circle").forEach((one) => one.classList.toggle("chosen", Number(one.dataset.parcel) === chosen));
    describe();
    byId("clear").hidden = chosen < 0;
    if (chosen >= 0 && from !== "table") {
      const row = rowOf[chosen];
      if (row.hidden) { byId("parcel-filters").reset(); filter(); }
      const box = row.closest(".scroll");
      box.scrollTop = row.offsetTop - box.clientHeight / 2;
    }
  }

  // The table: choose, sort and filter.
  const table = byId("parcel-table");
  table.querySelector("tbody").addEventListener("click", (event) => {
    const row = event.target.closest("tr");
    if (row) choose(Number(row.dataset.parcel), "table");
  });
  const collator = new Intl.Collator("en", { numeric: true });
  const heads = [...table.querySelectorAll("thead th")];
  heads.forEach((head, column) => {
    head.querySelector("button").addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.setAttribute("aria-sort", "none"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const key = new Map(rows.map((row) => [row, row.cells[column].dataset.value ?? row.cells[column].textContent.trim()]));
      rows.sort((a, b) => (down ? -1 : 1) * collator.compare(key.get(a), key.get(b)) || a.dataset.parcel - b.dataset.parcel);
      table.querySelector("tbody").append(...rows);
    });
  });

  function filter() {
    const words = byId("parcel-query").value.toLowerCase().split(/\s+/).filter(Boolean);
    const side = byId("parcel-side").value;
    const noted = byId("parcel-noted").checked;
    let shown = 0;
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word)) || (side && row.dataset.side !== side) || (noted && !row.dataset.noted);
      shown += !row.hidden;
    }
    byId("parcel-count").textContent = shown === K ? `${K} parcels` : `${shown} of ${K} parcels`;
  }

  const form = byId("parcel-filters");
  form.addEventListener("input", filter);
  form.addEventListener("reset", () => setTimeout(filter));
  form.addEventListener("submit", (event) => event.preventDefault());
  byId("clear").addEventListener("click", () => { choose(chosen); byId("parcel-query").focus(); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => plates.forEach(mark));
  all(".scripted").forEach((one) => (one.hidden = false));
  filter();
  describe();
})();
