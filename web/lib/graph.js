// Finding nodes in a graph of graphs.

/**
 * The node that an id of the server names, or null. Ids of nodes in subgraphs are paths, "12:3": node 3 of the subgraph
 * that node 12 stands for; in the frontend's own records they are "<uuid of the subgraph>:3".
 * @param {any} root the outermost graph @param {unknown} id
 */
export function findNode(root, id) {
  const steps = String(id ?? "").split(":");
  const last = steps.pop();
  let graph = root;
  for (const step of steps) {
    graph = root?.subgraphs?.get?.(step) ?? nodeOf(graph, step)?.subgraph;
  }
  return nodeOf(graph, last);
}

/** Ids are numbers in the graph, and strings in what the server sends. @param {any} graph @param {string | undefined} id */
function nodeOf(graph, id) {
  return graph?.getNodeById?.(id) ?? graph?.getNodeById?.(Number(id)) ?? null;
}

/** Every node, those of subgraphs included. @param {any} root @returns {Iterable<any>} */
export function* allNodes(root) {
  yield* root?.nodes ?? [];
  for (const subgraph of root?.subgraphs?.values?.() ?? []) yield* subgraph.nodes ?? [];
}
