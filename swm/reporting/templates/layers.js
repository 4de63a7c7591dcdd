// The layers before and after merging, the threshold slider and the model's words: drawn in the browser, so that the picture follows the
// slider at once. Data: swm/reporting/preview.py. Untrusted text is set as text, never as HTML.

const LABELS = 72; // pixels left of the bars
const BAR = 28;
const GAP = 24;

function svg(tag, attributes, text) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (text !== undefined) node.textContent = text;
  return node;
}

function html(tag, name, text = "") {
  const node = document.createElement(tag);
  node.className = name;
  node.textContent = text;
  return node;
}

function titled(node, text) {
  node.append(svg("title", {}, text));
  return node;
}

// The original layers behind each layer of the merged model: [first, last].
function keptLayers(plan) {
  const byFirst = new Map(plan.windows.map((window) => [window[0], window]));
  const kept = [];
  for (let layer = (byFirst.get(-1)?.[1] ?? -1) + 1; layer < plan.layers; layer = kept.at(-1)[1] + 1) kept.push(byFirst.get(layer) ?? [layer, layer]);
  return kept;
}

// Runs of layers as words: "13 to 15, 20".
const inWords = (runs) => runs.map(([a, b]) => (a === b ? `${a}` : `${a} to ${b}`)).join(", ");

// The layers that a window leaves out, as [first, last]; none where they become one.
function leftOut(plan, [first, last]) {
  if (first < 0) return [0, last];
  if (!plan.drops || first === last) return null;
  return plan.base === "last" ? [first, last - 1] : [first + 1, last];
}

// Layers before merging above those after, with a ribbon from each window to the layer it becomes; what is dropped is struck out.
export function strip(plan, width) {
  const cell = Math.min(64, (width - LABELS) / plan.layers);
  const every = cell >= 15 ? 1 : cell >= 8 ? 5 : 10;
  const below = BAR + GAP;
  const size = { width, height: below + BAR };
  const root = svg("svg", { ...size, viewBox: `0 0 ${width} ${size.height}`, role: "img" });
  const gone = plan.windows.map((window) => leftOut(plan, window)).filter(Boolean);
  const merged = plan.windows.filter((window) => !leftOut(plan, window));
  const changes = [gone.length && `dropped: ${inWords(gone)}`, merged.length && `merged: ${inWords(merged)}`].filter(Boolean);
  titled(root, `${plan.layers} layers before, ${plan.left} after; ${changes.join("; ") || "merged: none"}`);
  root.append(svg("text", { x: 0, y: BAR / 2, class: "row" }, "before"));
  root.append(svg("text", { x: 0, y: below + BAR / 2, class: "row" }, "after"));
  const bar = (index, y, colour, label, number, kind = colour ? "merged" : "") => {
    const x = LABELS + index * cell;
    const group = svg("g", { class: `layer ${kind}` });
    group.append(svg("rect", { x: x + 1, y, width: Math.max(1, cell - 2), height: BAR, rx: 3, ...(colour && { fill: colour }) }));
    if (number % every === 0) group.append(svg("text", { x: x + cell / 2, y: y + BAR / 2 }, number));
    if (kind === "dropped") group.append(svg("line", { x1: x + 3, x2: x + cell - 3, y1: y + BAR - 4, y2: y + 4 }));
    root.append(titled(group, label));
    return x + cell / 2;
  };
  for (const [first, last] of gone) for (let layer = first; layer <= last; layer++) bar(layer, 0, "", `layer ${layer}, dropped`, layer, "dropped");
  let used = 0;
  keptLayers(plan).forEach(([from, to], after) => {
    const base = plan.base === "last" ? to : from;
    const [first, last] = plan.drops ? [base, base] : [from, to];
    const isMerged = last > first;
    const colour = isMerged ? plan.colours[used++ % plan.colours.length] : "";
    const [x0, x1] = [LABELS + first * cell + 1, LABELS + (last + 1) * cell - 1];
    const [y0, y1] = [LABELS + after * cell + 1, LABELS + (after + 1) * cell - 1];
    const points = `${x0},${BAR} ${x1},${BAR} ${y1},${below} ${y0},${below}`;
    root.append(svg("polygon", { points, class: isMerged ? "ribbon merged" : "ribbon", ...(isMerged && { fill: colour, "fill-opacity": 0.3 }) }));
    for (let layer = first; layer <= last; layer++) {
      const role = !isMerged ? "" : `, in window ${first}-${last}${layer === base ? ": its base layer, whose norms are kept" : ""}`;
      const middle = bar(layer, 0, colour, `layer ${layer}${role}`, layer);
      if (isMerged && layer === base) root.append(svg("circle", { cx: middle, cy: BAR - 5, r: 2.5, class: "base" }));
    }
    bar(after, below, colour, `new layer ${after}: ` + (isMerged ? `layers ${first}-${last} merged` : `layer ${first} unchanged`), after);
  });
  return root;
}

