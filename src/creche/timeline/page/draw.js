// --- drawing ----------------------------------------------------------------------------------------------

const GUTTER = 190; // pixels for the names of lanes
const AXIS = 26;
const FONT = '11px system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif';
const SMALL = 2; // pixels: bars that are narrower are merged
const LEVELS = 6; // of density, in which merged bars are drawn

/** What is shown of what: changed by main.js, read here. */
const view = {
  from: 0, to: LENGTH, scroll: 0, width: 0, height: 0,
  lanes: [], lanesHeight: 0, found: null, hover: null, selected: -1, pack: false,
};

const canvas = document.getElementById("canvas");
const overlay = document.getElementById("overlay");
const overview = document.getElementById("overview");
let colors = {};
let hatches = {};

const plotWidth = () => Math.max(1, view.width - GUTTER);
const scale = () => plotWidth() / (view.to - view.from);
const xOf = (time) => GUTTER + (time - view.from) * scale();
const timeOf = (x) => view.from + (x - GUTTER) / scale();

function readColors() {
  const style = getComputedStyle(document.documentElement);
  const value = (name) => style.getPropertyValue(`--${name}`).trim();
  for (const name of ["background", "panel", "raised", "text", "muted", "line", "faint", "accent", "ok",
    "ok-dark", "ok-light", "error", "cancelled", "killed", "running", "waiting", "wait-line", "hit"]) {
    colors[name] = value(name);
  }
  colors.shades = [colors.ok, colors["ok-dark"], colors["ok-light"]];
  hatches = {
    waiting: hatch(colors.waiting, colors["wait-line"]),
    starting: hatch(colors.faint, colors.running),
    stopping: hatch(null, colors.background),
  };
}

/** A pattern of slanting lines. */
function hatch(background, line) {
  const size = 6 * devicePixelRatio;
  const tile = document.createElement("canvas");
  tile.width = tile.height = size;
  const context = tile.getContext("2d");
  if (background) {
    context.fillStyle = background;
    context.fillRect(0, 0, size, size);
  }
  context.strokeStyle = line;
  context.lineWidth = 1.4 * devicePixelRatio;
  for (const shift of [-size, 0, size]) {
    context.beginPath();
    context.moveTo(shift, size);
    context.lineTo(shift + size, 0);
    context.stroke();
  }
  const pattern = context.createPattern(tile, "repeat");
  pattern.setTransform(new DOMMatrix().scale(1 / devicePixelRatio));
  return pattern;
}

function fitCanvas(element, width, height) {
  const w = Math.round(width * devicePixelRatio), h = Math.round(height * devicePixelRatio);
  if (element.width !== w || element.height !== h) { element.width = w; element.height = h; }
  const context = element.getContext("2d");
  context.setTransform(devicePixelRatio, 0, 0, devicePixelRatio, 0, 0);
  return context;
}

const colorOf = (i) => {
  const s = status[i];
  return s === 0 ? colors.shades[isCall(i) ? shade[func[i]] : 0] : colors[STATUSES[s]];
};
const inkOn = (s) => {
  const dark = document.documentElement.dataset.theme === "dark";
  return s === 2 || dark ? "#14171c" : "#ffffff";
};

function draw() {
  const context = fitCanvas(canvas, view.width, view.height);
  context.font = FONT;
  context.textBaseline = "middle";
  context.fillStyle = colors.background;
  context.fillRect(0, 0, view.width, view.height);
  const ticks = timeTicks();
  context.fillStyle = colors.faint;
  for (const { x } of ticks) context.fillRect(Math.round(x), AXIS, 1, view.height);
  context.save();
  context.beginPath();
  context.rect(0, AXIS, view.width, view.height - AXIS);
  context.clip();
  drawEnd(context);
  for (const lane of visibleLanes()) drawLane(context, lane, AXIS + lane.y - view.scroll);
  context.restore();
  drawAxis(context, ticks);
  drawScrollbar(context);
}

function visibleLanes() {
  const bottom = view.scroll + view.height - AXIS;
  let k = 0, high = view.lanes.length;
  while (k < high) {
    const middle = (k + high) >>> 1;
    if (view.lanes[middle].y + view.lanes[middle].height <= view.scroll) k = middle + 1; else high = middle;
  }
  const found = [];
  for (; k < view.lanes.length && view.lanes[k].y < bottom; k++) found.push(view.lanes[k]);
  return found;
}

