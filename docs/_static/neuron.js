"use strict";

/**
 * The forward of srm_triton/ops/srm_scan.py for one neuron, rounded in the same order.
 *
 * @param {{tauM: number, tauS: number, threshold: number}} constants time constants in steps, and the threshold
 * @param {number[]} current the input current at each step
 * @returns {{synapse: number, membrane: number, spike: boolean}[]} what each step reaches, before the reset
 */
function simulate({ tauM, tauS, threshold }, current) {
  let u = 0;
  let s = 0;
  return current.map((x) => {
    s = s + x;
    u = (1 - 1 / tauM) * u + s * (1 / tauS);
    const step = { synapse: s, membrane: u, spike: u > threshold };
    s = s * (1 - 1 / tauS);
    if (step.spike) {
      u = 0;
      s = 0;
    }
    return step;
  });
}

const STEPS = 40;
const PATTERNS = {
  "every third step": (t) => t % 3 === 0,
  "two bursts": (t) => (t >= 4 && t < 9) || (t >= 24 && t < 29),
  "one spike": (t) => t === 4,
  "at random": () => Math.random() < 0.35,
  "no spikes": () => false,
};

function button(text, click) {
  const made = document.createElement("button");
  made.type = "button";
  made.textContent = text;
  made.addEventListener("click", click);
  return made;
}

/** What the steps look like, as the inside of an SVG of this width in pixels and of 340 in height. */
function picture(steps, input, threshold, width) {
  const x = (t) => (((t + 0.5) * width) / STEPS).toFixed(1);
  const scale = (values, bottom, height) => (value) => (bottom - (height * value) / Math.max(...values)).toFixed(1);
  const synapse = scale([1, ...steps.map((step) => step.synapse)], 130, 60);
  const membrane = scale([threshold * 1.1, ...steps.map((step) => step.membrane)], 272, 104);
  const text = (y, words) => `<text x="0" y="${y}">${words}</text>`;
  const level = (kind, y) => `<line class="${kind}" x1="0" x2="${width}" y1="${y}" y2="${y}"/>`;
  const marks = (kind, y, is) =>
    steps.map((_, t) => (is(t) ? `<line class="${kind}" x1="${x(t)}" x2="${x(t)}" y1="${y}" y2="${y + 16}"/>` : "")).join("");
  const curve = (kind, y) =>
    `<polyline class="${kind}" points="${steps.map((step, t) => `${x(t)},${y(step[kind])}`).join(" ")}"/>` +
    steps.map((step, t) => `<circle class="${kind}" cx="${x(t)}" cy="${y(step[kind])}" r="2"/>`).join("");
  const ticks = [0, 10, 20, 30].map((t) => `<text x="${x(t)}" y="338" text-anchor="middle">${t}</text>`);
  return [
    text(12, "input spikes") + marks("input", 18, (t) => input[t]),
    text(56, "synaptic current s") + level("axis", 130) + curve("synapse", synapse),
    text(156, "membrane potential u, threshold θ dashed") + level("axis", 272),
    level("threshold", membrane(threshold)) + curve("membrane", membrane),
    text(300, "output spikes") + marks("spike", 306, (t) => steps[t].spike),
    `${ticks.join("")}<text x="${width}" y="338" text-anchor="end">step</text>`,
  ].join("");
}

function summary(steps) {
  const fired = steps.flatMap((step, t) => (step.spike ? [t] : []));
  if (fired.length === 0) return "The neuron stays silent.";
  if (fired.length === 1) return `The neuron fires once, at step ${fired[0]}.`;
  return `The neuron fires ${fired.length} times, at steps ${fired.join(", ")}.`;
}

/** Brings the controls within an element to life, and draws what they say. */
function showNeuron(element) {
  const find = (selector) => element.querySelector(selector);
  const sliders = [...element.querySelectorAll("input[type=range]")];
  const drawing = find("svg");

  const boxes = Array.from({ length: STEPS }, (_, t) => button(String(t), () => put(t, !isOn(boxes[t]))));
  const isOn = (box) => box.getAttribute("aria-pressed") === "true";
  const set = (box, on) => box.setAttribute("aria-pressed", String(on));
  const put = (t, on) => {
    set(boxes[t], on);
    draw();
  };
  const fill = (pattern) => {
    boxes.forEach((box, t) => set(box, pattern(t)));
    draw();
  };
  // one stop of the tabulator for the whole train; arrows go from step to step
  const reach = (t) => boxes.forEach((box, other) => (box.tabIndex = other === t ? 0 : -1));
  const moves = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 10, ArrowUp: -10, Home: -STEPS, End: STEPS };
  find(".train").addEventListener("keydown", (event) => {
    if (!(event.key in moves)) return;
    event.preventDefault();
    const next = boxes.indexOf(event.target) + moves[event.key];
    boxes[Math.min(Math.max(next, 0), STEPS - 1)].focus();
  });
  find(".train").addEventListener("focusin", (event) => reach(boxes.indexOf(event.target)));

  function draw() {
    const values = Object.fromEntries(sliders.map((slider) => [slider.name, Number(slider.value)]));
    for (const slider of sliders) {
      slider.parentElement.querySelector("output").textContent = Number(slider.value).toFixed(slider.dataset.digits);
    }
    const input = boxes.map(isOn);
    const steps = simulate(values, input.map((on) => (on ? values.weight : 0)));
    drawing.innerHTML = picture(steps, input, values.threshold, drawing.clientWidth);
    const said = summary(steps);
    if (find(".summary").textContent !== said) find(".summary").textContent = said;
  }

  find(".train").append(...boxes);
  find(".patterns").append(...Object.entries(PATTERNS).map(([name, pattern]) => button(name, () => fill(pattern))));
  reach(0);
  fill(PATTERNS["every third step"]);
  element.addEventListener("input", draw);
  new ResizeObserver(draw).observe(element);
}

if (typeof document !== "undefined") document.querySelectorAll(".neuron").forEach(showNeuron);
