// --- what the user does -------------------------------------------------------------------------------------

const $ = (id) => document.getElementById(id);
const viewBox = $("view");
const tooltip = $("tooltip");
const folded = new Set();
let dirty = { lanes: false, overlay: false, overview: false };
let scheduled = false;
let hits = null; // the numbers of the spans that are found, by time
let hitAt = -1;

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

// --- frames ---

function redraw(lanes = true) {
  dirty.lanes ||= lanes;
  dirty.overview ||= lanes;
  dirty.overlay = true;
  if (scheduled) return;
  scheduled = true;
  requestAnimationFrame(() => {
    scheduled = false;
    const { lanes, overview } = dirty;
    dirty = { lanes: false, overlay: false, overview: false };
    if (lanes) draw();
    if (overview) drawOverview();
    drawOverlay();
  });
}

function layOut() {
  const { lanes, height } = makeLanes(view.pack, folded);
  view.lanes = lanes;
  view.lanesHeight = height;
  view.laneOfSpan = null;
  scrollTo(view.scroll);
}

function resize() {
  view.width = viewBox.clientWidth;
  view.height = viewBox.clientHeight;
  overviewPicture = null;
  scrollTo(view.scroll);
}

function scrollTo(y) {
  view.scroll = Math.max(0, Math.min(y, view.lanesHeight - (view.height - AXIS) + 8));
  redraw();
}

// --- the range of time that is shown ---

const SHORTEST = 5; // microseconds

function show(from, to) {
  let length = Math.min(Math.max(to - from, SHORTEST), LENGTH * 1.1);
  const middle = (from + to) / 2;
  from = middle - length / 2;
  const slack = length * 0.5; // how far one may go beyond the ends
  from = Math.max(-slack, Math.min(from, LENGTH - length + slack));
  view.from = from;
  view.to = from + length;
  rememberSoon();
  redraw();
}

let animation = 0;
const still = matchMedia("(prefers-reduced-motion: reduce)").matches;

function glide(from, to) {
  cancelAnimationFrame(animation);
  if (still || document.hidden) return show(from, to);
  const a = view.from, b = view.to, began = performance.now();
  const step = (now) => {
    const t = Math.min(1, Math.max(0, (now - began) / 180));
    const ease = 1 - (1 - t) ** 3;
    show(a + (from - a) * ease, b + (to - b) * ease);
    if (t < 1) animation = requestAnimationFrame(step);
  };
  animation = requestAnimationFrame(step);
}

function zoom(factor, x = GUTTER + plotWidth() / 2, smooth = false) {
  const time = timeOf(Math.max(GUTTER, x));
  const length = Math.min(Math.max((view.to - view.from) * factor, SHORTEST), LENGTH * 1.1);
  const share = (time - view.from) / (view.to - view.from);
  (smooth ? glide : show)(time - share * length, time + (1 - share) * length);
}

const fit = () => glide(-LENGTH * 0.008, LENGTH * 1.02);

function move(share) {
  const by = (view.to - view.from) * share;
  glide(view.from + by, view.to + by);
}

function zoomTo(i) {
  const margin = Math.max(20, (over[i] - queued[i]) * 0.3);
  glide(queued[i] - margin, over[i] + margin);
  reveal(i);
}

function reveal(i) {
  let lane = laneOf(i);
  if (!lane && folded.size) {
    folded.clear();
    layOut();
    lane = laneOf(i);
  }
  if (!lane) return;
  const room = view.height - AXIS;
  if (lane.y < view.scroll || lane.y + lane.height > view.scroll + room) scrollTo(lane.y - room / 2);
}

/** Bring a span into view, without zooming if that can be avoided. */
function bring(i) {
  const length = view.to - view.from;
  if (end[i] < view.from + length * 0.02 || start[i] > view.to - length * 0.02) {
    const middle = (start[i] + Math.min(end[i], start[i] + length)) / 2;
    glide(middle - length / 2, middle + length / 2);
  }
  reveal(i);
}

// --- what is under the pointer ---