function timeTicks() {
  const wish = (view.to - view.from) / Math.max(2, plotWidth() / 110);
  const power = 10 ** Math.floor(Math.log10(wish));
  const step = Math.max(1, [1, 2, 5, 10].map((n) => n * power).find((s) => s >= wish));
  const ticks = [];
  for (let n = Math.ceil(view.from / step); n * step <= view.to; n++) {
    const time = n * step;
    ticks.push({ x: xOf(time), text: tickText(time, step) });
  }
  return ticks;
}

function tickText(time, step) {
  const decimals = (unit) => Math.max(0, Math.ceil(-Math.log10(step / unit) - 1e-9));
  if (view.to >= 1e6) return `${(time / 1e6).toFixed(decimals(1e6))} s`;
  if (view.to >= 1e3) return `${(time / 1e3).toFixed(decimals(1e3))} ms`;
  return `${time} µs`;
}

function drawAxis(context, ticks) {
  context.fillStyle = colors.panel;
  context.fillRect(0, 0, view.width, AXIS);
  context.fillStyle = colors.line;
  context.fillRect(0, AXIS - 1, view.width, 1);
  context.fillRect(GUTTER - 1, 0, 1, AXIS);
  for (const { x, text } of ticks) {
    context.fillStyle = colors.line;
    context.fillRect(Math.round(x), AXIS - 6, 1, 5);
    if (x > view.width - 40) continue;
    context.fillStyle = colors.muted;
    context.fillText(text, Math.round(x) + 4, AXIS / 2);
  }
  context.fillStyle = colors.panel;
  context.fillRect(0, 0, GUTTER - 1, AXIS - 1);
  context.fillStyle = colors.muted;
  context.fillText(`shown: ${duration(view.to - view.from)}`, 12, AXIS / 2);
}

/** Beyond the end of the recording there is nothing. */
function drawEnd(context) {
  context.fillStyle = colors.panel;
  const left = xOf(0), right = xOf(LENGTH);
  if (left > GUTTER) context.fillRect(GUTTER, AXIS, left - GUTTER, view.height);
  if (right < view.width) context.fillRect(right, AXIS, view.width - right, view.height);
}

function drawScrollbar(context) {
  const room = view.height - AXIS;
  if (view.lanesHeight <= room) return;
  const length = Math.max(24, (room * room) / view.lanesHeight);
  const y = AXIS + (view.scroll / (view.lanesHeight - room)) * (room - length);
  context.fillStyle = colors.muted;
  context.globalAlpha = 0.45;
  context.beginPath();
  context.roundRect(view.width - 8, y, 5, length, 2.5);
  context.fill();
  context.globalAlpha = 1;
}

function drawLane(context, lane, y) {
  if (lane.kind === "group") return drawGroup(context, lane, y);
  context.fillStyle = colors.line;
  context.globalAlpha = 0.5;
  context.fillRect(GUTTER, y + lane.height - 1, view.width, 1);
  context.globalAlpha = 1;
  context.save();
  context.beginPath();
  context.rect(GUTTER, y, plotWidth(), lane.height);
  context.clip();
  if (lane.kind === "queue") drawQueue(context, lane, y);
  else {
    if (lane.life) drawLives(context, lane, y);
    if (lane.kind === "lane" && lane.life) drawWaits(context, lane.track, y + lane.height - 6, 4);
    const phases = !lane.life && lane.kind === "lane";
    drawSpans(context, lane.track, y + 3, lane.height - (lane.life ? 10 : 7), lane.kind === "left", !phases);
    if (phases) drawPhases(context, lane, y + 3, lane.height - 7);
  }
  context.restore();
  drawLaneName(context, lane, y);
  if (lane.kind === "queue") {
    context.fillStyle = colors.line;
    context.fillRect(GUTTER, y + lane.height - 1, plotWidth(), 1);
  }
}

