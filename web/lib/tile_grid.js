// Where the lines of a picture's tiles lie when the picture is drawn into a box.

/** Lines closer than this, in units of the box, would make one grey area: then only a tint is drawn. */
const LEAST_GAP = 2.5;

/** A picture of 65536×16 px is drawn to scale but for this least thickness, or nothing would be seen of it. */
const LEAST_SIDE = 3;

/**
 * @param {number} width of the picture, pixels
 * @param {number} height
 * @param {number | null} edge of a tile, pixels; null for one piece
 * @param {{ width: number, height: number }} box
 */
export function tileGrid(width, height, edge, box) {
  const scale = Math.min(box.width / width, box.height / height);
  const drawn = { width: Math.max(width * scale, LEAST_SIDE), height: Math.max(height * scale, LEAST_SIDE) };
  const columns = edge ? Math.ceil(width / edge) : 1;
  const rows = edge ? Math.ceil(height / edge) : 1;
  const gap = edge ? edge * scale : Infinity;
  const dense = gap < LEAST_GAP && columns * rows > 1;
  /** @param {number} count */
  const lines = (count) => (dense ? [] : Array.from({ length: count - 1 }, (_, i) => (i + 1) * gap));
  return { ...drawn, columns, rows, dense, xs: lines(columns), ys: lines(rows) };
}
