// Where the lines of a picture's tiles lie when the picture is drawn into a box.

/** Lines closer than this, in units of the box, would make one grey area: then only a tint is drawn. */
const LEAST_GAP = 2.5;

/** A picture of 65536×16 px is drawn to scale but for this least thickness, or nothing would be seen of it. */
const LEAST_SIDE = 3;

/**
 * @param {number} width of the picture, pixels
 * @param {number} height
 * @param {[number, number] | null} tile its width and height, pixels; null for one piece
 * @param {{ width: number, height: number }} box
 */
export function tileGrid(width, height, tile, box) {
  const scale = Math.min(box.width / width, box.height / height);
  const drawn = { width: Math.max(width * scale, LEAST_SIDE), height: Math.max(height * scale, LEAST_SIDE) };
  const [across, down] = (tile ?? [width, height]).map((side) => side * scale);
  const columns = tile ? Math.ceil(width / tile[0]) : 1;
  const rows = tile ? Math.ceil(height / tile[1]) : 1;
  const dense = (columns > 1 && across < LEAST_GAP) || (rows > 1 && down < LEAST_GAP);
  /** @param {number} count @param {number} gap */
  const lines = (count, gap) => (dense ? [] : Array.from({ length: count - 1 }, (_, i) => (i + 1) * gap));
  return { ...drawn, columns, rows, dense, xs: lines(columns, across), ys: lines(rows, down) };
}