function drawGroup(context, lane, y) {
  context.fillStyle = colors.panel;
  context.fillRect(0, y, view.width, lane.height);
  context.fillStyle = colors.line;
  context.fillRect(0, y, view.width, 1);
  context.fillRect(0, y + lane.height - 1, view.width, 1);
  context.fillStyle = colors.text;
  context.font = `600 ${FONT.replace("11px", "12px")}`;
  const middle = y + lane.height / 2;
  context.beginPath(); // a triangle that points down, or right if the group is folded
  const a = lane.folded ? [[12, -4], [12, 4], [17, 0]] : [[10, -2.5], [18, -2.5], [14, 2.5]];
  a.forEach(([x, dy], k) => (k ? context.lineTo(x, middle + dy) : context.moveTo(x, middle + dy)));
  context.fill();
  context.fillText(lane.label, 26, middle);
  const width = context.measureText(lane.label).width;
  context.font = FONT;
  context.fillStyle = colors.muted;
  context.fillText(lane.note, 26 + width + 10, middle);
}

function drawLaneName(context, lane, y) {
  const middle = y + lane.height / 2;
  context.fillStyle = colors.background;
  context.fillRect(0, y, GUTTER - 1, lane.height);
  context.fillStyle = colors.line;
  context.fillRect(GUTTER - 1, y, 1, lane.height);
  context.fillStyle = colors.muted;
  const note = context.measureText(lane.note).width;
  context.fillText(lane.note, GUTTER - 10 - note, middle);
  context.fillStyle = lane.kind === "lane" ? colors.text : colors.muted;
  context.fillText(cut(lane.label, GUTTER - 44 - note), 26, middle);
}

function cut(text, width) {
  const most = Math.max(1, Math.floor(width / 6.1));
  if (text.length <= most) return text;
  return most > 6 ? `${text.slice(0, Math.ceil(most * 0.6) - 1)}…${text.slice(text.length - Math.floor(most * 0.4))}` : `${text.slice(0, most - 1)}…`;
}

// Of the bars that are too narrow, how much of each column of pixels they cover, by kind: first
// those that the search has not found, then the others, each from the least to the most grave.
const KINDS = 2 * STATUSES.length;
let cover = [];

function drawSpans(context, track, y, height, hollow, named) {
  const s = scale();
  const width = plotWidth();
  const [first, last] = track.range(view.from, view.to);
  if (first >= last) return;
  if (!cover.length || cover[0].length < width + 3) {
    cover = Array.from({ length: KINDS }, () => new Float32Array(width + 3));
  }
  const low = new Int32Array(KINDS).fill(width + 2), high = new Int32Array(KINDS).fill(-1);
  const { spans } = track;
  const found = view.found;
  let color = null;
  for (let k = first; k < last; k++) {
    const i = spans[k];
    let x0 = (start[i] - view.from) * s, x1 = (end[i] - view.from) * s;
    const hit = !found || found[i];
    if (x1 - x0 < SMALL) {
      if (x1 < 0) continue;
      const kind = status[i] + (hit ? STATUSES.length : 0);
      const columns = cover[kind];
      const column = Math.min(width, Math.max(0, x0 | 0));
      const inFirst = Math.min(x1, column + 1) - x0;
      columns[column] += Math.max(inFirst, 0.04);
      columns[column + 1] += Math.max(0, Math.min(x1, column + 2) - column - 1);
      if (column < low[kind]) low[kind] = column;
      if (column + 1 > high[kind]) high[kind] = column + 1;
      continue;
    }
    x0 = Math.max(x0, -4);
    x1 = Math.min(x1, width + 4);
    context.globalAlpha = hit ? 1 : 0.16;
    const mine = colorOf(i);
    if (mine !== color) context.fillStyle = color = mine;
    const w = Math.max(1, x1 - x0 - (x1 - x0 > 3 ? 1 : 0.5));
    if (hollow) {
      context.fillStyle = hatches.waiting;
      context.fillRect(GUTTER + x0, y, w, height);
      context.fillStyle = color;
      context.fillRect(GUTTER + x0, y + height - 3, w, 3);
      context.fillRect(GUTTER + x0 + w - 3, y, 3, height);
      continue;
    }
    context.fillRect(GUTTER + x0, y, w, height);
    if (named && w > 26) {
      const glyph = GLYPHS[status[i]];
      const left = Math.max(x0, 0); // in view, if the bar begins before
      const text = cut(labelOf(i), x0 + w - left - 10 - (glyph ? 14 : 0));
      context.fillStyle = inkOn(status[i]);
      context.fillText(glyph ? `${glyph} ${text}` : text, GUTTER + left + 5, y + height / 2 + 0.5);
      color = null;
    }
  }
  for (let kind = 0; kind < KINDS; kind++) {
    if (high[kind] >= 0) drawColumns(context, kind, low[kind], Math.min(high[kind], width + 1), y, height);
  }
  context.globalAlpha = 1;
}

