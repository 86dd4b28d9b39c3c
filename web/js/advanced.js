// Folds the advanced fields of this pack's nodes away in the classic canvas, under a button: the nodes say which fields
// those are, but only the newer renderer folds them.

import { app } from "../../../scripts/app.js"

const BUTTON = "show_advanced"
const SHOW = "Show advanced inputs"
const HIDE = "Hide advanced inputs"

app.registerExtension({
  name: "unhype.Advanced",

  nodeCreated(node) {
    if (!node.comfyClass?.startsWith("UnHype") || !node.toggleAdvanced) return
    const folded = node.widgets?.filter((widget) => widget.options?.advanced) ?? []
    if (!folded.length) return
    for (const widget of folded) {
      widget.advanced = true
      // A field that is only `advanced` isn't drawn, but the canvas keeps its place free.
      Object.defineProperty(widget, "hidden", {
        get: () => !node.showAdvanced && !LiteGraph.vueNodesMode,
        set: () => {},
        configurable: true,
      })
    }
    const button = node.addWidget("button", BUTTON, null, () => {
      node.toggleAdvanced()
      button.label = node.showAdvanced ? HIDE : SHOW
    })
    button.label = SHOW
    button.serialize = false
    Object.assign(button.options, { serialize: false, canvasOnly: true })
    node.setSize([node.size[0], node.computeSize()[1]])
  },
})