// Two neighbours are in one window if the border between them is joined; a click joins or splits them.
function toggled(plan, border) {
  const joined = new Set(plan.windows.flatMap(([a, b]) => Array.from({ length: b - a }, (_, i) => a + i)));
  joined.has(border) ? joined.delete(border) : joined.add(border);
  const windows = [];
  for (const at of [...joined].sort((a, b) => a - b)) {
    if (windows.length && windows.at(-1)[1] === at) windows.at(-1)[1] = at + 1;
    else windows.push([at, at + 1]);
  }
  return windows;
}

const asText = (windows) => windows.map((window) => window.join("-")).join(",");

function editable(root, plan, onWindows) {
  const cell = Math.min(64, (root.getAttribute("width") - LABELS) / plan.layers);
  for (let border = 0; border + 1 < plan.layers; border++) {
    const joined = plan.windows.some(([a, b]) => a <= border && border < b);
    const x = LABELS + (border + 1) * cell;
    const handle = svg("g", { class: joined ? "border joined" : "border", tabindex: 0, role: "button" });
    handle.append(svg("rect", { x: x - cell / 4, y: 0, width: cell / 2, height: BAR, class: "area" }));
    handle.append(svg("rect", { x: x - 2.5, y: 6, width: 5, height: BAR - 12, rx: 2, class: "mark" }));
    titled(handle, joined ? `split layers ${border} and ${border + 1}` : `join layers ${border} and ${border + 1}`);
    const change = () => onWindows(toggled(plan, border));
    handle.addEventListener("click", change);
    handle.addEventListener("keydown", (event) => event.key === "Enter" && change());
    root.append(handle);
  }
  return root;
}

function numbers(plan, similarity, help, text) {
  const row = html("div", "numbers");
  for (const [label, value] of Object.entries(plan?.numbers ?? help)) {
    const shown = !plan ? "–" : label === "Similarity" && similarity ? similarity : value;
    const tile = html("div", "number");
    tile.title = help[label] ?? "";
    tile.append(html("div", "label", label === "Perplexity" && text ? `${label}, ${text}` : label), html("div", "value", shown));
    if (plan?.more[label]) tile.lastChild.append(html("span", "more", plan.more[label]));
    row.append(tile);
  }
  return row;
}

