import assert from "node:assert/strict";
import { test } from "node:test";

import { scaleOf } from "../../web/lib/meter.js";
import { planView } from "../../web/lib/plan_view.js";
import { ProgressView } from "../../web/lib/progress_view.js";
import { loaderView, runView } from "../../web/lib/result_view.js";
import { strings } from "../../web/lib/strings.js";
import { loader, plan, run, rung } from "./examples.mjs";
import { install } from "./fake_dom.mjs";

install();
const en = strings("en");
const GIB = 2 ** 30;
const badges = (view) => view.of("badge").map((badge) => badge.textContent);

test("a run tells rung, size, tiles, memory and time", () => {
  const text = runView(run({ images: 3, measured_bytes: 3.1 * GIB, host_bytes: GIB }), en).textContent;
  for (const part of ["streamed", "12.3 s", "SDXL", "4096×2048 px", "3 images", "tiles of 64–512", "bfloat16 on cuda:0"]) {
    assert.ok(text.includes(part), part);
  }
  for (const part of ["predicted 3.00 GiB", "measured 3.10 GiB", "limit 4.00 GiB", "host memory 1.00 GiB"]) {
    assert.ok(text.includes(part), part);
  }
  assert.ok(!text.includes("files"));
});

test("the bar is the peak's share of the limit, and is told in words", () => {
  const view = runView(run({ measured_bytes: 2 * GIB }), en);
  const [track] = view.of("track");
  assert.equal(view.of("fill")[0].style.width, "75%");
  assert.equal(view.of("mark")[0].style.left, "50%");
  assert.equal(track.attributes["aria-label"], track.title);
  assert.match(track.title, /predicted 3.00 GiB, measured 2.00 GiB, limit 4.00 GiB/);
});

test("without a limit there is no bar, and without a prediction no memory", () => {
  assert.equal(runView(run({ limit_bytes: null }), en).of("track").length, 0);
  assert.equal(runView(run({ device_bytes: null }), en).of("memory").length, 0);
});

test("the badge says exact, approximate or ComfyUI", () => {
  assert.deepEqual(badges(runView(run(), en)), ["exact"]);
  assert.deepEqual(badges(runView(run({ exact: false }), en)), ["approximate"]);
  assert.deepEqual(badges(runView(run({ by: "comfyui" }), en)), ["run by ComfyUI"]);
  assert.deepEqual(badges(runView(run({ by: "comfyui", exact: false }), en)), ["run by ComfyUI", "approximate"]);
});

test("retries, events and notes are told", () => {
  const text = runView(run({ retries: 2, events: ["memory ran out"], notes: ["cropped"] }), en).textContent;
  for (const part of ["2 retries", "memory ran out", "cropped"]) assert.ok(text.includes(part), part);
  assert.ok(!runView(run(), en).textContent.includes("retr"));
});

test("many sentences are folded", () => {
  const view = runView(run({ events: ["one", "two", "three", "four", "five"] }), en);
  const [details] = [...view.all()].filter((element) => element.tag === "details");
  assert.equal(details.children[0].textContent, "2 more");
  assert.equal(details.children[1].textContent, "four five");
});

test("what the server sends stays text", () => {
  const evil = "<img src=x onerror=alert(1)>";
  const views = [
    runView(run({ rung: evil, title: evil, notes: [evil], events: [evil], dtype: evil }), en),
    loaderView(loader({ title: evil, file: evil, why: [evil], candidates: [evil, evil] }), en),
    planView(plan({ title: evil, error: evil, device: evil, rungs: [rung(evil)] }), en),
  ];
  for (const view of views) {
    assert.ok(view.textContent.includes(evil));
    assert.ok([...view.all()].every((element) => element.tag !== "img" && !("innerHTML" in element)));
  }
});

test("a loader tells what it recognised and why, and what else would fit", () => {
  const text = loaderView(loader(), en).textContent;
  for (const part of ["SDXL", "float32", "sdxl_vae.safetensors", "ldm", "4 latent channels", "sd1, sdxl"]) {
    assert.ok(text.includes(part), part);
  }
  assert.equal(loaderView(loader({ candidates: [] }), en).of("warning").length, 0);
});

test("a plan marks the chosen rung and those that do not fit", () => {
  const view = planView(plan(), en);
  const [whole, onHost, inFiles] = view.of("step");
  assert.ok(whole.textContent.includes("does not fit") && whole.of("cut").length === 1);
  assert.ok(onHost.textContent.includes("✓") && onHost.className.includes("chosen"));
  assert.ok(onHost.textContent.includes("host memory 8.00 GiB") && onHost.textContent.includes("cost ×1.21"));
  assert.ok(!inFiles.textContent.includes("✓") && inFiles.textContent.includes("files 8.00 GiB"));
  assert.ok(view.textContent.includes("4×2 tiles of 1024 px"));
  assert.deepEqual(view.of("limit").map((line) => line.style.left), Array(3).fill("33.33%"));
});

test("a plan that was refused says why, and draws no tiles", () => {
  const view = planView(plan({ error: "nothing fits", grid_px: null, limit_bytes: null, rungs: [rung("whole")] }), en);
  assert.ok(view.textContent.includes("nothing fits") && view.textContent.includes("38.0 GiB"));
  assert.equal(view.of("picture").length, 0);
  assert.equal(view.of("limit").length, 0);
});

test("summaries of another version of the server do no harm", () => {
  for (const view of [runView, loaderView, planView]) assert.doesNotThrow(() => view({}, en));
  assert.doesNotThrow(() => runView(run({ tiles: "64", events: 7, notes: [null, 3], images: "many" }), en));
  assert.doesNotThrow(() => planView(plan({ rungs: [{}], width: "wide", grid_px: -1 }), en));
});

test("a scale shows some limits' worth, and all if there is none", () => {
  assert.equal(scaleOf([1, 2], 10), 10);
  assert.equal(scaleOf([1, 20], 10), 20);
  assert.equal(scaleOf([1, 2000], 10), 30);
  assert.equal(scaleOf([1, 2000, null], null), 2000);
});

test("progress is told as a bar, in per cent and in time", () => {
  const view = new ProgressView();
  view.update({ done: 0.427, seconds_left: 12.3, what: "streamed", pass: "convolve" }, en);
  assert.equal(view.fill.style.width, "42.7%");
  assert.equal(view.element.attributes["aria-valuenow"], "42");
  assert.equal(view.element.title, "streamed · convolve · 42 % · 12 s left");
  view.update({ done: 7, seconds_left: null }, en);
  assert.equal(view.element.title, "running · 100 %");
  view.update({ pass: "convolve" }, strings("zh"));
  assert.equal(view.element.title, "运行中 · convolve · 0 %");
});

test("of a clip, progress tells the frame, and a run and a plan how many there are", () => {
  const view = new ProgressView();
  const told = { done: 0.4, seconds_left: 12.3, what: "whole", pass: "convolve", frame: 33, frames: 81 };
  view.update(told, en);
  assert.equal(view.pass.textContent, "frame 33 of 81 · convolve");
  assert.equal(view.element.title, "whole · frame 33 of 81 · convolve · 40 % · 12 s left");
  view.update({ ...told, frames: 1 }, en);
  assert.equal(view.pass.textContent, "convolve");
  for (const [show, summary] of [[runView, run], [planView, plan]]) {
    assert.ok(show(summary({ frames: 81 }), en).textContent.includes("81 frames"));
    assert.ok(!show(summary({ frames: 1 }), en).textContent.includes("frame"));
  }
});