function drawColumns(context, kind, low, high, y, height) {
  const columns = cover[kind];
  const s = kind % STATUSES.length;
  const dimmed = kind < STATUSES.length ? 0.16 : 1;
  context.fillStyle = colors[STATUSES[s]];
  // What went wrong is to be seen, however short it was.
  const least = s >= 2 ? LEVELS - 1 : 1;
  let from = low, level = -1;
  for (let x = low; x <= high + 1; x++) {
    const amount = x <= high ? columns[x] : 0;
    const next = amount > 0 ? Math.max(least, Math.min(LEVELS, Math.ceil(Math.sqrt(amount) * LEVELS))) : 0;
    if (next !== level) {
      if (level > 0) {
        context.globalAlpha = dimmed * (level / LEVELS);
        context.fillRect(GUTTER + from, y, Math.max(s >= 2 ? 2 : 1, x - from), height);
      }
      from = x;
      level = next;
    }
    if (x <= high) columns[x] = 0;
  }
}

/** For how long calls had waited already while the worker was at the one before, or was not up. */
function drawWaits(context, track, y, height) {
  const s = scale();
  const [first, last] = track.range(view.from, view.to);
  context.fillStyle = hatches.waiting;
  context.globalAlpha = view.found ? 0.35 : 1;
  let left = -1, right = -1; // what is to be drawn: as one, where there is nothing between
  for (let k = first; k < Math.min(track.spans.length, last + 1); k++) {
    const i = track.spans[k];
    const from = k ? Math.max(queued[i], track.starts[k - 1]) : queued[i];
    const x0 = Math.max((from - view.from) * s, -6), x1 = Math.min((start[i] - view.from) * s, plotWidth());
    if (x1 <= x0) continue;
    if (x0 > right + 0.7) {
      if (right - left > 0.7) context.fillRect(GUTTER + left, y, right - left, height);
      left = x0;
    }
    right = Math.max(right, x1);
  }
  if (right - left > 0.7) context.fillRect(GUTTER + left, y, right - left, height);
  context.globalAlpha = 1;
}

/** The lives of workers: a band behind their calls, with how they began and ended. */
function drawLives(context, lane, y) {
  const [first, last] = lane.life.range(view.from, view.to);
  for (let k = first; k < last; k++) {
    const i = lane.life.spans[k];
    const process = processOf(i);
    const x0 = Math.max(xOf(process.created), GUTTER - 4), x1 = Math.min(xOf(end[i]), view.width + 4);
    const dim = view.found && !view.found[i];
    context.fillStyle = colors.faint;
    context.fillRect(x0, y + 2, Math.max(1, x1 - x0), lane.height - 4);
    const ready = process.ready >= 0 ? process.ready : process.started;
    const up = Math.min(ready < 0 ? end[i] : ready, end[i]);
    const x = Math.min(xOf(up), view.width + 4);
    context.globalAlpha = dim ? 0.3 : 1;
    if (x - x0 > 0.7) {
      context.fillStyle = hatches.starting;
      context.fillRect(x0, y + 3, x - x0, lane.height - 10);
    }
    if (status[i] >= 2 && x1 <= view.width) { // it did not end in order
      context.fillStyle = colorOf(i);
      context.fillRect(x1 - 3, y + 1, 3, lane.height - 2);
      if (x1 + 14 < view.width) context.fillText(GLYPHS[status[i]], x1 + 3, y + lane.height / 2);
    }
    context.globalAlpha = 1;
  }
}

