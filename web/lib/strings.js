// The words of the panel. A language is one table; what it lacks is said in English.
// Sentences of the server, such as notes and errors, are shown as they come.

const en = {
  exact: "exact",
  exactHint: "The same picture as the whole run would give",
  approximate: "approximate",
  approximateHint: "Overlapping tiles, each with statistics of its own: not the same picture as the whole run would give",
  byComfyUI: "run by ComfyUI",
  byComfyUIHint: "This pack has no network of this family, so ComfyUI's own code ran it",
  decode: "decode",
  encode: "encode",
  images: (n) => `${n} images`,
  frames: (n) => `${n} frames`,
  frame: (n, total) => `frame ${n} of ${total}`,
  tiles: (edges) => `tiles of ${edges}`,
  tilesHint: "Smallest and largest edge of a tile, in cells of each layer's output; pixels in the last layers",
  on: (dtype, device) => `${dtype} on ${device}`,
  predicted: (bytes) => `predicted ${bytes}`,
  measured: (bytes) => `measured ${bytes}`,
  memoryHint: (parts) => `Peak of device memory, weights included: ${parts}`,
  device: "device",
  host: "host memory",
  files: "files",
  limit: (bytes) => `limit ${bytes}`,
  retries: (n) => (n === 1 ? "1 retry" : `${n} retries`),
  more: (n) => `${n} more`,
  candidates: (names) => `the tensors fit each of: ${names}`,
  running: "running",
  left: (time) => `${time} left`,
  oneTile: "in one piece",
  grid: (columns, rows, sides) => `${columns}×${rows} tiles of ${sides} px`,
  gridHint: (width, height, pieces) => `The picture, ${width}×${height} px, ${pieces}`,
  cost: (ratio) => `cost ×${ratio}`,
  chosen: "chosen",
  doesNotFit: "does not fit",
  rungs: {},
};

const zh = {
  exact: "精确",
  exactHint: "与整幅运行得到的图像相同",
  approximate: "近似",
  approximateHint: "分块相互重叠，各自统计：与整幅运行得到的图像不同",
  byComfyUI: "由 ComfyUI 运行",
  byComfyUIHint: "本节点包没有这一系列的网络，因此由 ComfyUI 自身的代码运行",
  decode: "解码",
  encode: "编码",
  images: (n) => `${n} 张图像`,
  frames: (n) => `${n} 帧`,
  frame: (n, total) => `第 ${n} 帧，共 ${total} 帧`,
  tiles: (edges) => `分块 ${edges}`,
  tilesHint: "分块的最小和最大边长，以各层输出的单元计；在最后几层即为像素",
  on: (dtype, device) => `${dtype}，${device}`,
  predicted: (bytes) => `预计 ${bytes}`,
  measured: (bytes) => `实测 ${bytes}`,
  memoryHint: (parts) => `设备内存（显存）峰值（含权重）：${parts}`,
  device: "设备",
  host: "主机内存",
  files: "文件",
  limit: (bytes) => `上限 ${bytes}`,
  retries: (n) => `重试 ${n} 次`,
  more: (n) => `另外 ${n} 条`,
  candidates: (names) => `张量同时符合：${names}`,
  running: "运行中",
  left: (time) => `剩余 ${time}`,
  oneTile: "不分块",
  grid: (columns, rows, sides) => `${columns}×${rows} 个 ${sides} 像素的分块`,
  gridHint: (width, height, pieces) => `图像 ${width}×${height} 像素，${pieces}`,
  cost: (ratio) => `代价 ×${ratio}`,
  chosen: "已选用",
  doesNotFit: "放不下",
  rungs: {
    whole: "整幅",
    "whole, image by image": "整幅，逐张",
    "depth first": "深度优先，逐块",
    "depth first in part": "部分深度优先，逐块",
    streamed: "逐层分块",
    "streamed on the device": "逐层分块，数据在设备上",
    "streamed, Fields on the host": "逐层分块，数据在主机内存",
    "streamed, Fields in files": "逐层分块，数据在文件中",
    blend: "重叠混合",
    "finished before": "此前已完成",
    "by ComfyUI": "ComfyUI 的方式",
    "tiled by ComfyUI": "ComfyUI 的分块方式",
  },
};

/** @typedef {typeof en} Strings */

const TABLES = { en, zh };

/** The words of a locale such as "zh" or "zh-TW". @param {unknown} locale @returns {Strings} */
export function strings(locale) {
  const language = String(locale ?? "en").split(/[-_]/)[0];
  return Object.hasOwn(TABLES, language) ? { ...en, ...TABLES[language] } : en;
}

/** A rung's name in the panel's language, or as the server calls it. @param {Strings} t @param {unknown} name */
export function rungName(t, name) {
  const known = String(name ?? "");
  return Object.hasOwn(t.rungs, known) ? t.rungs[known] : known;
}

/** For tests: all tables. */
export const tables = TABLES;
