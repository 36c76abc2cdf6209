// The browser side of the pack. It registers nothing as yet.
// ComfyUI imports every .js file under this folder, so this is the only one that may have side effects.
export {};