/** Of processes that run one function: until it ran, and from when it was to stop. */
function drawPhases(context, lane, y, height) {
  const [first, last] = lane.track.range(view.from, view.to);
  for (let k = first; k < last; k++) {
    const i = lane.track.spans[k];
    const process = processOf(i);
    context.globalAlpha = 1;
    if ((end[i] - start[i]) * scale() < SMALL) continue;
    const up = process.started >= 0 ? process.started : end[i];
    const x0 = Math.max(xOf(start[i]), GUTTER - 6);
    const x = Math.min(xOf(up), view.width);
    if (x - x0 > 1) {
      context.fillStyle = hatches.starting;
      context.fillRect(x0, y, x - x0, height);
    }
    if (process.ready >= 0 && process.ready > up) { // it has said that it is ready
      const ready = xOf(process.ready);
      context.fillStyle = colors.background;
      context.globalAlpha = 0.8;
      context.fillRect(ready - 1, y, 2, height);
      context.globalAlpha = 1;
    }
    const left = Math.max(xOf(Math.max(up, process.ready)), GUTTER), right = xEnd(i);
    if (right - left > 26) {
      context.globalAlpha = !view.found || view.found[i] ? 1 : 0.3;
      context.fillStyle = view.found && !view.found[i] ? colors.text : inkOn(status[i]);
      const glyph = GLYPHS[status[i]];
      const text = cut(labelOf(i), right - left - 10 - (glyph ? 14 : 0));
      context.fillText(glyph ? `${glyph} ${text}` : text, left + 5, y + height / 2 + 0.5);
      context.globalAlpha = 1;
    }
    if (process.stop >= 0) {
      const from = Math.max(xOf(process.stop), GUTTER - 6), to = xEnd(i);
      if (to - from > 1) {
        context.fillStyle = hatches.stopping;
        context.globalAlpha = 0.7;
        context.fillRect(from, y, to - from, height);
        context.globalAlpha = 1;
      }
    }
  }
}

const xEnd = (i) => Math.min(xOf(end[i]), view.width + 4);

function drawQueue(context, lane, y) {
  const { times, lengths, peak } = lane.queue;
  if (!peak) return;
  const room = lane.height - 7;
  const bottom = y + lane.height - 2;
  const width = plotWidth();
  let k = lowerBound(times, view.from);
  let length = k ? lengths[k - 1] : 0;
  context.beginPath();
  context.moveTo(GUTTER, bottom);
  const s = scale();
  for (let x = 0; x < width; x++) { // the longest that it was in each column
    let most = length;
    const until = view.from + (x + 1) / s;
    if (k < times.length && times[k] < until) {
      // Few steps are looked at one by one; of many, some: this is a picture.
      const after = lowerBound(times, until);
      const stride = Math.max(1, ((after - k) / 64) | 0);
      for (let j = k; j < after; j += stride) if (lengths[j] > most) most = lengths[j];
      k = after;
      length = lengths[k - 1];
    }
    const top = bottom - (most ? Math.max(1.5, (most / peak) * room) : 0);
    context.lineTo(GUTTER + x, top);
    context.lineTo(GUTTER + x + 1, top);
  }
  context.lineTo(view.width, bottom);
  context.closePath();
  context.fillStyle = hatches.waiting;
  context.fill();
}

// --- what is drawn above: hover and selection ------------------------------------------------------------

function drawOverlay() {
  const context = fitCanvas(overlay, view.width, view.height);
  context.clearRect(0, 0, view.width, view.height);
  context.save();
  context.beginPath();
  context.rect(GUTTER, AXIS, plotWidth(), view.height - AXIS);
  context.clip();
  if (view.hover) {
    context.fillStyle = colors.muted;
    context.globalAlpha = 0.5;
    context.fillRect(view.hover.x, AXIS, 1, view.height);
    context.globalAlpha = 1;
  }
  if (view.selected >= 0) outline(context, view.selected, colors.hit, 2);
  if (view.hover && view.hover.span >= 0) outline(context, view.hover.span, colors.text, 1.5);
  context.restore();
}

function laneOf(i) {
  if (!view.laneOfSpan) {
    view.laneOfSpan = new Int32Array(spanCount).fill(-1);
    view.lanes.forEach((lane, number) => {
      lane.track?.spans.forEach((span) => { view.laneOfSpan[span] = number; });
      lane.life?.spans.forEach((span) => { view.laneOfSpan[span] = number; });
    });
  }
  return view.lanes[view.laneOfSpan[i]];
}