// Layers left, and perplexity on a logarithmic scale, against the threshold; shaded where nothing is computed yet.
function curves(data, threshold, width, step) {
  const [height, middle] = width < 900 ? [100, 42] : [124, 52];
  const right = width - 8;
  const x = (t) => LABELS + ((t - data.low) / (data.high - data.low)) * (right - LABELS);
  const root = svg("svg", { width, height, class: "stairs" });
  const floor = height - 20;
  root.append(svg("rect", { x: LABELS, y: 0, width: right - LABELS, height: floor, class: "unknown" }));
  const spans = data.steps.map(([low, high, index]) => [Math.max(low, data.low), Math.min(high, data.high), data.plans[index]]).filter(([a, b]) => b > a);
  for (const [a, b] of spans) root.append(svg("rect", { x: x(a), y: 0, width: x(b) - x(a), height: floor, class: "known" }));
  if (step) {
    const [a, b] = [Math.max(step[0], data.low), Math.min(step[1], data.high)];
    root.append(svg("rect", { x: x(a), y: 0, width: Math.max(2, x(b) - x(a)), height: floor, class: "now" }));
  }
  const now = step && data.plans[step[2]];
  const curve = (name, value, [least, most], [top, bottom], ticks) => {
    const y = (number) => bottom - ((number - least) / (most - least || 1)) * (bottom - top);
    let line = "";
    let before = null;
    for (const [a, b, plan] of spans) {
      const at = value(plan);
      if (at === null) continue;
      line += `${before === b ? "L" : "M"}${x(b)},${y(at)}L${x(a)},${y(at)}`;
      before = a;
    }
    root.append(svg("text", { x: 0, y: (top + bottom) / 2, class: "row" }, name));
    for (const [number, text] of ticks) root.append(svg("text", { x: LABELS - 8, y: y(number), class: "tick" }, text));
    root.append(svg("path", { d: line, class: `line ${name}` }));
    if (now && value(now) !== null) root.append(svg("circle", { cx: x(threshold), cy: y(value(now)), r: 5, class: "cursor" }));
    return y;
  };
  const depths = data.plans.map((plan) => plan.left);
  const [least, most] = [Math.min(...depths, data.layers - 1), data.layers];
  const known = data.plans.filter((plan) => plan.perplexity).map((plan) => plan.perplexity);
  const end = known.length && data.original ? middle - 12 : floor - 10;
  curve("layers", (plan) => plan.left, [least, most], [8, end], [[least, least], [most, most]]);
  if (end < middle) {
    const log = (plan) => (plan.perplexity ? Math.log(plan.perplexity) : null);
    const [low, high] = [Math.log(Math.min(data.original, ...known)), Math.log(Math.max(data.original * data.within * 1.5, ...known))];
    const ticks = [low, high].map((number) => [number, compact(Math.exp(number))]);
    const y = curve("perplexity", log, [low, high], [middle + 8, floor - 8], ticks);
    const allowed = y(Math.log(data.original * data.within));
    root.append(svg("text", { x: 0, y: (middle + floor) / 2 + 14, class: "row" }, "(log scale)"));
    root.append(titled(svg("line", { x1: LABELS, x2: right, y1: allowed, y2: allowed, class: "allowed" }), `${data.within} times the original's perplexity`));
    root.append(svg("text", { x: right - 4, y: allowed - 8, class: "tick" }, `× ${data.within}`));
  }
  root.append(svg("line", { x1: LABELS, x2: right, y1: middle - 4, y2: middle - 4, class: "between" }));
  root.append(svg("line", { x1: x(threshold), x2: x(threshold), y1: 0, y2: floor, class: "cursor" }));
  const mark = data.steps[data.mark];
  if (mark) {
    const [at, plan] = [x(Math.min(mark[1], data.high)), data.plans[mark[2]]];
    const flag = titled(svg("g", { class: "flag" }), `the smallest plan within ${data.within} times the original's perplexity: ${plan.left} layers`);
    flag.append(svg("line", { x1: at, x2: at, y1: 0, y2: floor }), svg("path", { d: `M${at},0l-9,5l9,5z` }));
    flag.append(svg("text", { x: at - 6, y: middle - 11, class: "tick" }, `smallest within × ${data.within} here: ${plan.left} layers`));
    root.append(flag);
  }
  for (let t = Math.ceil(data.low * 10) / 10; t <= data.high + 1e-9; t += 0.1)
    root.append(svg("text", { x: x(t), y: height - 6, class: "tick under" }, t.toFixed(1)));
  root.toThreshold = (at) => data.low + ((at - LABELS) / (right - LABELS)) * (data.high - data.low);
  return root;
}

const compact = (number) => (number < 1e4 ? Math.round(number).toLocaleString("en") : number < 1e15 ? number.toLocaleString("en", { notation: "compact", maximumSignificantDigits: 2 }) : "∞");

