"use strict";
/* The script of a report: puts the figures into the page, redraws the timeline for the range that was brushed, explains
   turns. It asks nobody but, where the page is live, the server that it came from. */
(() => {
  const AT_ONCE = 20000, BARS = 1200, LIVE_MS = 2000, PAPER = 690;  // pixels: A4 and Letter are wider
  let data, state, timer;

  const $ = (id) => document.getElementById(id);
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const number = (value) => Math.round(value).toLocaleString("en-US");

  /* Figures are drawn as wide as the screen is, and are not drawn anew for paper: make them smaller, as pictures. */
  function fitToPaper(figures) {
    for (const one of figures) {
      const { width, height } = one.getBoundingClientRect(), scale = Math.min(1, PAPER / width);
      Object.assign(one.style, { height: `${height * scale}px`, overflow: "hidden" });
      for (const drawn of one.children) Object.assign(drawn.style, { transformOrigin: "0 0", transform: `scale(${scale})` });
    }
  }

  // -- packed numbers

  async function unpack(text, type) {
    const bytes = Uint8Array.from(atob(text), (sign) => sign.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new type(await new Response(stream).arrayBuffer());
  }

  async function open(stretch) {
    if (!stretch.opened) {
      stretch.opened = Promise.all([unpack(stretch.arcs, Uint16Array), unpack(stretch.spent, Float32Array)]);
    }
    [stretch.arc, stretch.microseconds] = await stretch.opened;
    return stretch;
  }

  function spent(microseconds) {
    for (const [unit, size] of [["h", 3.6e9], ["min", 6e7], ["s", 1e6], ["ms", 1e3]]) {
      if (microseconds >= size) return `${(microseconds / size).toFixed(3)} ${unit}`;
    }
    return `${microseconds.toFixed(1)} µs`;
  }

  // -- turns one by one

  async function stretchOf(run, first, end) {
    const held = run.turns.find((one) => one.first <= first && end <= one.first + one.count);
    if (held) return open(held);
    if (!data.live) return null;
    const answer = await fetch(`${data.live}turns?run=${data.runs.indexOf(run)}&first=${first}&end=${end}`);
    if (!answer.ok) return null;
    const stretch = await answer.json();
    run.turns.push(stretch);
    if (run.turns.length > 12) run.turns.splice(1, 1);
    return open(stretch);
  }

  function sourceOf(run, arc) {
    const { arcs } = run.rules;
    return arc < arcs.length ? arcs[arc][0] : arc - arcs.length;
  }

  function shown(run, node) { return run.rules.nodes[node][0]; }

  function destOf(run, arc) { return arc < run.rules.arcs.length ? shown(run, run.rules.arcs[arc][1]) : "failed"; }

  /* Counters after the body of the source of a turn, derived from the path as `record/chunk.py` does. */
  function countersAt(run, stretch, seq) {
    let [epoch, batch, step, update, window] = stretch.counters;
    const skipped = new Set(stretch.skipped), rules = run.rules;
    let time = stretch.began;
    for (let place = 0; place <= seq - stretch.first; place++) {
      const arc = stretch.arc[place];
      time += stretch.microseconds[place] / 1000;
      if (rules.opens[arc]) batch = 0;
      if (rules.step[arc]) { step++; batch++; window++; }
      if (rules.update[arc]) { if (!skipped.has(stretch.first + place)) update++; window = 0; }
      if (rules.epoch[arc]) epoch++;
      if (!run.carries && (rules.epoch[arc] || rules.opens[arc])) window = 0;
    }
    return { epoch, batch, step, update, window, time };
  }

  async function explain(index, seq) {
    const run = data.runs[index], panel = $(`explain-${index}`);
    if (!panel) return;
    seq = Math.max(run.first, Math.min(run.end - 1, seq));
    panel.dataset.seq = seq;
    let words = run.explained[seq];
    if (!words && data.live) {
      const answer = await fetch(`${data.live}explain?run=${index}&seq=${seq}`);
      if (answer.ok) words = await answer.text();
    }
    if (!words) words = await derived(run, seq);
    if (panel.dataset.seq === String(seq)) panel.textContent = words;
  }

  async function derived(run, seq) {
    const stretch = await stretchOf(run, seq, seq + 1);
    if (!stretch) {
      return `#${seq}\n    this file does not hold this turn by itself: ask\n    heptad explain ${run.label} ${seq}`;
    }
    const arc = stretch.arc[seq - stretch.first], at = countersAt(run, stretch, seq), { arcs, handlers } = run.rules;
    const source = shown(run, sourceOf(run, arc)), dest = destOf(run, arc);
    const lines = [
      `#${seq} ${source} -> ${dest}  epoch ${at.epoch} batch ${at.batch} step ${at.step} update ${at.update}  `
        + spent(stretch.microseconds[seq - stretch.first]),
    ];
    if (stretch.skipped.includes(seq)) lines.push("    the update was skipped, the weights did not change");
    const tried = arcs.map((row, place) => [row, place]).filter(([row]) => row[0] === sourceOf(run, arc));
    for (const [row, place] of arc < arcs.length ? tried : []) {
      if (place > arc) break;
      const said = row[2] ? ` if ${row[2]}: ${place === arc ? "yes" : "no"}` : ": always";
      lines.push(`    to ${shown(run, row[1])}${said}`);
    }
    for (const who of handlers[`exit ${source}`] || []) lines.push(`    on exit of ${source}: ${who}`);
    for (const who of handlers[`enter ${dest}`] || []) lines.push(`    on entry to ${dest}: ${who}`);
    for (const text of run.events[seq] || []) lines.push(`    ${text}`);
    return lines.join("\n");
  }

  // -- the timeline

  function modelOf(view, test) {
    for (const model of view.model.references()) if (test(model)) return model;
    return null;
  }

  const tagged = (tag) => (model) => Array.isArray(model.tags) && model.tags.includes(tag);

  async function envelopeOf(run) {
    if (!run.envelope.least32) {
      const { least, most, longest } = run.envelope;
      [run.envelope.least32, run.envelope.most32, run.envelope.longest32] = await Promise.all([
        unpack(least, Float32Array), unpack(most, Float32Array), unpack(longest, Uint32Array),
      ]);
    }
    return run.envelope;
  }

  /* The shortest and the longest stay of each pixel's turns: a spike is never between two pixels. */
  async function bars(run, first, end) {
    const { least32, most32, longest32, count } = await envelopeOf(run), turns = run.end - run.first;
    const low = Math.max(0, Math.floor((first - run.first) * count / turns));
    const high = Math.min(count, Math.ceil((end - run.first) * count / turns));
    const rows = Math.min(BARS, high - low), found = { x: [], y0: [], y1: [], said: [] };
    for (let row = 0; row < rows; row++) {
      const from = low + Math.floor(row * (high - low) / rows), to = low + Math.floor((row + 1) * (high - low) / rows);
      let best = from, least = Infinity;
      for (let place = from; place < to; place++) {
        if (most32[place] > most32[best]) best = place;
        least = Math.min(least, least32[place]);
      }
      found.x.push(run.first + longest32[best]);
      found.y0.push(Math.max(least, 1e-3) / 1000);
      found.y1.push(Math.max(most32[best], 1e-3) / 1000);
      found.said.push(`${spent(least)} to ${spent(most32[best])}`);
    }
    return found;
  }

  function single(run, stretch, first, end) {
    const found = { x: [], y: [], colour: [], marker: [], state: [], said: [] };
    for (let seq = first; seq < end; seq++) {
      const place = seq - stretch.first, name = shown(run, sourceOf(run, stretch.arc[place]));
      const [colour, marker] = run.marks[name], microseconds = stretch.microseconds[place];
      found.x.push(seq);
      found.y.push(Math.max(microseconds, 1e-3) / 1000);
      found.colour.push(colour);
      found.marker.push(marker);
      found.state.push(name);
      found.said.push(spent(microseconds));
    }
    return found;
  }

  const EMPTY_TURNS = { x: [], y: [], colour: [], marker: [], state: [], said: [] };
  const EMPTY_BARS = { x: [], y0: [], y1: [], said: [] };

  async function redraw(index) {
    const run = data.runs[index], line = state.lines[index];
    const asked = ++line.asked;
    const first = Math.max(run.first, Math.floor(line.range.start));
    const end = Math.min(run.end, Math.max(first + 1, Math.ceil(line.range.end)));
    const fits = end - first <= AT_ONCE;
    const stretch = fits ? await stretchOf(run, first, end) : null;
    const coarse = stretch ? null : await bars(run, first, end);
    if (asked !== line.asked) return; // a later brush was faster
    line.turns.data = stretch ? single(run, stretch, first, end) : EMPTY_TURNS;
    line.ranges.data = stretch ? EMPTY_BARS : coarse;
    const how = stretch ? "every turn" : fits ? "shortest and longest stays: this file does not hold these turns one by one (heptad serve does)"
      : `shortest and longest stays of each pixel; every turn from ${number(AT_ONCE)} turns on`;
    $(`range-${index}`).textContent = `#${number(first)} to #${number(end - 1)}: ${how}`;
    document.body.dataset.drawn = `${index}:${first}:${end}:${stretch ? "turns" : "ranges"}`;
  }

  function wireTimeline(index, view) {
    const line = {
      asked: 0,
      range: modelOf(view, tagged("detail")),
      turns: modelOf(view, tagged("turns")),
      ranges: modelOf(view, tagged("ranges")),
    };
    state.lines[index] = line;
    const kept = state.ranges[index];
    if (kept) [line.range.start, line.range.end] = kept;
    let waiting = 0;
    const chosen = modelOf(view, tagged("chosen")), brushed = modelOf(view, tagged("spikes"));
    const changed = () => {
      [chosen.left, chosen.right] = [line.range.start, line.range.end];
      state.ranges[index] = [line.range.start, line.range.end];
      clearTimeout(waiting);
      waiting = setTimeout(() => redraw(index), 60);
    };
    line.range.properties.start.change.connect(changed);
    line.range.properties.end.change.connect(changed);
    brushed.on_event("selectiongeometry", (event) => {
      const { x0, x1 } = event.geometry;
      if (!event.final || !(Math.abs(x1 - x0) > 0)) return;
      const run = data.runs[index], low = Math.max(run.first, Math.floor(Math.min(x0, x1)));
      const high = Math.min(run.end, Math.ceil(Math.max(x0, x1)));
      line.range.setv({ start: low, end: Math.max(high, low + 5) });
    });
    for (const source of [line.turns, line.ranges]) {
      source.selected.properties.indices.change.connect(() => {
        const [place] = source.selected.indices;
        if (place !== undefined) explain(index, source.data.x[place]);
      });
    }
    return redraw(index);
  }

  function show(index, seq) {
    const run = data.runs[index], line = state.lines[index];
    if (line) {
      const start = Math.max(run.first, seq - 150), end = Math.min(run.end, seq + 151);
      line.range.start = start;
      line.range.end = Math.max(end, start + 5);
    }
    const place = $(`timeline-${index}`);
    if (place) place.scrollIntoView({ block: "start" });
    return explain(index, seq);
  }

  // -- curves

  function axes(run) {
    return ["update", ...(run.epochs ? ["epoch"] : []), ...(run.samples ? ["samples"] : []), "time"];
  }

  function radio(name, legend, choices, chosen, act) {
    const field = document.createElement("fieldset"), title = document.createElement("legend");
    title.textContent = legend;
    field.append(title);
    for (const [value, words] of choices) {
      const label = document.createElement("label"), input = document.createElement("input");
      input.type = "radio";
      input.name = name;
      input.value = value;
      input.checked = value === chosen;
      input.addEventListener("change", () => act(value));
      label.append(input, ` ${words}`);
      field.append(label);
    }
    return field;
  }

  function wireCurves(id, view) {
    const models = [...view.model.references()], sources = models.filter(tagged("curve"));
    const range = models.find((model) => model.type === "Range1d" && tagged("curves")(model));
    const figures = models.filter(tagged("figure"));
    const chosen = (state.curves[id] ||= { axis: "update", scale: "linear" });
    const bar = document.querySelector(`[data-for="${id}"]`);
    const units = { time: "seconds driven", samples: "samples", epoch: "epochs", update: "update" };
    const over = (axis) => {
      chosen.axis = axis;
      let low = Infinity, high = -Infinity;
      for (const source of sources) {
        source.data = { ...source.data, x: source.data[axis] };
        for (const value of source.data[axis]) { low = Math.min(low, value); high = Math.max(high, value); }
      }
      const margin = (high - low) / 50 || 0.5;
      [range.start, range.end] = low <= high ? [low - margin, high + margin] : [0, 1];
      [range.reset_start, range.reset_end] = [range.start, range.end];
      for (const figure of figures) for (const item of figure.below) if ("axis_label" in item) item.axis_label = units[axis];
    };
    const scale = (kind) => {
      chosen.scale = kind;
      for (const figure of figures) figure.visible = figure.tags.includes(kind);
    };
    const known = id.endsWith("all") ? axes(data.runs[0]) : axes(data.runs[Number(id.split("-").pop())]);
    bar.replaceChildren(
      radio(`${id}-axis`, "over", known.map((axis) => [axis, units[axis]]), chosen.axis, over),
      radio(`${id}-scale`, "values", [["linear", "linear"], ["log", "logarithmic"]], chosen.scale, scale),
    );
    if (chosen.axis !== "update") over(chosen.axis);
    if (chosen.scale !== "linear") scale(chosen.scale);
  }

  // -- the machine

  function choose(item) {
    const index = Number(item.dataset.run), run = data.runs[index];
    const arc = item.dataset.arc === undefined ? null : Number(item.dataset.arc);
    const name = arc === null ? item.dataset.node
      : Object.keys(run.graph).find((node) => run.graph[node].some((row) => row[4] === arc));
    const panel = $(`guards-${index}`), rows = run.graph[name] || [];
    all(".chosen", item.closest("svg")).forEach((one) => one.classList.remove("chosen"));
    item.classList.add("chosen");
    const title = document.createElement("h3"), list = document.createElement("ul");
    title.textContent = rows.length ? `From ${name}, tried in this order` : `${name}: nothing leads on from here`;
    for (const [guard, dest, asked, taken, place] of rows) {
      const entry = document.createElement("li"), words = guard
        ? `${guard}: asked ${number(asked)} times, yes ${number(taken)}, no ${number(asked - taken)}; yes leads to ${dest}`
        : `otherwise to ${dest}: ${number(taken)} times`;
      entry.textContent = words;
      if (place === arc) entry.style.fontWeight = "700";
      list.append(entry);
    }
    panel.replaceChildren(title, list);
  }

  // -- light and dark

  const dark = matchMedia("(prefers-color-scheme: dark)");

  function paint(night) {
    const ink = night ? "#e8eaed" : "#1b1f24", faint = night ? "#a4adba" : "#5a6270", line = night ? "#3d444e" : "#dfe3e8";
    for (const view of state.views) {
      for (const model of view.model.references()) {
        if (tagged("figure")(model)) {
          model.background_fill_color = null;
          model.border_fill_color = null;
          model.border_line_color = null;
          model.outline_line_color = line;
        } else if ("major_label_text_color" in model) {
          model.major_label_text_color = faint;
          model.axis_label_text_color = ink;
          model.axis_line_color = faint;
          model.major_tick_line_color = faint;
          model.minor_tick_line_color = null;
        } else if ("grid_line_color" in model) {
          model.grid_line_color = line;
        } else if ("label_text_color" in model && "items" in model) {
          model.label_text_color = ink;
          model.background_fill_color = null;
          model.border_line_color = null;
        }
      }
    }
  }

  /* Legends break into as many columns as there is room for, and their figures grow by as many rows. */
  function fit() {
    for (const view of state.views) {
      for (const model of view.model.references()) {
        if (!tagged("figure")(model)) continue;
        const legend = model.above.find((one) => one.items && one.items.length);
        if (!legend) continue;
        const longest = Math.max(...legend.items.map((item) => String(item.label?.value ?? item.label ?? "").length));
        const wide = document.querySelector(".figure").clientWidth - 60;
        const columns = Math.max(1, Math.min(legend.items.length, Math.floor(wide / (longest * 7.2 + 38))));
        const rows = Math.ceil(legend.items.length / columns);
        legend.ncols = columns;
        legend.nrows = rows;
        model.height = (state.heights[model.id] ??= model.height) + (rows - 1) * 24;
      }
    }
  }

  // -- begin, and begin again with what is new

  async function start() {
    data = JSON.parse($("data").textContent);
    state.views = [];
    state.lines = {};
    Bokeh.set_log_level("error");
    for (const [id, item] of Object.entries(data.items)) {
      if (!$(id)) continue;
      const views = await Bokeh.embed.embed_item(item, id);
      const view = views.get ? [...views][0] : [...views.roots][0];
      state.views.push(view);
      if (id.startsWith("figure-curves")) wireCurves(id, view);
      if (id.startsWith("figure-timeline")) await wireTimeline(Number(id.split("-").pop()), view);
    }
    state.heights = {};
    fit();
    paint(dark.matches);
    document.body.dataset.ready = "yes";
  }

  async function refresh() {
    try {
      const answer = await fetch(`${data.live}page?since=${data.made}`);
      const line = $("live");
      line.hidden = false;
      if (answer.status === 204) {
        line.textContent = `Nothing new since ${new Date().toLocaleTimeString()}.`;
      } else if (answer.ok) {
        const page = new DOMParser().parseFromString(await answer.text(), "text/html");
        const top = scrollY, opened = all("details").map((one) => one.open);
        for (const view of state.views) view.model.document?.clear();
        $("data").textContent = page.getElementById("data").textContent;
        const texts = all("aside pre").map((one) => [one.id, one.textContent, one.dataset.seq]);
        document.querySelector("main").replaceWith(document.adoptNode(page.querySelector("main")));
        all("details").forEach((one, place) => { one.open = opened[place] ?? one.open; });
        await start();
        for (const [id, text, seq] of texts) if (seq !== undefined && $(id)) { $(id).textContent = text; $(id).dataset.seq = seq; }
        scrollTo(scrollX, top);
        $("live").hidden = false;
        $("live").textContent = `As of ${new Date().toLocaleTimeString()}; the page follows the run.`;
      } else {
        line.textContent = `The server says ${answer.status}.`;
      }
    } catch (error) {
      $("live").hidden = false;
      $("live").textContent = "The server has ended; this is what was seen last.";
      return;
    }
    timer = setTimeout(refresh, LIVE_MS);
  }

  state = { views: [], lines: {}, ranges: {}, curves: {} };
  document.addEventListener("click", (event) => {
    const turn = event.target.closest("button.turn"), item = event.target.closest(".node, .arc[data-arc]");
    if (turn) show(Number(turn.dataset.run), Number(turn.dataset.seq));
    else if (item) choose(item);
  });
  document.addEventListener("keydown", (event) => {
    const item = event.target.closest?.(".node, .arc[data-arc]");
    if (item && (event.key === "Enter" || event.key === " ")) { event.preventDefault(); choose(item); }
  });
  document.addEventListener("submit", (event) => {
    const form = event.target.closest("form.goto");
    if (!form) return;
    event.preventDefault();
    show(Number(form.dataset.run), Number(form.elements.seq.value));
  });
  addEventListener("resize", fit);
  dark.addEventListener("change", () => paint(dark.matches));
  addEventListener("beforeprint", () => {
    all("details").forEach((one) => { one.open = true; });
    paint(false);
    fitToPaper(all(".figure"));
  });
  addEventListener("afterprint", () => {
    paint(dark.matches);
    for (const one of all(".figure")) {
      one.style.height = one.style.overflow = "";
      for (const drawn of one.children) drawn.style.transform = "";
    }
  });
  start().then(() => { if (data.live) timer = setTimeout(refresh, LIVE_MS); }).catch((error) => {
    console.error(error);
    document.body.dataset.ready = "failed";
  });
})();