function outline(context, i, color, line) {
  const lane = laneOf(i);
  if (!lane) return;
  const y = AXIS + lane.y - view.scroll;
  const x0 = Math.max(xOf(start[i]), GUTTER - 4), x1 = Math.min(xOf(end[i]), view.width + 4);
  if (isCall(i) && ran[i] && start[i] > queued[i]) { // all the time that it has waited
    const from = Math.max(xOf(queued[i]), GUTTER - 4);
    if (x0 - from > 1) {
      context.fillStyle = hatches.waiting;
      context.fillRect(from, y + lane.height - 6, x0 - from, 4);
      context.strokeStyle = color;
      context.lineWidth = 1;
      context.strokeRect(from, y + lane.height - 6.5, x0 - from, 5);
    }
  }
  context.strokeStyle = color;
  context.lineWidth = line;
  const low = lane.life && !isCall(i) ? 2 : lane.life ? 8 : 5;
  context.beginPath();
  context.roundRect(x0 - 1, y + 2, Math.max(3, x1 - x0 + 1), lane.height - low, 2);
  context.stroke();
}

// --- the whole recording, small ----------------------------------------------------------------------------

const OVERVIEW_HEIGHT = 46;
let overviewPicture = null;

/** How many calls and processes ran at each time, and where something went wrong. */
function pictureOverview() {
  const width = Math.max(1, Math.round(plotWidth()));
  const busy = new Float64Array(width + 1);
  const wrong = new Uint8Array(width + 1);
  const s = width / LENGTH;
  for (let i = 0; i < spanCount; i++) {
    if (!ran[i] || (!isCall(i) && pool[i] >= 0)) {
      if (status[i] >= 3) wrong[Math.min(width, end[i] * s) | 0] = Math.max(status[i], 0);
      continue;
    }
    const x0 = start[i] * s, x1 = Math.min(width, end[i] * s);
    const a = x0 | 0, b = x1 | 0;
    if (status[i] >= 2) wrong[Math.min(width, b)] = Math.max(wrong[Math.min(width, b)], status[i]);
    if (a === b) busy[a] += x1 - x0;
    else {
      busy[a] += a + 1 - x0;
      for (let x = a + 1; x < b; x++) busy[x] += 1;
      busy[b] += x1 - b;
    }
  }
  let most = 0;
  for (let x = 0; x < width; x++) most = Math.max(most, busy[x]);
  const picture = document.createElement("canvas");
  const context = fitCanvas(picture, view.width, OVERVIEW_HEIGHT);
  context.fillStyle = colors.panel;
  context.fillRect(0, 0, view.width, OVERVIEW_HEIGHT);
  context.fillStyle = colors.ok;
  const room = OVERVIEW_HEIGHT - 12;
  for (let x = 0; x < width; x++) {
    const h = most ? (busy[x] / most) * room : 0;
    if (h > 0) context.fillRect(GUTTER + x, OVERVIEW_HEIGHT - 2 - h, 1, h);
  }
  for (let x = 0; x <= width; x++) {
    if (!wrong[x]) continue;
    context.fillStyle = colors[STATUSES[wrong[x]]];
    context.fillRect(GUTTER + x - 1, 2, 2, 5);
  }
  context.font = FONT;
  context.textBaseline = "middle";
  context.fillStyle = colors.muted;
  context.fillText("all", 12, 15);
  context.fillText(`busiest: ${precise(most).replace(/\.0+$/, "")} at once`, 12, 31);
  return picture;
}

function drawOverview() {
  const context = fitCanvas(overview, view.width, OVERVIEW_HEIGHT);
  overviewPicture ||= pictureOverview();
  context.drawImage(overviewPicture, 0, 0, view.width, OVERVIEW_HEIGHT);
  const s = plotWidth() / LENGTH;
  const x0 = GUTTER + Math.max(0, view.from * s), x1 = GUTTER + Math.min(plotWidth(), view.to * s);
  context.fillStyle = colors.background;
  context.globalAlpha = 0.68;
  context.fillRect(GUTTER, 0, x0 - GUTTER, OVERVIEW_HEIGHT);
  context.fillRect(x1, 0, view.width - x1, OVERVIEW_HEIGHT);
  context.globalAlpha = 1;
  context.strokeStyle = colors.accent;
  context.lineWidth = 1.5;
  context.strokeRect(x0 + 0.5, 0.75, Math.max(2, x1 - x0 - 1), OVERVIEW_HEIGHT - 1.5);
}