// The words of an answer; from the first that differs from the original's on, they are marked.
function words(answer, original) {
  const line = html("div", "words");
  const [own, others] = [answer, original].map((text) => text.trim().replace(/\s*\n\s*/g, "\n").match(/\s*\S+/g) ?? []);
  let same = 0;
  while (same < own.length && own[same] === others[same]) same++;
  line.append(own.slice(0, same).join(""));
  if (same < own.length) {
    const first = own[same].trimStart();
    line.append(own[same].slice(0, -first.length), html("mark", "first", first), html("span", "off", own.slice(same + 1).join("")));
  }
  if (!own.length) line.append(html("span", "none", "ends here"));
  line.title = answer; // where there is little room, the end is cut
  return line;
}

// What the original, the pinned and the current plan write: a row for each prompt, a column for each model.
function said(data, plans) {
  const box = html("div", "said");
  box.style.setProperty("--models", plans.length + 1);
  const row = (name, ...cells) => {
    const line = html("div", name);
    line.append(...cells);
    box.append(line);
  };
  const titles = plans.map(([name, plan]) => `${name === "pinned" ? "pinned" : "this plan"}, ${plan.left} of ${plan.layers} layers`);
  const heading = html("div", "title", "What it writes");
  heading.title = "Before healing; always the most likely next word; marked from the first that differs";
  row("titles", heading, ...["original", ...titles].map((title) => html("div", "label", title)));
  data.prompts.forEach((prompt, at) => {
    const answer = (name, line) => {
      const cell = html("div", `answer ${name}`);
      cell.append(line);
      return cell;
    };
    const others = plans.map(([name, plan]) => {
      const own = plan.answers?.[at];
      const missing = plan.answers ? "cannot generate text" : "not asked yet";
      return answer(name, own === undefined ? html("div", "words none", missing) : words(own, data.answers[at]));
    });
    row("card", html("div", "prompt", `${prompt} …`), answer("original", words(data.answers[at], data.answers[at])), ...others);
  });
  return box;
}

class Preview {
  constructor(parent) {
    this.root = parent.querySelector(".layer-view");
    this.root.replaceChildren();
    this.pending = {}; // sent to the server, not answered yet
    this.slider = Object.assign(html("input", "slider"), { type: "range", step: "any" });
    this.slider.setAttribute("aria-label", "Merge while similarity is at least");
    this.field = Object.assign(html("input", "field"), { type: "number", step: 0.001 });
    this.field.setAttribute("aria-label", "Threshold");
    const label = html("div", "head");
    this.buttons = Object.fromEntries(
      [
        ["lower", "‹ previous", "Go to the next different plan below this threshold"],
        ["higher", "next ›", "Go to the next different plan above this threshold"],
        ["within", "smallest", ""],
        ["pin", "Pin", "Keep this plan below to compare it with others"],
        ["edit", "Edit", "Click a border between two layers to join or split them"],
      ].map(([name, text, title]) => [name, Object.assign(html("button", name, text), { title })]),
    );
    label.append(html("label", "", "Merge while similarity is at least"), this.field, ...Object.values(this.buttons));
    [this.stairs, this.shown, this.pinned] = [html("div", "stairs-box"), html("div", "shown"), html("div", "pinned")];
    this.said = html("div", "said-box");
    this.hint = html("div", "hint");
    this.hint.setAttribute("role", "alert");
    const bar = html("div", "bar");
    bar.append(label, this.hint, this.slider);
    const tried = html("div", "tried");
    tried.append(bar, this.stairs, this.shown);
    this.root.append(tried, this.said, this.pinned);
    this.listen();
    new ResizeObserver(() => this.data && this.draw()).observe(this.root);
  }