function laneAt(y) {
  if (y < AXIS) return null;
  const at = y - AXIS + view.scroll;
  return view.lanes.find((lane) => at >= lane.y && at < lane.y + lane.height) || null;
}

function spanAt(lane, x) {
  if (!lane || !lane.track || x < GUTTER) return -1;
  const near = 3 / scale();
  const time = timeOf(x);
  const pick = (track) => {
    let best = -1, distance = Infinity;
    const [first, last] = track.range(time - near, time + near);
    for (let k = last - 1; k >= first && k > last - 4000; k--) {
      const i = track.spans[k];
      const away = Math.max(0, start[i] - time, time - end[i]);
      if (away > near) continue;
      // Of those that are equally near, what is found, or went wrong, or is shorter.
      const rank = away * scale() - (view.found?.[i] ? 8 : 0) - (status[i] >= 2 && end[i] - start[i] < near ? 2 : 0);
      if (rank < distance) { best = i; distance = rank; }
    }
    return best;
  };
  const call = pick(lane.track);
  return call >= 0 || !lane.life ? call : pick(lane.life);
}

function hoverAt(x, y) {
  const lane = laneAt(y);
  view.hover = x >= GUTTER && y >= 0 ? { x, span: spanAt(lane, x), lane } : null;
  viewBox.classList.toggle("over", Boolean(view.hover?.span >= 0 || lane?.kind === "group"));
  redraw(false);
  showTooltip(x, y);
}

function pill(i) {
  const name = STATUSES[status[i]];
  const color = status[i] === 0 ? "ok" : name;
  return make("span", { class: `pill ${name}`, style: `background:var(--${color})` }, name);
}

function showTooltip(x, y) {
  const { hover } = view;
  tooltip.style.display = "none";
  if (!hover) return;
  const content = [];
  const line = (text) => content.push(make("div", { class: "line time" }, text));
  if (hover.span >= 0) {
    const i = hover.span;
    content.push(make("strong", {}, isCall(i) && items[i] > 1 ? `${nameOf(i)} ×${items[i]}` : nameOf(i)));
    const first = make("div", { class: "line time" }, pill(i), " ");
    first.append(isCall(i) ? timesOf(i) : `${duration(end[i] - start[i])}${status[i] === 1 ? " so far" : ""}`);
    content.push(first);
    if (isCall(i)) { if (worker[i] >= 0) line(`${processOf(i).name}, pid ${processOf(i).pid ?? "-"}`); }
    else line(`pid ${processOf(i).pid ?? "-"}${processOf(i).func ? `, ${strings[processOf(i).func]}` : ""}`);
    if (errors[i]) line(strings[errors[i]].slice(0, 160));
    line(`from ${moment(start[i])}`);
  } else if (hover.lane?.kind === "queue") {
    const n = hover.lane.queue.at(timeOf(x));
    content.push(make("strong", {}, `${n.toLocaleString("en")} call${n === 1 ? " waits" : "s wait"}`));
    line(`at ${moment(Math.max(0, timeOf(x)))}`);
  } else return;
  tooltip.replaceChildren(...content);
  tooltip.style.display = "block";
  const box = tooltip.parentElement.getBoundingClientRect();
  const top = viewBox.getBoundingClientRect().top - box.top + y;
  const { offsetWidth: w, offsetHeight: h } = tooltip;
  tooltip.style.left = `${Math.max(4, x + 16 + w > box.width ? x - w - 14 : x + 16)}px`;
  tooltip.style.top = `${Math.max(4, top + 18 + h > box.height ? top - h - 12 : top + 18)}px`;
}

function timesOf(i) {
  const waited = start[i] - queued[i];
  if (!ran[i]) return status[i] === 1 ? `has waited ${duration(waited)}` : `waited ${duration(waited)}, never ran`;
  return `waited ${duration(waited)}, ran ${duration(end[i] - start[i])}${status[i] === 1 ? " so far" : ""}`;
}

// --- one span in full ---

function select(i) {
  view.selected = i;
  const details = $("details");
  const was = details.hidden;
  details.hidden = i < 0;
  if (i >= 0) details.replaceChildren(...describe(i));
  rememberSoon();
  if (was !== details.hidden) resize();
  redraw();
}

