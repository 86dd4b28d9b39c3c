// Names the text fields of this pack's nodes above their text. The classic canvas shows the name of a text field only
// while it is empty; the newer renderer has labels of its own and never calls this.

import { app } from "../../../scripts/app.js"

const MARGIN = 15 // room for a line of words, as wide as the margin of the other fields
const FONT = "11px Inter, sans-serif"
const READABLE = 0.6

function isLabelled(widget) {
  return widget.element?.tagName === "TEXTAREA" && !widget.options?.read_only && !widget.hidden
}

function drawLabels(node, context) {
  if (node.flags?.collapsed || app.canvas.ds.scale < READABLE) return
  context.save()
  context.font = FONT
  context.fillStyle = LiteGraph.WIDGET_SECONDARY_TEXT_COLOR
  context.textAlign = "left"
  for (const widget of node.widgets ?? []) {
    if (isLabelled(widget)) context.fillText(widget.label ?? widget.name, MARGIN, widget.y + MARGIN - 3)
  }
  context.restore()
}

app.registerExtension({
  name: "unhype.Labels",

  nodeCreated(node) {
    if (!node.comfyClass?.startsWith("UnHype")) return
    for (const widget of node.widgets ?? []) {
      if (isLabelled(widget)) widget.options.margin = MARGIN
    }
    const draw = node.onDrawForeground
    node.onDrawForeground = function (context, ...rest) {
      draw?.call(this, context, ...rest)
      drawLabels(this, context)
    }
  },
})