  listen() {
    this.slider.addEventListener("input", () => this.move(() => 1 * this.slider.value));
    this.slider.addEventListener("change", () => this.commit());
    this.slider.addEventListener("pointerdown", (event) => (this.sliding = event.button === 0));
    for (const end of ["pointerup", "pointercancel", "change"]) this.slider.addEventListener(end, () => (this.sliding = false));
    this.slider.addEventListener("keydown", (event) => {
      const by = { ArrowRight: 0.001, ArrowUp: 0.001, ArrowLeft: -0.001, ArrowDown: -0.001, PageUp: 0.01, PageDown: -0.01 }[event.key];
      if (!by) return;
      event.preventDefault();
      this.move(() => Math.round(1000 * (this.threshold + by)) / 1000);
      clearTimeout(this.later);
      this.later = setTimeout(() => this.commit(), 300);
    });
    this.field.addEventListener("change", () => {
      const { low, high } = this.data;
      const asked = this.field.value === "" ? NaN : 1 * this.field.value;
      const fits = low <= asked && asked <= high;
      this.hint.textContent = fits ? "" : `A threshold is a number from ${low} to ${high}; it stays at ${+this.threshold.toFixed(4)}.`;
      if (!fits) this.field.value = +this.threshold.toFixed(4);
      else {
        this.move(() => asked);
        this.commit();
      }
    });
    const drag = (event) => {
      const svgBox = this.stairs.firstChild;
      this.move(() => Math.round(1000 * svgBox.toThreshold(event.clientX - svgBox.getBoundingClientRect().left)) / 1000);
    };
    this.stairs.addEventListener("pointerdown", (event) => {
      this.stairs.setPointerCapture(event.pointerId);
      this.dragging = true;
      drag(event);
    });
    this.stairs.addEventListener("pointermove", (event) => this.dragging && drag(event));
    for (const end of ["pointerup", "pointercancel"])
      this.stairs.addEventListener(end, () => this.dragging && ((this.dragging = false), this.commit()));
    this.buttons.higher.addEventListener("click", () => this.neighbour(-1));
    this.buttons.lower.addEventListener("click", () => this.neighbour(1));
    this.buttons.within.addEventListener("click", () => {
      this.move(() => this.data.steps[this.data.mark][1]);
      this.commit();
    });
    this.buttons.pin.addEventListener("click", () => {
      this.pin = this.pin ? null : { plan: this.plan(), similarity: this.similarity(), threshold: this.threshold, byHand: this.editing, of: this.data.name };
      this.draw();
    });
    this.buttons.edit.addEventListener("click", () => this.edited(this.editing ? null : (this.plan()?.windows ?? [])));
  }

  update(data, send) {
    [this.data, this.send] = [data, send];
    // Ignore an answer to anything older than the last change.
    const hand = data.hand ?? null;
    if (this.isAnswer("threshold", data.threshold) && !this.unsent && !this.sliding) this.threshold = data.threshold;
    if (this.isAnswer("windows", hand && asText(hand.windows))) [this.hand, this.editing] = [hand, hand !== null];
    Object.assign(this.slider, { min: data.low, max: data.high });
    Object.assign(this.field, { min: data.low, max: data.high });
    this.draw();
  }

  isAnswer(name, value) {
    if (!(name in this.pending)) return true;
    const [sent, until] = this.pending[name];
    if (sent !== value && Date.now() < until) return false;
    delete this.pending[name];
    return true;
  }

  ask(name, value) {
    this.pending[name] = [value, Date.now() + 3000];
    this.send(name, name === "windows" ? { by_hand: value } : value);
  }

  step() {
    const t = Math.min(this.threshold, this.data.high);
    return this.data.steps.find(([low, high]) => low < t && t <= high);
  }

  plan() {
    if (this.editing) return this.hand;
    const step = this.step();
    return step && this.data.plans[step[2]];
  }

  similarity() {
    return this.editing ? undefined : this.step()?.[3];
  }

  move(to) {
    this.hint.textContent = "";
    this.threshold = Math.min(this.data.high, Math.max(this.data.low, to()));
    this.unsent = true; // an answer to an earlier change must not undo this one
    if (this.editing) this.edited(null);
    this.draw();
  }

  commit() {
    this.unsent = false;
    const last = this.pending.threshold?.[0] ?? this.data.threshold;
    if (this.threshold === last && !this.data.hand) return;
    this.ask("threshold", this.threshold);
  }

  // Go to the next interval with a different plan.
  neighbour(by) {
    const { steps } = this.data;
    const here = steps.indexOf(this.step());
    let at = here + by;
    while (here >= 0 && steps[at] && steps[at][2] === steps[here][2]) at += by;
    if (here < 0 || !steps[at] || steps[at][1] <= this.data.low) return;
    this.move(() => steps[at][1]);
    this.commit();
  }