function describe(i) {
  const parts = [
    make("button", { class: "close", "aria-label": "Close", onclick: () => select(-1) }, "×"),
    make("h2", {}, nameOf(i)),
    make("div", {}, pill(i), ` ${isCall(i) ? (items[i] > 1 ? "chunk of a map" : "call") : pool[i] >= 0 ? "worker" : "process"}`),
  ];
  const list = make("dl");
  const fact = (name, value) => {
    if (value !== null && value !== "") list.append(make("dt", {}, name), make("dd", {}, value));
  };
  const process = processOf(i);
  const at = (time) => (time < 0 ? null : `${moment(time)} (${clockTime(time)})`);
  if (isCall(i)) {
    const waited = start[i] - queued[i], running = ran[i] ? end[i] - start[i] : 0;
    const share = 100 * waited / Math.max(1, waited + running);
    parts.push(
      make("div", { class: "share" },
        make("i", { style: `width:${share}%;background:var(--waiting)` }),
        make("i", { style: `width:${100 - share}%;background:var(--${STATUSES[status[i]]})` })),
      make("div", { class: "shares" },
        make("span", {}, `waited ${duration(waited)}`),
        make("span", {}, ran[i] ? `ran ${duration(running)}` : "never ran")));
    fact("pool", strings[pool[i]]);
    fact("worker", process && process.name);
    fact("pid", process && `${process.pid ?? "-"}`);
    if (items[i] > 1) fact("items", `${items[i]}, ${duration((end[i] - start[i]) / items[i])} each`);
    fact("made at", at(queued[i]));
    fact("started at", ran[i] ? at(start[i]) : null);
    fact("over at", status[i] === 1 ? null : at(over[i]));
    if (seconds[i] >= 0) fact("worker's own time", duration(seconds[i]));
    if (ran[i] && over[i] - end[i] > 50) fact("result under way", duration(over[i] - end[i]));
  } else {
    fact("function", strings[process.func]);
    fact("pool", process.pool >= 0 ? strings[process.pool] : null);
    fact("pid", `${process.pid ?? "-"}`);
    fact("start method", process.startMethod);
    fact("created at", at(process.created));
    fact("started after", process.started < 0 ? null : duration(process.started - process.created));
    fact("ready after", process.ready < 0 ? null : duration(process.ready - process.created));
    fact("asked to stop at", at(process.stop));
    fact("exited at", at(process.exited));
    fact("lived for", duration(end[i] - start[i]));
    fact("exit code", process.exitcode === null ? null : `${process.exitcode}`);
    fact("calls", process.pool >= 0 ? process.calls.toLocaleString("en") : null);
  }
  parts.push(list);
  if (errors[i]) parts.push(make("pre", {}, strings[errors[i]]));
  const button = (text, action, title) => make("button", { onclick: action, title }, text);
  const what = isCall(i) ? strings[func[i]] : process.name;
  const actions = make("div", { class: "actions" },
    button("Zoom to", () => zoomTo(i), "Double click does it as well"),
    button("‹ before", () => neighbour(-1), "["), button("after ›", () => neighbour(1), "]"),
    button(isCall(i) ? "All its calls" : "All of it", () => searchFor(what), "Search for the name"));
  if (isCall(i) && process && !process.forgotten) {
    actions.append(button("Its worker", () => { select(callCount + process.number); bring(view.selected); }, "The process that ran it"));
  }
  parts.push(actions);
  return parts;
}

function neighbour(step) {
  const i = view.selected;
  const lane = i >= 0 ? laneOf(i) : view.lanes.find((lane) => lane.track?.spans.length);
  if (!lane) return;
  const inTrack = lane.track.spans.indexOf(i);
  const { spans } = inTrack < 0 && lane.life && i >= 0 ? lane.life : lane.track;
  const k = spans.indexOf(i) + step;
  const next = spans[i < 0 ? Math.min(lowerBound(lane.track.starts, view.from), spans.length - 1) : Math.min(spans.length - 1, Math.max(0, k))];
  select(next);
  bring(next);
}

