// Shows the text output of this pack's nodes on the nodes; ComfyUI's interface does so for its own text nodes only.
// It also makes new nodes of the pack wide enough for their text.

import { app } from "../../../scripts/app.js"
import { nodeAt } from "./graph.js"

const NODES = new Set([
  "UnHypeLoadHypernet",
  "UnHypeTrainErasure",
  "UnHypeMergeErasers",
  "UnHypeInspectPrompt",
  "UnHypeErasureReport",
  "UnHypeImportWeights",
])
const WIDTH = 320 // of a new node: enough for file names and the title of Inspect Prompt
const BOX = "result"
// Their page says it all: in Nodes 2.0, where the box would come before the page, it is folded with the advanced fields.
const FOLDED = new Set(["UnHypeTrainErasure"])
const BOX_HEIGHT = 110 // on the classic canvas, of eight lines
const BOX_LINES = 6 // in Nodes 2.0

/** Show a node's text output below its inputs, in a box that is made with the first text. */
function showText(node, output) {
  if (!output?.text) return
  const box = node.widgets?.find((widget) => widget.name === BOX) ?? addBox(node)
  box.value = [output.text].flat().join("\n")
}

/** A read-only text box, neither saved with the workflow nor sent with the prompt. */
function addBox(node) {
  const { widget } = app.widgets.STRING(node, BOX, ["STRING", { multiline: true }], app)
  widget.serialize = false
  widget.options.serialize = false
  widget.options.read_only = true
  widget.options.getMinHeight = () => BOX_HEIGHT
  widget.options.rows = BOX_LINES
  widget.options.advanced = FOLDED.has(node.comfyClass)
  if (widget.element) widget.element.readOnly = true
  const [width, height] = node.computeSize()
  node.setSize([Math.max(node.size[0], width), Math.max(node.size[1], height)])
  return widget
}

app.registerExtension({
  name: "unhype.Text",

  beforeRegisterNodeDef(nodeType, nodeData) {
    if (!NODES.has(nodeData.name)) return
    const onExecuted = nodeType.prototype.onExecuted
    nodeType.prototype.onExecuted = function (output) {
      onExecuted?.call(this, output)
      showText(this, output)
    }
  },

  /** A new node is as wide as its sockets need, which cuts off our text. Saved graphs keep their sizes. */
  nodeCreated(node) {
    if (!node.comfyClass?.startsWith("UnHype")) return
    node.setSize([Math.max(node.size[0], WIDTH), node.size[1]])
  },

  /** Newer interfaces store outputs while another workflow is open, and restore them here. */
  onNodeOutputsUpdated(outputs) {
    for (const [id, output] of Object.entries(outputs)) {
      const node = nodeAt(id)
      if (NODES.has(node?.comfyClass)) showText(node, output)
    }
  },
})
