"use strict";
// Draws one document at a time from the JSON beside it. Every string becomes a text node or an attribute that holds
// text; nothing is parsed as markup.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const SELECTED = "selected";
  const SHOWN_ROWS = 100;
  const reader = document.querySelector(".reader");
  const list = document.querySelector(".list");
  const text = reader.querySelector(".text");
  const state = { by: data.quantities[0]?.key ?? SELECTED, document: 0, moment: 0, sort: null, down: true };

  const make = (tag, content = "", attributes = {}) => {
    const element = document.createElement(tag);
    element.textContent = content;
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    return element;
  };
  const number = (value) => {
    if (value === null || value === undefined) return "–";
    const size = Math.abs(value);
    const digits = size >= 0.1 || size === 0 ? value.toFixed(3) : value.toPrecision(3);
    return digits.replace("-", "−");
  };
  const percent = (share) => {
    if (share < 1e-4) return "<0.01%";
    if (share > 0.9999) return ">99.99%";
    return `${Number((100 * share).toPrecision(share > 0.99 ? 4 : 2))}%`;
  };
  const probability = (quantity, value) =>
    quantity.probability && value !== null && value !== undefined ? percent(Math.exp(-value)) : "";
  const spaced = (token) => token.replaceAll(" ", "␣\u200b"); // a line may still break there
  const current = () => data.documents[state.document];
  const momentOf = (one) => one.moments[Math.min(state.moment, one.moments.length - 1)];
  const quantityOf = (key) => data.quantities.find((quantity) => quantity.key === key);
  const setsOf = new Map();
  const places = (array) => {
    if (!setsOf.has(array)) setsOf.set(array, new Set(array));
    return setsOf.get(array);
  };
  const level = (quantity, value) =>
    value === null || value === undefined
      ? -1
      : Math.min(Math.max(Math.floor((value - quantity.low) / quantity.step), 0), data.levels - 1);

  // ---- the text

  function classes(one, moment, place) {
    const chosen = places(moment.selected).has(place);
    const names = [];
    if (places(one.prompt).has(place)) names.push("p");
    if (state.by === SELECTED) {
      if (chosen) names.push(`s${data.levels - 2}`);
    } else {
      const step = level(quantityOf(state.by), moment.values[state.by]?.[place]);
      if (step >= 0) names.push(`s${step}`);
    }
    if (chosen) names.push("on");
    return names.join(" ");
  }

  function note(one, moment, place) {
    const lines = data.quantities
      .filter((quantity) => moment.values[quantity.key])
      .map((quantity) => {
        const value = moment.values[quantity.key][place];
        const share = probability(quantity, value);
        return `${quantity.label} ${number(value)} ${quantity.unit}${share && `, p = ${share}`}`;
      });
    const marks = [`token ${place + 1}`];
    if (places(one.prompt).has(place)) marks.push("prompt");
    if (places(moment.selected).has(place)) marks.push("selected");
    return [marks.join(" · "), ...lines].join("\n");
  }

  const spaces = reader.querySelector("input[name=spaces]");
  spaces.addEventListener("change", () => drawText());

  function drawText() {
    hide();
    const one = current();
    const spans = one.text.map((token) => make("span", spaces.checked ? spaced(token) : token));
    text.replaceChildren(...spans);
    text.dir = one.dir;
    paint();
  }

  function paint() {
    const one = current();
    const moment = momentOf(one);
    [...text.children].forEach((span, place) => { span.className = classes(one, moment, place); });
    const answers = one.text.length - one.prompt.length;
    const share = answers ? ` (${Math.round((100 * moment.selected.length) / answers)}%)` : "";
    const parts = [`${answers} response tokens`];
    if (moment.selected.length) parts.push(`${moment.selected.length} selected${share}`);
    for (const quantity of data.quantities) {
      const known = (moment.values[quantity.key] ?? []).filter((v, i) => v !== null && !places(one.prompt).has(i));
      if (known.length) {
        const mean = known.reduce((sum, value) => sum + value, 0) / known.length;
        parts.push(`mean ${quantity.label} ${number(mean)}`);
      }
    }
    reader.querySelector(".summary").textContent = `${one.title} · ${moment.label ? `${moment.label} · ` : ""}${parts.join(", ")}`;
  }

  function drawScale() {
    const scale = reader.querySelector(".scale");
    const quantity = quantityOf(state.by);
    scale.querySelector("p").textContent = quantity ? `${quantity.label}${quantity.unit ? ` in ${quantity.unit}` : ""}` : "coloured: selected";
    const meaning = reader.querySelector(".meaning");
    meaning.textContent = quantity?.meaning ? `${quantity.label}: ${quantity.meaning}` : "";
    const items = (quantity?.ticks ?? []).map((tick, index) => {
      const item = make("li");
      item.append(make("i", "", { class: `s${index}` }), index === data.levels - 1 ? `≥ ${tick}` : tick);
      return item;
    });
    scale.querySelector("ol").replaceChildren(...items);
  }

  // ---- numbers on hover, tap and arrow keys

  const tip = make("div", "", { class: "tip", role: "status" });
  tip.hidden = true;
  document.body.append(tip);
  let at = null;

  function hide() {
    at?.classList.remove("at");
    at = null;
    tip.hidden = true;
  }

  function show(span) {
    if (span === at) return;
    hide();
    at = span;
    span.classList.add("at");
    const place = Array.prototype.indexOf.call(text.children, span);
    tip.textContent = note(current(), momentOf(current()), place);
    tip.hidden = false;
    const box = span.getClientRects()[0];
    const width = document.documentElement.clientWidth;
    const left = Math.min(Math.max(box.left + box.width / 2 - tip.offsetWidth / 2, 8), width - tip.offsetWidth - 8);
    const above = box.top - tip.offsetHeight - 6;
    tip.style.left = `${Math.max(left, 0) + window.scrollX}px`;
    tip.style.top = `${(above >= 0 ? above : box.bottom + 6) + window.scrollY}px`;
  }

  const tokenOf = (event) => event.target.closest?.(".text span") ?? null;
  const pointer = { x: NaN, y: NaN };
  document.addEventListener("pointerover", (event) => {
    // Scrolling moves the text under a pointer that rests: nobody pointed at anything.
    const rests = event.screenX === pointer.x && event.screenY === pointer.y;
    if (rests || event.pointerType === "touch") return;
    const span = tokenOf(event);
    if (span) show(span);
    else hide();
  });
  document.addEventListener("pointermove", (event) => {
    pointer.x = event.screenX;
    pointer.y = event.screenY;
  });
  document.addEventListener("click", (event) => {
    const span = tokenOf(event);
    if (span) show(span);
    else if (!event.target.closest?.(".list")) hide();
  });
  const keys = new Map([["ArrowRight", 1], ["ArrowLeft", -1], ["Home", -Infinity], ["End", Infinity]]);
  text.addEventListener("focusout", hide);
  text.addEventListener("keydown", (event) => {
    if (event.key === "Escape") return hide();
    const key = keys.get(event.key);
    if (key === undefined || event.ctrlKey || event.metaKey || event.altKey || !text.children.length) return;
    event.preventDefault();
    const last = text.children.length - 1;
    const step = text.dir === "rtl" && Number.isFinite(key) ? -key : key;
    const from = Array.prototype.indexOf.call(text.children, at);
    const next = from < 0 && Number.isFinite(step) ? 0 : Math.min(Math.max(from + step, 0), last);
    text.children[next].scrollIntoView({ block: "nearest" });
    show(text.children[next]);
  });

  // ---- the list

  const filter = list.querySelector("input[type=search]");
  const checks = Object.fromEntries([...list.querySelectorAll("input[type=checkbox]")].map((box) => [box.name, box]));

  function* rows() {
    const wanted = filter.value.toLowerCase();
    const numbers = checks.everywhere.checked ? data.documents.keys() : [state.document];
    for (const index of numbers) {
      const one = data.documents[index];
      const moment = momentOf(one);
      const prompt = places(one.prompt);
      const chosen = places(moment.selected);
      for (let place = 0; place < one.text.length; place += 1) {
        if (prompt.has(place) && !checks.prompt.checked) continue;
        if (!chosen.has(place) && checks.chosen.checked) continue;
        if (wanted && !one.text[place].toLowerCase().includes(wanted)) continue;
        yield { index, place, token: one.text[place], moment };
      }
    }
  }

  function drawList() {
    const key = state.sort ?? (state.by === SELECTED ? data.quantities[0]?.key : state.by);
    const found = [...rows()];
    const value = (row) => row.moment.values[key]?.[row.place] ?? null;
    if (key !== undefined) {
      const sign = state.down ? -1 : 1;
      found.sort((a, b) => {
        const [x, y] = [value(a), value(b)];
        if (x === null || y === null) return (x === null) - (y === null);
        return sign * (x - y);
      });
    }
    const head = [make("th", "token", { scope: "col" }), make("th", "document", { scope: "col" })];
    for (const quantity of data.quantities) {
      const cell = make("th", "", { scope: "col" });
      const sorted = quantity.key === key;
      if (sorted) cell.setAttribute("aria-sort", state.down ? "descending" : "ascending");
      const button = make("button", `${quantity.label}${sorted ? (state.down ? " ↓" : " ↑") : ""}`, { type: "button", title: quantity.meaning });
      button.dataset.key = quantity.key;
      cell.append(button);
      head.push(cell);
    }
    list.querySelector("thead tr").replaceChildren(...head);
    const body = found.slice(0, SHOWN_ROWS).map((row) => {
      const line = make("tr");
      const name = make("th", "", { scope: "row" });
      const button = make("button", spaced(row.token), { type: "button", title: "show it in the text" });
      button.dataset.document = row.index;
      button.dataset.place = row.place;
      name.append(button);
      line.append(name, make("td", `${row.index + 1} : ${row.place + 1}`));
      for (const quantity of data.quantities) {
        const value = row.moment.values[quantity.key]?.[row.place];
        const cell = make("td", number(value));
        const share = probability(quantity, value);
        if (share) cell.append(make("small", `p = ${share}`));
        line.append(cell);
      }
      return line;
    });
    list.querySelector("tbody").replaceChildren(...body);
    const more = found.length > SHOWN_ROWS ? `, the first ${SHOWN_ROWS} shown` : "";
    list.querySelector(".note").textContent = `${found.length} tokens${more}`;
  }

  list.querySelector("thead").addEventListener("click", (event) => {
    const key = event.target.closest("button")?.dataset.key;
    if (!key) return;
    const shown = state.sort ?? state.by;
    state.down = key === shown ? !state.down : true;
    state.sort = key;
    drawList();
  });
  list.querySelector("tbody").addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    turn(Number(button.dataset.document));
    const span = text.children[Number(button.dataset.place)];
    span.scrollIntoView({ block: "center" });
    text.focus({ preventScroll: true });
    show(span);
  });
  filter.addEventListener("input", drawList);
  for (const box of Object.values(checks)) box.addEventListener("change", drawList);

  // ---- switch, pager and slider

  const by = reader.querySelector(".by");
  for (const [index, quantity] of [...data.quantities, { key: SELECTED, label: "selected" }].entries()) {
    const radio = make("input", "", { type: "radio", name: "by", id: `by-${index}`, class: "unseen", autocomplete: "off" });
    radio.value = quantity.key;
    radio.checked = quantity.key === state.by;
    by.append(radio, make("label", quantity.label, { for: `by-${index}`, title: quantity.meaning ?? "" }));
  }
  by.addEventListener("change", (event) => {
    state.by = event.target.value;
    state.sort = null;
    state.down = true;
    hide();
    drawScale();
    paint();
    drawList();
  });

  const pager = reader.querySelector(".pager");
  const choice = pager.querySelector("select");
  const [previous, next] = pager.querySelectorAll("button");
  choice.append(...data.documents.map((one, index) => make("option", `${index + 1} of ${data.documents.length}: ${one.title}`, { value: index })));
  function turn(index) {
    const last = data.documents.length - 1;
    const changed = Math.min(Math.max(index, 0), last);
    previous.setAttribute("aria-disabled", String(changed === 0));
    next.setAttribute("aria-disabled", String(changed === last));
    if (changed === state.document && text.children.length) return;
    state.document = changed;
    choice.value = String(changed);
    drawMoment();
    drawText();
    if (!checks.everywhere.checked) drawList();
  }
  pager.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button) turn(state.document + Number(button.dataset.step));
  });
  choice.addEventListener("change", () => turn(Number(choice.value)));

  const slider = reader.querySelector(".moment input");
  function drawMoment() {
    const one = current();
    slider.max = String(one.moments.length - 1);
    slider.value = String(Math.min(state.moment, one.moments.length - 1));
    reader.querySelector(".moment").hidden = one.moments.length < 2;
    reader.querySelector(".moment output").textContent = momentOf(one).label;
    slider.setAttribute("aria-valuetext", momentOf(one).label);
  }
  slider.addEventListener("input", () => {
    state.moment = Number(slider.value);
    hide();
    drawMoment();
    paint();
    drawList();
  });

  reader.hidden = list.hidden = false;
  if (!data.documents.length) {
    reader.querySelector(".summary").textContent = "No documents.";
    return;
  }
  drawScale();
  turn(0);
  drawList();
})();