// --- searching ---

function runSearch() {
  view.found = search($("search").value);
  hits = null;
  hitAt = -1;
  const output = $("hits");
  if (view.found) {
    hits = [];
    for (let i = 0; i < spanCount; i++) if (view.found[i]) hits.push(i);
    hits.sort((a, b) => start[a] - start[b] || a - b);
  }
  output.className = hits?.length ? "some" : "";
  countHits();
  for (const button of $("legend").querySelectorAll("button")) {
    button.classList.toggle("chosen", $("search").value.trim() === button.dataset.query);
  }
  rememberSoon();
  redraw();
}

function countHits() {
  const n = hits?.length.toLocaleString("en");
  $("hits").textContent = !hits ? "" : hitAt < 0 ? n : `${(hitAt + 1).toLocaleString("en")} of ${n}`;
}

function searchFor(text) {
  $("search").value = text;
  runSearch();
}

function goToHit(step) {
  if (!hits?.length) return;
  if (hitAt < 0) { // begin with what is shown
    const shown = hits.findIndex((i) => end[i] >= view.from);
    hitAt = step > 0 ? Math.max(0, shown) : hits.length - 1;
  } else hitAt = (hitAt + step + hits.length) % hits.length;
  countHits();
  select(hits[hitAt]);
  bring(hits[hitAt]);
}

// --- figures of the functions ---

const COLUMNS = [
  ["function", (r) => r.name], ["calls", (r) => r.count], ["failed", (r) => r.failed],
  ["cancelled", (r) => r.cancelled], ["killed", (r) => r.killed], ["ran in all", (r) => r.total, 1],
  ["mean", (r) => r.mean, 1], ["median", (r) => r.median, 1], ["99 %", (r) => r.p99, 1],
  ["longest", (r) => r.longest, 1], ["mean wait", (r) => r.wait, 1], ["longest wait", (r) => r.longestWait, 1],
];
let figures = null;
let sorting = { column: 5, down: true };

function readFigures() {
  const groups = new Map();
  for (let i = 0; i < spanCount; i++) {
    if (!isCall(i) && (pool[i] >= 0 || !func[i])) continue;
    if (!groups.has(func[i])) groups.set(func[i], []);
    groups.get(func[i]).push(i);
  }
  return [...groups].map(([name, spans]) => {
    const times = Float64Array.from(spans.filter((i) => ran[i]), (i) => end[i] - start[i]).sort();
    const total = times.reduce((sum, time) => sum + time, 0);
    const rank = (share) => (times.length ? times[Math.min(times.length - 1, Math.floor(share * times.length))] : -1);
    const count = (s) => spans.reduce((sum, i) => sum + (status[i] === s), 0);
    const waits = spans.map((i) => start[i] - queued[i]);
    return {
      name: strings[name], count: spans.length, failed: count(3), cancelled: count(2), killed: count(4), total,
      mean: times.length ? total / times.length : -1, median: rank(0.5), p99: rank(0.99), longest: rank(1),
      wait: waits.reduce((sum, time) => sum + time, 0) / waits.length,
      longestWait: waits.reduce((most, time) => Math.max(most, time), 0),
    };
  });
}

function showTable() {
  figures ||= readFigures();
  const key = COLUMNS[sorting.column][1];
  figures.sort((a, b) => (key(a) < key(b) ? -1 : key(a) > key(b) ? 1 : 0) * (sorting.down ? -1 : 1));
  const head = make("tr", {}, ...COLUMNS.map(([name], column) => make("th", {
    ...(column === sorting.column ? { "aria-sort": sorting.down ? "descending" : "ascending" } : {}),
    onclick: () => { sorting = { column, down: column === sorting.column ? !sorting.down : column > 0 }; showTable(); },
  }, name)));
  const rows = figures.slice(0, 500).map((row) => make("tr", { onclick: () => searchFor(row.name), title: row.name },
    ...COLUMNS.map(([, value, isTime], column) => {
      const v = value(row);
      return make("td", v === 0 && !isTime ? { class: "zero" } : {}, column && isTime ? duration(v) : v.toLocaleString("en"));
    })));
  $("table").replaceChildren(make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows)));
}

