"use strict";

/**
 * The forward of srm_triton/ops/srm_scan.py, for one neuron.
 *
 * @param {{tauM: number, tauS: number, threshold: number}} constants time constants in steps, and the threshold
 * @param {number[]} current the input current of each step
 * @returns {{synapse: number, membrane: number, spike: boolean}[]} of each step, before the reset
 */
function simulate({ tauM, tauS, threshold }, current) {
  const membraneDecay = 1 - 1 / tauM;
  const synapseDecay = 1 - 1 / tauS;
  const rise = 1 / tauS;
  let u = 0;
  let s = 0;
  return current.map((x) => {
    s += x;
    u = membraneDecay * u + s * rise;
    const step = { synapse: s, membrane: u, spike: u > threshold };
    s *= synapseDecay;
    if (step.spike) {
      u = 0;
      s = 0;
    }
    return step;
  });
}

/** Fills the element with controls and a drawing that follows them. */
function showNeuron(element) {
  const STEPS = 40;
  const PATTERNS = {
    "every third step": (t) => t % 3 === 0,
    "two bursts": (t) => (t >= 4 && t < 9) || (t >= 24 && t < 29),
    "one spike": (t) => t === 5,
    "at random": () => Math.random() < 0.35,
    none: () => false,
  };
  const find = (selector) => element.querySelector(selector);
  const sliders = [...element.querySelectorAll("input[type=range]")];

  const train = find(".train");
  for (let t = 0; t < STEPS; t++) {
    const box = document.createElement("input");
    box.type = "checkbox";
    box.setAttribute("aria-label", `input spike at step ${t}`);
    box.checked = PATTERNS["every third step"](t);
    train.append(box);
  }
  const boxes = [...train.children];
  for (const [name, fires] of Object.entries(PATTERNS)) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = name;
    button.addEventListener("click", () => {
      boxes.forEach((box, t) => (box.checked = fires(t)));
      draw();
    });
    find(".patterns").append(button);
  }

  const WIDTH = 800;
  const x = (t) => ((t + 0.5) * WIDTH) / STEPS;
  const line = (kind, x1, y1, x2, y2) => `<line class="${kind}" x1="${x1}" y1="${y1}" x2="${x2}" y2="${y2}"/>`;
  const text = (y, words) => `<text x="4" y="${y}">${words}</text>`;
  const curve = (kind, values, y) =>
    `<polyline class="${kind}" points="${values.map((value, t) => `${x(t)},${y(value)}`).join(" ")}"/>`;

  function draw() {
    const value = Object.fromEntries(sliders.map((slider) => [slider.name, Number(slider.value)]));
    for (const slider of sliders) {
      slider.parentElement.querySelector("output").textContent = Number(slider.value).toFixed(slider.dataset.digits);
    }
    const steps = simulate(
      value,
      boxes.map((box) => (box.checked ? value.weight : 0)),
    );
    const fired = steps.map((step, t) => (step.spike ? t : -1)).filter((t) => t >= 0);
    const largest = Math.max(value.threshold, ...steps.map((step) => step.membrane)) * 1.05;
    const most = Math.max(1, ...steps.map((step) => step.synapse)) * 1.05;
    const ofSynapse = (s) => 150 - (90 * s) / most;
    const ofMembrane = (u) => 330 - (140 * u) / largest;
    find("svg").innerHTML = [
      text(14, "input spikes"),
      ...boxes.map((box, t) => (box.checked ? line("input", x(t), 20, x(t), 40) : "")),
      text(58, "synaptic current s"),
      line("axis", 0, 150, WIDTH, 150),
      curve("synapse", steps.map((step) => step.synapse), ofSynapse),
      text(182, "membrane potential u, and the threshold θ"),
      line("axis", 0, 330, WIDTH, 330),
      line("limit", 0, ofMembrane(value.threshold), WIDTH, ofMembrane(value.threshold)),
      curve("membrane", steps.map((step) => step.membrane), ofMembrane),
      text(356, "output spikes"),
      ...fired.map((t) => line("spike", x(t), 362, x(t), 388)),
    ].join("");
    find(".summary").textContent =
      fired.length === 0 ? "The neuron stays silent." : `The neuron fires ${fired.length === 1 ? "once, at step" : `${fired.length} times, at the steps`} ${fired.join(", ")}.`;
  }
  element.addEventListener("input", draw);
  draw();
}

if (typeof document !== "undefined") {
  document.addEventListener("DOMContentLoaded", () => document.querySelectorAll(".neuron").forEach(showNeuron));
}
