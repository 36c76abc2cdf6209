// Summaries as the server sends them.

const GIB = 2 ** 30;

export const run = (changes = {}) => ({
  kind: "run",
  by: "exact",
  title: "SDXL",
  direction: "decode",
  width: 4096,
  height: 2048,
  images: 1,
  frames: 1,
  device: "cuda:0",
  dtype: "bfloat16",
  rung: "streamed",
  tiles: [64, 512],
  exact: true,
  device_bytes: 3 * GIB,
  host_bytes: 0,
  disk_bytes: 0,
  measured_bytes: null,
  limit_bytes: 4 * GIB,
  seconds: 12.34,
  retries: 0,
  events: [],
  notes: [],
  ...changes,
});

export const rung = (name, changes = {}) => ({
  name,
  tiles: null,
  device_bytes: 38 * GIB,
  host_bytes: 0,
  disk_bytes: 0,
  operations: 30e12,
  cost: 1,
  fits: false,
  exact: true,
  chosen: false,
  ...changes,
});

export const plan = (changes = {}) => ({
  kind: "plan",
  title: "SDXL",
  direction: "decode",
  width: 4096,
  height: 2048,
  images: 1,
  frames: 1,
  device: "cuda:0",
  limit_bytes: 6 * GIB,
  error: null,
  grid_px: [1024, 1024],
  rungs: [
    rung("whole"),
    rung("streamed, Fields on the host", {
      tiles: [256, 1024],
      device_bytes: 5 * GIB,
      host_bytes: 8 * GIB,
      cost: 1.209,
      fits: true,
      chosen: true,
    }),
    rung("streamed, Fields in files", { tiles: [256, 1024], device_bytes: 5 * GIB, disk_bytes: 8 * GIB, fits: true }),
  ],
  ...changes,
});

export const loader = (changes = {}) => ({
  kind: "loader",
  title: "SDXL",
  file: "sdxl_vae.safetensors",
  layout: "ldm",
  why: ["4 latent channels", "the file's name says SDXL"],
  candidates: ["sd1", "sdxl"],
  dtype: "float32",
  ...changes,
});