function toggleTable() {
  const table = $("table");
  if (table.hidden) showTable();
  table.hidden = !table.hidden;
  $("functions").setAttribute("aria-pressed", String(!table.hidden));
  rememberSoon();
  resize();
}

function togglePack() {
  view.pack = !view.pack;
  $("pack").setAttribute("aria-pressed", String(view.pack));
  layOut();
  rememberSoon();
}

// --- light and dark ---

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  readColors();
  overviewPicture = null;
  redraw();
}

const systemTheme = matchMedia("(prefers-color-scheme: dark)");
let chosenTheme = null;
const currentTheme = () => chosenTheme ?? (systemTheme.matches ? "dark" : "light");
systemTheme.addEventListener("change", () => setTheme(currentTheme()));

function toggleTheme() {
  chosenTheme = currentTheme() === "dark" ? "light" : "dark";
  setTheme(chosenTheme);
  rememberSoon();
}

// --- the address holds what is shown, so that it can be passed on ---

let remembering = 0;

function rememberSoon() {
  clearTimeout(remembering);
  remembering = setTimeout(() => {
    const state = new URLSearchParams();
    if (view.from > 0 || view.to < LENGTH) {
      state.set("from", view.from.toFixed(0));
      state.set("to", view.to.toFixed(0));
    }
    if ($("search").value) state.set("q", $("search").value);
    if (view.selected >= 0) state.set("span", String(view.selected));
    if (view.pack) state.set("pack", "1");
    if (!$("table").hidden) state.set("functions", "1");
    if (chosenTheme) state.set("theme", chosenTheme);
    history.replaceState(null, "", `#${state}`);
  }, 250);
}

function recall() {
  const state = new URLSearchParams(location.hash.slice(1));
  const theme = state.get("theme");
  if (theme === "dark" || theme === "light") chosenTheme = theme;
  setTheme(currentTheme());
  if (state.get("pack")) togglePack();
  if (state.get("functions")) toggleTable();
  const from = Number(state.get("from")), to = Number(state.get("to"));
  if (state.has("from") && to > from) show(from, to); else show(-LENGTH * 0.008, LENGTH * 1.02);
  if (state.get("q")) searchFor(state.get("q"));
  const span = Number(state.get("span"));
  if (state.has("span") && span >= 0 && span < spanCount) { select(span); reveal(span); }
}

// --- pointer, wheel and keys ---

let drag = null;
const pointers = new Map();
const place = (event) => {
  const box = viewBox.getBoundingClientRect();
  return [event.clientX - box.left, event.clientY - box.top];
};

viewBox.addEventListener("wheel", (event) => {
  event.preventDefault();
  cancelAnimationFrame(animation);
  const unit = event.deltaMode === 1 ? 16 : event.deltaMode === 2 ? 400 : 1;
  const dx = event.deltaX * unit, dy = event.deltaY * unit;
  const [x] = place(event);
  if (event.ctrlKey || event.metaKey) zoom(Math.exp(dy * 0.01), x); // what pinching a touch pad sends
  else if (event.shiftKey || x < GUTTER) scrollTo(view.scroll + dy + (event.shiftKey ? dx : 0));
  else if (Math.abs(dx) > Math.abs(dy)) { const by = dx / scale(); show(view.from + by, view.to + by); }
  else zoom(Math.exp(Math.max(-240, Math.min(240, dy)) * 0.0018), x);
  hoverAt(...place(event));
}, { passive: false });

viewBox.addEventListener("pointerdown", (event) => {
  if (event.button !== 0) return;
  viewBox.focus({ preventScroll: true });
  cancelAnimationFrame(animation);
  const [x, y] = place(event);
  pointers.set(event.pointerId, [x, y]);
  viewBox.setPointerCapture(event.pointerId);
  drag = { x, y, from: view.from, to: view.to, scroll: view.scroll, moved: false,
    ranging: (event.shiftKey || y < AXIS) && x >= GUTTER };
});