  edited(windows) {
    this.editing = windows !== null;
    const left = windows && this.data.layers - windows.reduce((sum, [a, b]) => sum + b - a, 0);
    const numbers = windows && Object.fromEntries(Object.keys(this.data.help).map((name) => [name, "…"]));
    this.hand = windows && { ...this.data.empty, windows, left, numbers: { ...numbers, Layers: `${left} of ${this.data.layers}` }, more: {} };
    this.ask("windows", windows && asText(windows));
    this.draw();
  }

  draw() {
    const width = this.root.clientWidth;
    if (!width || !this.data) return;
    const [step, plan] = [this.step(), this.plan()];
    this.root.classList.toggle("without-slider", Boolean(this.data.fixed));
    this.slider.value = this.threshold;
    this.slider.setAttribute("aria-valuetext", inSpeech(this.threshold, plan));
    if (this.root.getRootNode().activeElement !== this.field) this.field.value = +this.threshold.toFixed(4);
    this.stairs.replaceChildren(curves(this.data, this.threshold, width, this.editing ? null : step));
    this.shown.replaceChildren(numbers(plan, this.similarity(), this.data.help, this.data.text));
    if (plan) {
      const picture = strip(plan, width);
      this.shown.append(this.editing ? editable(picture, plan, (windows) => this.edited(windows)) : picture);
      const holds = step && `The same plan holds for thresholds above ${step[0].toFixed(4)} and up to ${step[1].toFixed(4)}.`;
      const mark = plan.drops ? "Layers struck out are dropped." : "A dot marks the base layer, whose norms are kept.";
      const hint = "Click a border between two layers to join or split them.";
      this.shown.append(html("div", "note", `${this.editing ? hint : holds} ${mark}`));
    } else this.shown.append(html("div", "note", "The plan at this threshold has not been computed yet."));
    const { mark, within } = this.data;
    this.buttons.within.hidden = this.data.steps[mark] === undefined;
    this.buttons.within.textContent = `smallest within × ${within}`;
    this.buttons.within.title = `Go to the smallest plan of this search whose perplexity is at most ${within} times the original's`;
    this.buttons.edit.textContent = !this.editing ? "Edit" : this.data.fixed ? "Undo my changes" : "Back to threshold";
    this.buttons.edit.hidden = Boolean(this.data.fixed && !this.data.edited);
    this.buttons.pin.textContent = this.pin ? "Unpin" : "Pin";
    this.buttons.pin.disabled = !this.pin && !plan;
    this.pinned.replaceChildren();
    if (this.pin?.of !== this.data.name) this.pin = null;
    this.said.replaceChildren();
    if (this.data.answers?.length) {
      const plans = [this.pin && ["pinned", this.pin.plan], plan?.windows.length && ["current", plan]];
      this.said.append(said(this.data, plans.filter(Boolean)));
    }
    if (this.pin) {
      const name = this.pin.byHand ? "windows by hand" : `threshold ${this.pin.threshold.toFixed(4)}`;
      this.pinned.append(html("div", "note", `Pinned: ${name}`), numbers(this.pin.plan, this.pin.similarity, this.data.help, this.data.text), strip(this.pin.plan, width));
    }
  }
}

// What a screen reader says of the slider.
function inSpeech(threshold, plan) {
  if (!plan) return `${+threshold.toFixed(4)}: not computed yet`;
  const { more, numbers: shown } = plan;
  const perplexity = plan.perplexity ? `, perplexity ${shown.Perplexity}${more.Perplexity ? `, ${more.Perplexity.replace("×", "times")}` : ""}` : "";
  return `${+threshold.toFixed(4)}: ${shown.Layers} layers${perplexity}`;
}

const views = new WeakMap();

export default function ({ data, parentElement, setTriggerValue }) {
  if (data.plan) {
    const root = parentElement.querySelector(".layer-view");
    const draw = () => root.clientWidth && root.replaceChildren(strip(data.plan, root.clientWidth));
    if (!views.has(parentElement)) new ResizeObserver(() => views.get(parentElement)()).observe(root);
    views.set(parentElement, draw);
    draw();
    return;
  }
  if (!views.has(parentElement)) views.set(parentElement, new Preview(parentElement));
  views.get(parentElement).update(data, setTriggerValue);
}
