// Nodes by the ids that ComfyUI's interface stores their outputs under.

import { app } from "../../../scripts/app.js"

/** The node of an id: "<node>" in the workflow itself, "<subgraph>:<node>" inside a subgraph. */
export function nodeAt(locator) {
  const [id, subgraph] = String(locator).split(":").reverse()
  const root = app.rootGraph ?? app.graph
  return (subgraph ? root?.subgraphs?.get(subgraph) : root)?.getNodeById(id)
}

/** The node of an id of the server: "<node>", or "<subgraph node>:<node>" inside subgraphs. */
export function nodeOf(execution) {
  let graph = app.rootGraph ?? app.graph
  const path = String(execution).split(":")
  const last = path.pop()
  for (const id of path) graph = graph?.getNodeById(id)?.subgraph
  return graph?.getNodeById(last)
}

/** The id of a node, see `nodeAt`. */
export function locatorOf(node) {
  const root = app.rootGraph ?? app.graph
  return node.graph && node.graph !== root ? `${node.graph.id}:${node.id}` : String(node.id)
}
