"use strict";
// Timelines: a slider over the sampler's steps. Pieces keep their width while covered, so that the text never jumps.
for (const section of document.querySelectorAll(".uncovering")) {
  const steps = Number(section.dataset.steps);
  const [slider, button, output] = ["input", "button", "output"].map((name) => section.querySelector(".controls " + name));
  const canvases = [...section.querySelectorAll(".canvas")];
  const pieces = canvases.flatMap((canvas) => [...canvas.children]);
  const costs = [...section.querySelectorAll(".cost")].map((place) => [place, JSON.parse(place.dataset.steps)]);
  let timer = null;

  const show = (step) => {
    slider.value = step;
    output.textContent = `step ${step} of ${steps}`;
    for (const [place, taken] of costs) {
      const [stand, evaluations, computed, reused] = step ? taken[Math.min(step, taken.length) - 1] : [0, 0, 0, 0];
      const each = evaluations ? `, ${(stand / evaluations).toFixed(2)} each` : "";
      const share = reused ? ` (${Math.round((100 * reused) / (computed + reused))} % of what was seen)` : "";
      const [made, kept] = [computed, reused].map((count) => count.toLocaleString("en"));
      place.textContent = `${stand} tokens after ${evaluations} evaluations${each}; ${made} computed, ${kept} out of the cache${share}`
        + (step > taken.length ? `; done at step ${taken.length}` : "");
    }
    for (const piece of pieces) {
      const at = Number(piece.dataset.s);
      piece.classList.toggle("covered", at < 0 || at > step);
    }
  };
  const stop = () => {
    clearInterval(timer);
    timer = null;
    button.textContent = "Play";
    button.setAttribute("aria-label", "Play the uncovering");
  };
  const play = () => {
    if (Number(slider.value) >= steps) show(0);
    button.textContent = "Pause";
    button.setAttribute("aria-label", "Pause the uncovering");
    timer = setInterval(() => {
      show(Number(slider.value) + 1);
      if (Number(slider.value) >= steps) stop();
    }, Math.max(30, Math.min(400, 9000 / Math.max(steps, 1))));
  };
  button.addEventListener("click", () => (timer === null ? play() : stop()));
  slider.addEventListener("input", () => { stop(); show(Number(slider.value)); });
  show(steps);

  for (const canvas of canvases) {
    const readout = canvas.parentElement.querySelector(".readout");
    let here = null;
    const tell = (piece) => {
      if (here) here.classList.remove("here");
      here = piece;
      if (!piece) { readout.textContent = "\u00a0"; return; }
      piece.classList.add("here");
      const at = Number(piece.dataset.s);
      const sure = (100 * Number(piece.dataset.c)).toFixed(0);
      readout.textContent = at === 0 ? "given" : at < 0 ? "never uncovered"
        : piece.classList.contains("covered") ? "still covered" : `step ${at}, probability ${sure} %`;
    };
    canvas.addEventListener("pointerover", (event) => tell(event.target.closest("span")));
    canvas.addEventListener("pointerleave", () => tell(null));
    canvas.addEventListener("blur", () => tell(null));
    canvas.addEventListener("keydown", (event) => {
      const move = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!move || !canvas.children.length) return;
      event.preventDefault();
      const all = [...canvas.children];
      const next = here ? all.indexOf(here) + move : 0;
      tell(all[Math.max(0, Math.min(all.length - 1, next))]);
    });
  }
}

// Galleries: a slider over sheets, one of which is shown.
for (const section of document.querySelectorAll(".gallery[data-last]:not([data-last='0'])")) {
  const last = Number(section.dataset.last);
  const [slider, button, output] = ["input", "button", "output"].map((name) => section.querySelector(".controls " + name));
  const stacks = [...section.querySelectorAll(".sheets")].map((stack) => [...stack.children]);
  let timer = null;

  const show = (place) => {
    slider.value = place;
    for (const sheets of stacks) {
      const shown = Math.round((place / last) * (sheets.length - 1));
      sheets.forEach((sheet, i) => { sheet.hidden = i !== shown; });
      output.textContent = sheets[shown].dataset.label;
    }
  };
  const stop = () => {
    clearInterval(timer);
    timer = null;
    button.textContent = "Play";
  };
  button.addEventListener("click", () => {
    if (timer !== null) { stop(); return; }
    if (Number(slider.value) >= last) show(0);
    button.textContent = "Pause";
    timer = setInterval(() => {
      show(Number(slider.value) + 1);
      if (Number(slider.value) >= last) stop();
    }, Math.max(60, Math.min(400, 6000 / last)));
  });
  slider.addEventListener("input", () => { stop(); show(Number(slider.value)); });
  show(last);
}

// Charts: the nearest point of every line under the pointer.
const short = (value) => (Math.abs(value) >= 1e6 ? (value / 1e6).toPrecision(3) + " M" : Math.abs(value) >= 1e3 ? (value / 1e3).toPrecision(3) + " k" : Number(value.toPrecision(4)).toString());
for (const figure of document.querySelectorAll(".chart")) {
  const area = figure.querySelector(".area");
  const hair = area.querySelector(".hair");
  const lines = JSON.parse(area.querySelector("script").textContent);
  const keys = [...figure.querySelectorAll(".keys b")];
  const output = figure.querySelector("output");
  area.addEventListener("pointermove", (event) => {
    const box = area.getBoundingClientRect();
    const at = Math.max(0, Math.min(100, (100 * (event.clientX - box.left)) / box.width));
    const near = lines.map((points) => points.reduce((best, point) => (Math.abs(point[0] - at) < Math.abs(best[0] - at) ? point : best)));
    hair.hidden = false;
    hair.style.left = at + "%";
    near.forEach((point, i) => { keys[i].textContent = short(point[3]); });
    output.textContent = " at " + short(near[0][2]);
  });
  area.addEventListener("pointerleave", () => {
    hair.hidden = true;
    output.textContent = "";
    for (const key of keys) key.textContent = "";
  });
}
