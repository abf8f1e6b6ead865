// The histogram of the raw half, and the display's min, max and gamma. None of it touches saved data.

import { $, put } from "./dom.js";
import { shown } from "./live.js";

const SIDE = 192; // pixels sampled in each direction: enough for a histogram, cheap twice a second
const BINS = 128;
const probe = new OffscreenCanvas(SIDE, SIDE).getContext("2d", { willReadFrequently: true });
const plot = $("hist").getContext("2d");
probe.imageSmoothingEnabled = false; // real pixels, not averages of several: averages would hide clipping

let low = 0;
let high = 1;
let gamma = 1;
let fullScale = null; // counts at full scale; null until the camera is known
let counts = null; // of the last picture, 256 levels

function measure(bitmap) {
  probe.drawImage(bitmap, 0, 0, bitmap.width / 2, bitmap.height, 0, 0, SIDE, SIDE);
  const { data } = probe.getImageData(0, 0, SIDE, SIDE);
  counts = new Uint32Array(256);
  for (let i = 0; i < data.length; i += 4) counts[data[i]] += 1;
}

export function drawHistogram() {
  const bitmap = shown();
  plot.clearRect(0, 0, 600, 96);
  if (bitmap === null) {
    counts = null;
    put("clip", "no frame");
    return;
  }
  measure(bitmap);
  const stale = $("frame").dataset.veil !== undefined;
  put("clip", stale ? "raw · last frame" : `raw · ${((counts[255] / SIDE ** 2) * 100).toFixed(2)} % clipped`);
  const bins = new Float32Array(BINS);
  counts.forEach((count, level) => {
    bins[(level * BINS) >> 8] += count;
  });
  const top = Math.log1p(Math.max(...bins));
  plot.fillStyle = "#aab1b7";
  bins.forEach((count, i) => {
    const height = (Math.log1p(count) / top) * 84;
    plot.fillRect((i * 600) / BINS, 96 - height, 3.9, height);
  });
  plot.strokeStyle = "#74bdf2";
  plot.lineWidth = 3;
  plot.beginPath();
  for (let i = 0; i <= 60; i += 1) {
    const level = i / 60;
    plot.lineTo((low + (high - low) * level) * 600, 94 - level ** (1 / gamma) * 90);
  }
  plot.stroke();
}

function apply() {
  low = Number($("d-min").value) / 100;
  high = Math.max(low + 0.02, Number($("d-max").value) / 100);
  gamma = Number($("d-gam").value) / 100;
  const slope = 1 / (high - low);
  for (const node of document.querySelectorAll("#disp .lin")) {
    node.setAttribute("slope", slope);
    node.setAttribute("intercept", -low * slope);
  }
  for (const node of document.querySelectorAll("#disp .gam")) node.setAttribute("exponent", 1 / gamma);
  $("view").style.filter = slope === 1 && gamma === 1 ? "" : "url(#disp)";
  showFigures();
  drawHistogram();
}

function showFigures() {
  const shownCounts = (level) => (fullScale === null ? "–" : String(Math.round(level * fullScale)));
  put("d-min-o", shownCounts(low));
  put("d-max-o", shownCounts(high));
  put("d-gam-o", gamma.toFixed(2));
}

/** The level under which `share` of the pixels lie, 0..1. */
function quantile(share) {
  let left = share * SIDE ** 2;
  for (let level = 0; level < 256; level += 1) {
    left -= counts[level];
    if (left <= 0) return level / 255;
  }
  return 1;
}

function autoContrast() {
  const on = $("d-auto").getAttribute("aria-pressed") !== "true" && counts !== null;
  $("d-auto").setAttribute("aria-pressed", on);
  $("d-min").value = on ? Math.floor(quantile(0.002) * 100) : 0;
  $("d-max").value = on ? Math.ceil(quantile(0.998) * 100) : 100;
  apply();
}

/** Tell the histogram the camera's bit depth, for figures in counts. */
export function setBitDepth(bits) {
  fullScale = bits === undefined ? null : 2 ** bits - 1;
  showFigures();
}

export function begin() {
  for (const id of ["d-min", "d-max", "d-gam"]) {
    $(id).addEventListener("input", () => {
      if (id !== "d-gam") $("d-auto").setAttribute("aria-pressed", "false");
      apply();
    });
  }
  $("d-auto").addEventListener("click", autoContrast);
  setInterval(() => document.hidden || $("view-live").hidden || drawHistogram(), 500);
}