viewBox.addEventListener("pointermove", (event) => {
  const [x, y] = place(event);
  if (pointers.size === 2 && pointers.has(event.pointerId)) return pinch(event.pointerId, x, y);
  if (!drag) return hoverAt(x, y);
  if (!drag.moved && Math.hypot(x - drag.x, y - drag.y) < 4) return;
  drag.moved = true;
  tooltip.style.display = "none";
  view.hover = null;
  if (drag.ranging) {
    const a = Math.min(x, drag.x), b = Math.max(x, drag.x);
    Object.assign($("range").style, { display: "block", left: `${a}px`, width: `${b - a}px` });
    $("range").dataset.length = duration(timeOf(b) - timeOf(a));
    return;
  }
  viewBox.classList.add("dragging");
  const by = (drag.x - x) / (plotWidth() / (drag.to - drag.from));
  show(drag.from + by, drag.to + by);
  scrollTo(drag.scroll + drag.y - y);
});

function pinch(id, x, y) {
  const [a, b] = pointers.values();
  const before = Math.abs(a[0] - b[0]);
  pointers.set(id, [x, y]);
  const [c, d] = pointers.values();
  zoom(Math.max(10, before) / Math.max(10, Math.abs(c[0] - d[0])), (c[0] + d[0]) / 2);
  if (drag) drag.moved = true;
}

function release(event) {
  pointers.delete(event.pointerId);
  viewBox.classList.remove("dragging");
  $("range").style.display = "none";
  const was = drag;
  drag = null;
  if (!was || event.type === "pointercancel") return;
  const [x, y] = place(event);
  if (was.moved && was.ranging) return glide(timeOf(Math.min(x, was.x)), timeOf(Math.max(x, was.x)));
  if (was.moved) return;
  const lane = laneAt(y);
  if (lane?.kind === "group") {
    if (!folded.delete(lane.key)) folded.add(lane.key);
    return layOut();
  }
  select(spanAt(lane, x));
}

viewBox.addEventListener("pointerup", release);
viewBox.addEventListener("pointercancel", release);
viewBox.addEventListener("pointerleave", () => {
  view.hover = null;
  tooltip.style.display = "none";
  redraw(false);
});
viewBox.addEventListener("dblclick", (event) => {
  const [x, y] = place(event);
  const i = spanAt(laneAt(y), x);
  if (i >= 0) zoomTo(i); else if (x >= GUTTER) zoom(0.4, x, true);
});

// In the overview: drag the window, or choose another.
let window_ = null;
const overviewTime = (event) => {
  const x = event.clientX - overview.getBoundingClientRect().left;
  return ((x - GUTTER) / plotWidth()) * LENGTH;
};
overview.addEventListener("pointerdown", (event) => {
  cancelAnimationFrame(animation);
  overview.setPointerCapture(event.pointerId);
  const time = overviewTime(event);
  const whole = view.to - view.from > LENGTH * 0.98;
  const inside = !whole && time >= view.from && time <= view.to;
  window_ = { time, inside, from: view.from, to: view.to, moved: false };
});
overview.addEventListener("pointermove", (event) => {
  if (!window_) return;
  const time = overviewTime(event);
  if (Math.abs(time - window_.time) * plotWidth() / LENGTH > 2) window_.moved = true;
  if (!window_.moved) return;
  if (window_.inside) show(window_.from + time - window_.time, window_.to + time - window_.time);
  else show(Math.min(time, window_.time), Math.max(time, window_.time));
});
overview.addEventListener("pointerup", (event) => {
  const was = window_;
  window_ = null;
  if (was && !was.moved) {
    const half = (view.to - view.from) / 2;
    const time = overviewTime(event);
    glide(time - half, time + half);
  }
});
overview.addEventListener("wheel", (event) => {
  event.preventDefault();
  zoom(Math.exp(event.deltaY * 0.0018));
}, { passive: false });

const KEYS = {
  "+": () => zoom(0.6, undefined, true), "=": () => zoom(0.6, undefined, true), w: () => zoom(0.6, undefined, true),
  "-": () => zoom(1 / 0.6, undefined, true), s: () => zoom(1 / 0.6, undefined, true),
  ArrowLeft: () => move(-0.2), a: () => move(-0.2), ArrowRight: () => move(0.2),
  ArrowUp: () => scrollTo(view.scroll - 50), ArrowDown: () => scrollTo(view.scroll + 50),
  PageUp: () => scrollTo(view.scroll - view.height * 0.8), PageDown: () => scrollTo(view.scroll + view.height * 0.8),
  Home: () => show(0, view.to - view.from), End: () => show(LENGTH - (view.to - view.from), LENGTH),
  f: fit, 0: fit, n: () => goToHit(1), N: () => goToHit(-1), "[": () => neighbour(-1), "]": () => neighbour(1),
  p: togglePack, t: toggleTable, d: toggleTheme, "?": () => $("keys").showModal(),
  "/": () => $("search").focus(), Enter: () => view.selected >= 0 && zoomTo(view.selected),
  Escape: () => { if (view.selected >= 0) select(-1); else if ($("search").value) searchFor(""); },
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || $("keys").open) return;
  if (event.target === $("search")) {
    if (event.key === "Enter") goToHit(event.shiftKey ? -1 : 1);
    else if (event.key === "Escape") { searchFor(""); viewBox.focus(); }
    return;
  }
  if (event.target.closest?.("button, th") && event.key === "Enter") return;
  const action = KEYS[event.key];
  if (!action) return;
  event.preventDefault();
  action();
});

let searching = 0;
$("search").addEventListener("input", () => {
  clearTimeout(searching);
  searching = setTimeout(runSearch, spanCount > 20000 ? 120 : 0);
});
for (const [id, action] of Object.entries({
  previous: () => goToHit(-1), next: () => goToHit(1), in: () => zoom(0.6, undefined, true),
  out: () => zoom(1 / 0.6, undefined, true), fit, pack: togglePack, functions: toggleTable,
  theme: toggleTheme, help: () => $("keys").showModal(),
})) $(id).addEventListener("click", action);

// --- the beginning ---

function showFacts() {
  const counts = new Array(STATUSES.length).fill(0);
  for (let i = 0; i < spanCount; i++) counts[status[i]]++;
  const plural = (n, word, more = `${word}s`) => `${n.toLocaleString("en")} ${n === 1 ? word : more}`;
  $("facts").textContent = [
    duration(LENGTH), plural(processCount, "process", "processes"), plural(callCount, "call"),
    data.dropped ? `${data.dropped.toLocaleString("en")} older ones were not kept` : null,
    `pid ${data.pid}`, `Python ${data.python}`, new Date(data.began * 1000).toLocaleString(),
  ].filter(Boolean).join(" · ");
  const swatch = (background) => make("i", { class: "swatch", style: `background:${background}` });
  STATUSES.forEach((name, s) => {
    const query = `status:${name}`;
    $("legend").append(make("button", {
      "data-query": query, title: `Highlight what is ${name}`, ...(counts[s] ? {} : { class: "none" }),
      onclick: () => searchFor($("search").value.trim() === query ? "" : query),
    }, swatch(`var(--${name})`), `${GLYPHS[s]} ${name}`.trim(), make("b", {}, counts[s].toLocaleString("en"))));
  });
  const stripes = (a, b) => `repeating-linear-gradient(135deg,var(--${a}) 0 2.5px,var(--${b}) 2.5px 4px)`;
  $("legend").append(
    make("span", {}, swatch(stripes("waiting", "wait-line")), "waiting for a worker"),
    make("span", {}, swatch(stripes("faint", "running")), "process starts"),
    make("span", {}, swatch(stripes("cancelled", "background")), "being stopped"));
}

showFacts();
view.width = viewBox.clientWidth;
view.height = viewBox.clientHeight;
readColors();
layOut();
recall();
new ResizeObserver(resize).observe(viewBox);
// Whether it works is asked by the tests.
window.creche = { view, spanCount, callCount, draw, drawOverlay, drawOverview, search, select, show, timeOf, xOf, laneOf, hits: () => hits };
